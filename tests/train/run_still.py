"""The command line, with task networks that keep their normalisation still; started by test_joint_run.py."""

import sys
from typing import Any

from tasktok_edge.cli import run
from tasktok_edge.train.joint_recipe import JOINT_RECIPES
from tests.train.helpers_joint import light_detectors

if __name__ == "__main__":
    # Each task once. Of pictures so small the detector takes all anchors and proposals, and not a random sample of them.
    changes: dict[str, Any] = {
        "norms_learn": False,
        "steps": 3,
        "save_every": 9,
        "validate_every": 9,
        "detector_sides": (64, 64),
    }
    # AdamW makes a whole step of gradients that are zero but for rounding; steps so small keep the next gradients comparable.
    changes |= {"decoder_rate": 1e-9, "refiner_rate": 1e-9, "switch_rate": 1e-9}
    JOINT_RECIPES["tasktok-mini"] = JOINT_RECIPES["tasktok-mini"].model_copy(update=changes)
    with light_detectors():
        sys.exit(run(sys.argv[1:]))
