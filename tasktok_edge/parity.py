"""Does the artifact answer as the PyTorch model does? Measured through the shim, recorded in the bundle."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Parity, replace_parity
from tasktok_edge.data.heldout import held_out
from tasktok_edge.errors import DeviceError, PackageError
from tasktok_edge.export import Target
from tasktok_edge.export.graph import Say, model_functions
from tasktok_edge.export.writer import GOLDEN_FRAMES, write_bundle
from tasktok_edge.frames import crop_resize, windows
from tasktok_edge.macs import count
from tasktok_edge.manifest import MANIFEST, Manifest, Precision, parse_manifest
from tasktok_edge.memory import measured
from tasktok_edge.metrics import same_answer
from tasktok_edge.model.checkpoint import Checkpoint
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.reference import Reference, golden_answers
from tasktok_edge.runtimes import load
from tasktok_edge.runtimes.selection import peak_of, psnr_db
from tasktok_edge.staging import stage

PARITY_FRAMES = 16
LARGE_MACS = 10_000_000_000  # multiply-adds from which a frame takes seconds: one golden frame then, and fewer for parity
LARGE_PARITY_FRAMES = 2
# Share of frames with the same answer. In int8 the last digit of a sum in floating point moves a code to its neighbour now and
# then, every layer behind carries that on, and the border of a mask moves.
MIN_AGREEMENT: dict[str, float] = {"fp32": 0.995, "fp16": 0.995, "int8": 0.9}


@dataclass(frozen=True)
class Exported:
    """A bundle that was written, with its verdict inside."""

    path: Path
    manifest: Manifest
    bytes: int
    seconds: float  # of building the engine's files
    peak_bytes: int  # the process's highest resident size meanwhile


def export_verified(
    checkpoint: Checkpoint,
    target: Target,
    out: Path,
    *,
    tasks: tuple[str, ...],
    precision: Precision,
    overwrite: bool = False,
    say: Say = lambda _: None,
) -> Exported:
    """Build a bundle, run it through the shim where it can run here, and record what was found; nothing half-written stays."""
    with stage(out, overwrite=overwrite) as folder:
        say("golden frames")
        model = checkpoint.model
        large = sum(part.exported for part in count(model.config, {})) > LARGE_MACS
        golden = np.stack([_square(h.degraded, model) for h in held_out(1 if large else GOLDEN_FRAMES)])
        answers = golden_answers(model, model_functions(model.config, tasks), golden)
        start = time.perf_counter()
        with measured() as peak:
            write_bundle(
                folder,
                checkpoint,
                target,
                tasks=tasks,
                precision=precision,
                frames=golden,
                answers=answers,
                say=say,
            )
        seconds = time.perf_counter() - start
        n_frames = LARGE_PARITY_FRAMES if large else PARITY_FRAMES
        say(f"parity on {n_frames} held-out frames")
        manifest = replace_parity(folder, measure_parity(folder, checkpoint, tasks=tasks, n_frames=n_frames))
    total = sum(entry.bytes for entry in manifest.files.values())
    return Exported(out, manifest, total, seconds, peak.bytes)


def _square(frame: NDArray[np.uint8], model: TaskTok) -> NDArray[np.uint8]:
    """The first window of a frame, as the function takes it."""
    size = model.config.image_size
    return crop_resize(frame, windows(*frame.shape[:2])[0], size, model.config.resize)


def measure_parity(folder: Path, checkpoint: Checkpoint, *, tasks: tuple[str, ...], n_frames: int = PARITY_FRAMES) -> Parity:
    """Compare every function with the full model in PyTorch on held-out degraded frames."""
    reference = Reference(checkpoint.model)
    try:
        session = load(folder, proof="measured")
    except (DeviceError, PackageError) as reason:
        return _asked(folder).model_copy(update={"reason": str(reason)})
    with session:
        specs = session.bundle.manifest.functions
        names = tuple(f.name for f in specs)
        worst = dict.fromkeys(names, np.inf)
        agreed = {f.task: 0 for f in specs if f.kind == "predict"}
        for held in held_out(n_frames):
            frame = _square(held.degraded, checkpoint.model)
            wanted, found = reference.run_raw(names, frame[None]), dict[str, NDArray[np.float32]]()
            for task in tasks:  # as they are called for frames: restore and predict of a task together
                found |= session.run_raw(tuple(f.name for f in specs if f.task == task), frame[None])
            for spec in specs:
                for output in spec.outputs:
                    want = wanted[output.name]
                    figure = psnr_db(found[output.name], want, peak_of(spec.kind, want))
                    worst[spec.name] = min(worst[spec.name], figure)
            for task in agreed:
                agreed[task] += same_answer(session.predict(held.degraded, task), reference.predict(held.degraded, task))
        agreement = {task: count / n_frames for task, count in agreed.items()}
        asked = session.bundle.manifest.parity
        faults = asked.shortfalls(worst)
        least = MIN_AGREEMENT[session.bundle.manifest.precision]
        faults += [f"{task} answers agree on {share:.1%}" for task, share in agreement.items() if share < least]
        chosen = session.report.chosen
        return Parity(
            status="failed" if faults else "passed",
            floor_db=asked.floor_db,
            answer_floor_db=asked.answer_floor_db,
            psnr_db={name: round(float(figure), 2) for name, figure in worst.items()},
            agreement=agreement,
            n_frames=n_frames,
            device=None if chosen is None else chosen.effective_device,
            effective_precision=session.precision,
            reason="; ".join(faults) or None,
        )


def _asked(folder: Path) -> Parity:
    return parse_manifest((folder / MANIFEST).read_bytes()).parity
