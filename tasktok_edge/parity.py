"""Does the artifact answer as the PyTorch model does? Measured through the shim, recorded in the bundle."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Parity, replace_parity
from tasktok_edge.contestants import judging_device
from tasktok_edge.data.heldout import held_out
from tasktok_edge.errors import DeviceError, PackageError, UsageError
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
from tasktok_edge.runtimes import Answer, Session, load
from tasktok_edge.runtimes.selection import peak_of, psnr_db
from tasktok_edge.staging import stage

PARITY_FRAMES = 16
LARGE_MACS = 10_000_000_000  # multiply-adds from which a frame takes seconds: one golden frame then, and fewer for parity
LARGE_PARITY_FRAMES = 2
# Share of frames with the same answer. In int8 the last digit of a sum in floating point moves a code to its neighbour now and
# then, every layer behind carries that on, and the border of a mask moves.
MIN_AGREEMENT: dict[str, float] = {"fp32": 0.995, "fp16": 0.995, "int8": 0.9}
# Core ML's int8 programs have fp16 between the layers, which keeps a large code's value to an eighth of a code: more of them
# move than where 32 bits lie between. 74 % of masks were the same to 99.5 % of their pixels (99.6 % of all pixels were), and
# 96 % or more of labels and boxes; accuracy was PyTorch's.
MIN_AGREEMENT_COREML_INT8 = 0.6


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
    budgets: tuple[int, ...] = (),
    options: Mapping[str, str] | None = None,
    overwrite: bool = False,
    say: Say = lambda _: None,
) -> Exported:
    """Build a bundle, run it through the shim where it can run here, and record what was found; nothing half-written stays.

    With `budgets` it also has functions that replace so many tokens. Raises UsageError for more than the model has.
    `options` are the target's own.
    """
    n_tokens = checkpoint.model.config.tokenizer.tokens
    if any(not 1 <= n <= n_tokens for n in budgets):
        raise UsageError(f"a budget is from 1 to the model's {n_tokens} tokens, not {', '.join(map(str, budgets))}")
    with stage(out, overwrite=overwrite) as folder:
        say("golden frames")
        model = checkpoint.model
        large = sum(part.exported for part in count(model.config, {})) > LARGE_MACS
        golden = np.stack([_square(h.degraded, model) for h in held_out(1 if large else GOLDEN_FRAMES)])
        answers = golden_answers(model, model_functions(model.config, tasks, budgets), golden)
        start = time.perf_counter()
        with measured() as peak:
            write_bundle(
                folder,
                checkpoint,
                target,
                tasks=tasks,
                budgets=budgets,
                precision=precision,
                frames=golden,
                answers=answers,
                options=options,
                say=say,
            )
        seconds = time.perf_counter() - start
        n_frames = LARGE_PARITY_FRAMES if large else PARITY_FRAMES
        say(f"parity on {n_frames} held-out frames")
        manifest = replace_parity(folder, measure_parity(folder, checkpoint, n_frames=n_frames))
    total = sum(entry.bytes for entry in manifest.files.values())
    return Exported(out, manifest, total, seconds, peak.bytes)


def _square(frame: NDArray[np.uint8], model: TaskTok) -> NDArray[np.uint8]:
    """The first window of a frame, as the function takes it."""
    size = model.config.image_size
    return crop_resize(frame, windows(*frame.shape[:2])[0], size, model.config.resize)


def measure_parity(folder: Path, checkpoint: Checkpoint, *, n_frames: int = PARITY_FRAMES) -> Parity:
    """Compare every function with the full model in PyTorch on held-out degraded frames."""
    manifest = parse_manifest((folder / MANIFEST).read_bytes())
    asked, model = manifest.parity, checkpoint.model
    frames = [held.degraded for held in held_out(n_frames)]
    figures: dict[str, float] = {}
    agreement: dict[str, float] = {}
    try:
        for tokens in (None, *manifest.budgets):
            with load(folder, judging_device(folder), proof="measured", tokens=tokens) as session:
                found, agreed = _compared(session, Reference(model), frames)
                figures |= found
                agreement = {task: min(agreement.get(task, 1.0), share) for task, share in agreed.items()}
                device, precision = session.report.chosen, session.precision
    except (DeviceError, PackageError) as reason:
        return asked.model_copy(update={"reason": str(reason)})
    faults = asked.shortfalls(figures)
    least = least_agreement(manifest)
    faults += [f"{task} answers agree on {share:.1%}" for task, share in agreement.items() if share < least]
    return Parity(
        status="failed" if faults else "passed",
        floor_db=asked.floor_db,
        answer_floor_db=asked.answer_floor_db,
        psnr_db={name: round(figure, 2) for name, figure in figures.items()},
        agreement=agreement,
        n_frames=n_frames,
        device=None if device is None else device.effective_device,
        effective_precision=precision,
        reason="; ".join(faults) or None,
    )


def least_agreement(manifest: Manifest) -> float:
    """The share of frames whose answer must be PyTorch's."""
    if (manifest.target, manifest.precision) == ("coreml", "int8"):
        return MIN_AGREEMENT_COREML_INT8
    return MIN_AGREEMENT[manifest.precision]


def _same(session: Session, frame: NDArray[np.uint8], task: str, wanted: Answer) -> bool:
    try:
        return same_answer(session.predict(frame, task), wanted)
    except DeviceError:  # NaN or infinity, whose PSNR tells the rest
        return False


def _compared(
    session: Session, reference: Reference, frames: Sequence[NDArray[np.uint8]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Give the worst PSNR in dB of every function of a session, and by task the share of frames with the same answer."""
    specs, tokens = session.bundle.manifest.functions, session.tokens
    worst = {spec.name: np.inf for spec in specs}
    agreed = {spec.task: 0 for spec in specs if spec.kind == "predict"}
    for whole in frames:
        frame = _square(whole, reference.model)
        wanted, found = reference.run_raw(tuple(worst), frame[None]), dict[str, NDArray[np.float32]]()
        for task in session.tasks:  # as they are called for frames: restore and predict of a task together
            found |= session.run_raw(tuple(f.name for f in specs if f.task == task), frame[None])
        for spec in specs:
            for output in spec.outputs:
                want = wanted[output.name]
                worst[spec.name] = min(worst[spec.name], psnr_db(found[output.name], want, peak_of(spec.kind, want)))
        for task in agreed:
            agreed[task] += _same(session, whole, task, reference.predict(whole, task, tokens))
    return {name: float(figure) for name, figure in worst.items()}, {t: n / len(frames) for t, n in agreed.items()}
