"""Server and device on the same held-out frames: how well each does every task, and how much was won back."""

import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasktok_edge.bundle import read_bundle
from tasktok_edge.data.heldout import HeldOut, held_out
from tasktok_edge.errors import UsageError
from tasktok_edge.metrics import METRIC_NAMES, same_answer, score
from tasktok_edge.model.checkpoint import SHIPPED, load_checkpoint, load_oracles
from tasktok_edge.model.config import preset
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.progress import Doing
from tasktok_edge.reference import Reference, oracle_answer
from tasktok_edge.runtimes import load
from tasktok_edge.runtimes.answers import Answer

Predict = Callable[[NDArray[np.uint8], str], Answer]
Answers = dict[str, list[Answer]]


@dataclass(frozen=True)
class Scores:
    """One column of the table: a measure in [0, 1] for each task, over `n` frames."""

    name: str
    values: Mapping[str, float]
    n: int


@dataclass
class Judgement:
    """All columns, on the same `n` frames. `device` and `agreement` are by bundle name."""

    tasks: tuple[str, ...]
    metrics: dict[str, str]  # task -> what it is measured by
    n: int
    clean: Scores | None = None  # task networks of clean frames, on clean frames
    degraded: Scores | None = None  # the same networks, on degraded frames
    server: Scores | None = None
    others: dict[str, Scores] = field(default_factory=dict)  # further models in PyTorch
    device: dict[str, Scores] = field(default_factory=dict)
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)  # with the model named in `judge`

    @property
    def worst_drop(self) -> float:
        """The largest loss of any bundle and task against the server, in [-1, 1]."""
        assert self.server is not None
        server = self.server.values
        return max(server[task] - found.values[task] for found in self.device.values() for task in found.values)


def judge(
    bundles: Sequence[Path],
    *,
    server: str,
    n: int,
    degradation: str = "mix-b",
    severity: int = 3,
    device: str = "auto",
    threads: int | None = None,
    tokens: int | None = None,
    same_as: str | None = None,
) -> Iterator[Doing | Judgement]:
    """Run clean, degraded, server and every bundle on the same frames; yields what is being done, the `Judgement` last.

    `same_as` names the checkpoint that the bundles were made of: its PyTorch answers are compared with theirs, one by one.
    """
    teacher = load_checkpoint(server)
    check_answers_scenes(teacher.model)
    oracles = load_oracles(server)
    tasks = tuple(teacher.model.config.tasks)
    held: list[HeldOut] = []
    for scene in held_out(n, degradation=degradation, severity=severity):
        held.append(scene)
        yield Doing("held-out frames", len(held), n)
    clean, degraded = [h.truth.image for h in held], [h.degraded for h in held]
    found = Judgement(tasks, {task: metric_name(teacher.model, task) for task in tasks}, n)
    oracle, original = without_restoration(oracles, teacher.model), Reference(teacher.model)

    answers = yield from ask("clean frames", oracle, clean, tasks)
    found.clean = rate("clean", answers, held)
    answers = yield from ask("degraded frames", oracle, degraded, tasks)
    found.degraded = rate("degraded", answers, held)
    wanted = yield from ask("server model", original.predict, degraded, tasks)
    found.server = rate("server", wanted, held)
    if same_as is not None and load_checkpoint(same_as).sha256 != teacher.sha256:
        student = load_checkpoint(same_as).model
        wanted = yield from ask(f"{student.config.preset} in PyTorch", Reference(student).predict, degraded, tasks)
        found.others[student.config.preset] = rate(student.config.preset, wanted, held)
    for bundle in bundles:
        where = judging_device(bundle) if device == "auto" else device
        with load(bundle, where, proof="measured", threads=threads, tokens=tokens) as session:
            name = session.bundle.manifest.name
            answers = yield from ask(f"{name} on {session.device.native}", session.predict, degraded, session.tasks)
            found.device[name] = rate(name, answers, held)
            if same_as is not None:
                found.agreement[name] = agreement(answers, wanted)
    yield found


def judging_device(bundle: Path) -> str:
    """What a bundle is judged on here: the best device, or off macOS the reference evaluator of Core ML's programs."""
    if sys.platform == "darwin":
        return "auto"
    with read_bundle(bundle) as read:
        return "reference" if read.manifest.target == "coreml" else "auto"


def check_answers_scenes(model: TaskTok) -> None:
    """Refuse a model of other labels: the held-out frames are scenes."""
    known = preset(SHIPPED[0]).tasks
    if any(task not in known or c.labels != known[task].labels for task, c in model.config.tasks.items()):
        raise UsageError(
            f"{model.config.preset} does not answer the scenes' labels, and the held-out frames are scenes: give a checkpoint "
            f"that was trained on them, such as {' or '.join(SHIPPED)}"
        )


def ask(
    what: str, predict: Predict, frames: Sequence[NDArray[np.uint8]], tasks: Sequence[str]
) -> Generator[Doing, None, Answers]:
    """Put every frame to `predict` for every task; returns the answers by task."""
    answers: Answers = {task: [] for task in tasks}
    for i, frame in enumerate(frames, 1):
        for task in tasks:
            answers[task].append(predict(frame, task))
        yield Doing(what, i, len(frames))
    return answers


def rate(name: str, answers: Answers, held: Sequence[HeldOut]) -> Scores:
    """Score answers by each task's own metric."""
    truth = [h.truth for h in held]
    return Scores(name, {task: score(found, truth) for task, found in answers.items()}, len(held))


def without_restoration(oracles: nn.ModuleDict, model: TaskTok) -> Predict:
    """The task networks of clean frames, alone: what clean and degraded frames are judged by."""
    config = model.config
    return lambda frame, task: oracle_answer(
        oracles[task], frame, task, config.tasks[task], config.image_size, resize=config.resize
    )


def won_back(clean: float, degraded: float, restored: float) -> float:
    """Share of what degradation took that restoration gives back: (restored - degraded) / (clean - degraded).

    >>> round(won_back(0.9, 0.5, 0.8), 6)
    0.75
    """
    lost = clean - degraded
    return (restored - degraded) / lost if lost > 0 else float("nan")


def agreement(a: Answers, b: Answers) -> dict[str, float]:
    """Share of frames with the same answer, by task."""
    return {task: float(np.mean([same_answer(x, y) for x, y in zip(a[task], b[task], strict=True)])) for task in a}


def metric_name(model: TaskTok, task: str) -> str:
    """What the task is measured by."""
    return METRIC_NAMES[model.config.tasks[task].kind]


if __name__ == "__main__":  # python -m tasktok_edge.validate
    from tasktok_edge.cli import verb

    verb("validate")()
