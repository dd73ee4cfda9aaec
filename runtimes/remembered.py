"""What was found out about a bundle on this machine, so that the second start need not find it out again.

    <cache>/decisions/<key>.json    which device was chosen, and how the others did
    <cache>/openvino/               OpenVINO's compiled models

The folder is the user's cache of the platform, or the one that TASKTOK_EDGE_CACHE names; where that is empty, nothing is kept.
The key holds the bundle's hash, the engine's version and the devices: what changes is measured anew. Files that
cannot be read or written are as good as none.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from tasktok_edge.runtimes.engine import Device, Trial

VARIABLE = "TASKTOK_EDGE_CACHE"
MAX_BYTES = 1 << 20


def cache_folder(name: str) -> Path | None:
    """A folder of that name to keep things in, made; None where nothing is to be kept or it cannot be made."""
    told = os.environ.get(VARIABLE)
    if told == "":
        return None
    folder = (Path(told) if told is not None else user_cache_path("tasktok-edge", appauthor=False)) / name
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # compiled models are code: nobody else may write them
        if os.access(folder, os.W_OK):
            return folder
    return None


def key_of(facts: dict[str, Any]) -> str:
    """Name what a decision was made from: the same facts give the same name."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def recall(key: str) -> list[Trial] | None:
    """Give the trials that were remembered under `key`, one of them chosen; None where there are none."""
    folder = cache_folder("decisions")
    try:
        if folder is None or (file := folder / f"{key}.json").stat().st_size > MAX_BYTES:
            return None
        trials = [_trial(told) for told in json.loads(file.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return trials if sum(t.verdict == "chosen" for t in trials) == 1 else None


def _trial(told: dict[str, Any]) -> Trial:
    return Trial(**{**told, "device": Device(**told["device"]), "functions": tuple(told["functions"])})


def remember(key: str, trials: list[Trial]) -> None:
    """Keep the trials, whole or not at all."""
    folder = cache_folder("decisions")
    if folder is None:
        return
    temporary = folder / f".{key}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps([asdict(t) for t in trials]), encoding="utf-8")
        temporary.replace(folder / f"{key}.json")
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def forget(key: str) -> None:
    """Drop what turned out to be no longer so."""
    folder = cache_folder("decisions")
    if folder is not None:
        with contextlib.suppress(OSError):
            (folder / f"{key}.json").unlink(missing_ok=True)
