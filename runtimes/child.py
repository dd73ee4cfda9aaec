"""The process behind `load(…, isolate=True)`: opens one bundle on one device and answers until its standard input ends.

    python -m tasktok_edge.runtimes.child    # started by runtimes.isolated, which has the other end

Messages are lines of JSON; frames and answers lie in a mapped file. Nothing is unpickled, on either side.
"""

import contextlib
import json
import mmap
import os
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Bundle
from tasktok_edge.errors import DeviceError
from tasktok_edge.manifest import MANIFEST, FunctionSpec, parse_manifest
from tasktok_edge.runtimes.engine import Device, Running

MAX_TOLD = 2000  # characters of an error that are passed on


def main() -> None:
    # Engines print: what they print goes where errors go, and never between the messages.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    _die_first()
    job = json.loads(sys.stdin.readline())
    with Path(job["shared"]).open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
    try:
        running, specs, size = _opened(job)
    except Exception as error:  # noqa: BLE001  # whatever it is, the other side tells it
        _say(answers, error=_told(error))
        return
    _say(answers, ready=True)
    frame = np.frombuffer(shared, np.uint8, size * size * 3).reshape(1, size, size, 3)
    for line in sys.stdin:
        asked = json.loads(line)
        functions = tuple(asked["functions"])
        try:
            if "placement" in asked:
                _say(answers, placement=running.placement(functions))
                continue
            found = running.run(functions, frame)
            for name, place in places([specs[f] for f in functions], size).items():
                _array(shared, place)[:] = found[name]
        except Exception as error:  # noqa: BLE001  # as above
            _say(answers, error=_told(error))
            continue
        _say(answers, precision=running.effective_precision, device=running.effective_device)


def _opened(job: dict[str, Any]) -> tuple[Running, dict[str, FunctionSpec], int]:
    from tasktok_edge.runtimes import engine

    folder = Path(job["bundle"])
    manifest = parse_manifest((folder / MANIFEST).read_bytes())  # verified by who started this
    bundle = Bundle(path=folder, source=folder, manifest=manifest, sha256=job["sha256"])
    running = engine(manifest.target).open(bundle, Device(**job["device"]), threads=job["threads"], tasks=job["tasks"])
    return running, {f.name: f for f in manifest.functions}, manifest.input.size


Place = tuple[int, tuple[int, ...]]  # where an array of float32 begins, in bytes, and its shape


def places(specs: list[FunctionSpec], size: int) -> dict[str, Place]:
    """Where the answers lie in the mapped file: behind the frame, one after the other."""
    at, found = -(-size * size * 3 // 64) * 64, {}
    for spec in specs:
        for output in spec.outputs:
            found[output.name] = (at, tuple(output.shape))
            at += -(-4 * int(np.prod(output.shape)) // 64) * 64
    return found


def length(specs: list[FunctionSpec], size: int) -> int:
    """Bytes of the mapped file when all functions are asked for at once."""
    return max((at + 4 * int(np.prod(shape)) for at, shape in places(specs, size).values()), default=size * size * 3)


def _array(shared: mmap.mmap, place: Place) -> NDArray[np.float32]:
    at, shape = place
    return np.frombuffer(shared, np.float32, int(np.prod(shape)), at).reshape(shape)


def _say(answers: IO[bytes], **message: object) -> None:
    answers.write(json.dumps(message).encode() + b"\n")


def _told(error: Exception) -> str:
    said = str(error) if isinstance(error, DeviceError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())[:MAX_TOLD]


def _die_first() -> None:
    """Where memory runs out this process goes, not the host; and its end writes no core file."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
