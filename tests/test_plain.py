"""A peer that answers otherwise than the model is no peer: each stock tool's export against eager, frame in, answer out."""

from pathlib import Path

import numpy as np
import pytest

from tasktok_edge.data.heldout import held_out
from tasktok_edge.errors import VerdictError
from tasktok_edge.export.graph import Function
from tasktok_edge.frames import crop_resize, windows
from tasktok_edge.metrics import same_answer
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.plain import COMPILED, Export, Plain, plain_export
from tasktok_edge.reference import Reference

FUNCTIONS = [Function("predict", "det"), Function("restore", "seg")]  # of two outputs, and of a frame
QUICK = [(tool, function) for tool in ("ONNX Runtime", "OpenVINO") for function in FUNCTIONS]
# Compilers' work, half a minute and more for each.
SLOW = [pytest.param(tool, FUNCTIONS[0], marks=pytest.mark.large) for tool in ("ExecuTorch", COMPILED)]


@pytest.mark.slow
@pytest.mark.parametrize(("tool", "function"), [*QUICK, *SLOW])
def test_each_plain_export_answers_as_eager_does(tool: str, function: Function, tiny: TaskTok, tmp_path: Path) -> None:
    held = next(held_out(1)).degraded
    frame = crop_resize(held, windows(*held.shape[:2])[0], tiny.config.image_size)
    eager, plain = Reference(tiny), Plain(tiny, plain_export(tool, tiny, function, tmp_path), threads=1)
    figure = plain.agreement_db(eager, frame[None])
    assert figure > 25 if plain.precision == "bf16" else figure > 90
    if function.kind == "restore":
        off = plain.restore(frame, function.task).astype(int) - eager.restore(frame, function.task)
        assert np.abs(off).max() <= (16 if plain.precision == "bf16" else 1)
    elif plain.precision == "fp32":
        assert same_answer(plain.predict(frame, function.task), eager.predict(frame, function.task))


def test_a_broken_peer_is_refused(tiny: TaskTok) -> None:
    def wrong(_: int) -> tuple[str, object]:
        return "fp32", lambda batch: [np.zeros((1, tiny.config.tasks["cls"].n_outputs), np.float32)]

    plain = Plain(tiny, Export("ONNX Runtime", Function("predict", "cls"), wrong), threads=1)  # type: ignore[arg-type]
    size = tiny.config.image_size
    with pytest.raises(VerdictError, match=r"plain ONNX Runtime .* no fair peer"):
        plain.agreement_db(Reference(tiny), np.full((1, size, size, 3), 99, np.uint8))
