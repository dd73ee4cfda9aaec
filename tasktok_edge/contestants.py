"""Who answers: the server in PyTorch, task networks without restoration, bundles on a device, or what a device recorded."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tasktok_edge.bundle import read_bundle
from tasktok_edge.data.sources import Item
from tasktok_edge.errors import UsageError
from tasktok_edge.model.checkpoint import Checkpoint, has_oracles, load_oracles
from tasktok_edge.recording import Found, Frame, Recording, everything, frame_sha256
from tasktok_edge.reference import Reference
from tasktok_edge.runtimes import Session, load
from tasktok_edge.runtimes.answers import Answer
from tasktok_edge.scores import without_restoration


@dataclass(frozen=True)
class Contestant:
    """Answers items; `is_device` for what is judged, with what is known of it."""

    name: str
    tasks: tuple[str, ...]
    answer: Callable[[Item, Sequence[str]], Found]
    is_device: bool = False
    known: Mapping[str, str] = field(default_factory=dict)  # sha256, engine, device, precision
    selected: Mapping[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)  # task -> (tokens, those replaced)


def judging_device(bundle: Path) -> str:
    """What a bundle is judged on here: the best device, or off macOS the reference evaluator of Core ML's programs."""
    if sys.platform == "darwin":
        return "auto"
    with read_bundle(bundle) as read:
        return "reference" if read.manifest.target == "coreml" else "auto"


def server(name: str, checkpoint: Checkpoint) -> Contestant:
    """A model in PyTorch, as it was trained."""
    reference = Reference(checkpoint.model)
    answering = tuple(t for t in reference.tasks if t in checkpoint.model.task_nets)

    def answer(item: Item, tasks: Sequence[str]) -> Found:
        found: dict[str, tuple[Frame | None, Answer | None]] = {
            task: (result.frame, result.answer)
            for task, result in reference(item.frame, [t for t in tasks if t in answering]).items()
        }
        return found | {t: (reference.restore(item.frame, t), None) for t in tasks if t not in answering}

    return Contestant(name, reference.tasks, answer)


def unrestored(checkpoint: Checkpoint) -> list[Contestant]:
    """The task networks of clean frames alone, on clean and on degraded ones; none where the checkpoint has none."""
    if not has_oracles(checkpoint.path):
        return []
    predict = without_restoration(load_oracles(checkpoint.path), checkpoint.model)
    tasks = tuple(t for t in checkpoint.model.config.tasks if t in checkpoint.model.task_nets)

    def clean(item: Item, asked: Sequence[str]) -> Found:
        return {} if item.clean is None else {t: (None, predict(item.clean, t)) for t in asked}

    def degraded(item: Item, asked: Sequence[str]) -> Found:
        return {t: (item.frame, predict(item.frame, t)) for t in asked}

    return [Contestant("clean", tasks, clean), Contestant("degraded", tasks, degraded)]


def on_device(
    bundle: Path, stack: ExitStack, *, device: str = "auto", threads: int | None = None, tokens: int | None = None
) -> Contestant:
    """A bundle on a device of this machine, even on one that answers wrongly: that is to be found out."""
    where = judging_device(bundle) if device == "auto" else device
    session: Session = stack.enter_context(load(bundle, where, proof="measured", threads=threads, tokens=tokens))
    manifest = session.bundle.manifest

    def answer(item: Item, tasks: Sequence[str]) -> Found:
        return everything(session, item.frame, tasks)

    known = {
        "sha256": session.bundle.sha256,
        "engine": f"{session.report.engine} {session.report.engine_version}",
        "device": session.device.native,
        "precision": session.precision,
    }
    selected = {t: (manifest.tasks[t].n_tokens, manifest.tasks[t].selected_tokens) for t in session.tasks}
    return Contestant(manifest.name, session.tasks, answer, True, known, selected)


def recorded(folder: Path) -> Contestant:
    """What a device recorded (`run --record`), for the frames that it saw."""
    recording = Recording(folder)

    def answer(item: Item, tasks: Sequence[str]) -> Found:
        found = recording.read(recording.places[frame_sha256(item.frame)])[1]
        return {task: found[task] for task in tasks}

    known = {key: value for key, value in recording.head.items() if key != "name"}
    return Contestant(f"{recording.head['name']}, recorded", recording.tasks, answer, True, known)


def check_labels(labels: Mapping[str, int], checkpoint: Checkpoint) -> None:
    """Refuse data whose labels are not as many as the model's."""
    for task, n in labels.items():
        known = checkpoint.model.config
        if task in checkpoint.model.task_nets and len(known.tasks[task].labels) != n:
            told = f"the data has {n} labels for {task}, {known.preset} answers {len(known.tasks[task].labels)}"
            raise UsageError(
                f"{told}: give the checkpoint that was trained on such data, or pictures without labels, whose answers are "
                "compared alone"
            )
