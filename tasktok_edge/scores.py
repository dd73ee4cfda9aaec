"""How well models in PyTorch do every task on held-out scenes, and how much of what degradation took is won back."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasktok_edge.data.heldout import HeldOut
from tasktok_edge.errors import UsageError
from tasktok_edge.metrics import score
from tasktok_edge.model.checkpoint import SHIPPED
from tasktok_edge.model.config import preset
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.progress import Doing
from tasktok_edge.reference import oracle_answer
from tasktok_edge.runtimes.answers import Answer

Predict = Callable[[NDArray[np.uint8], str], Answer]
Answers = dict[str, list[Answer]]


@dataclass(frozen=True)
class Scores:
    """One column of the table: a measure in [0, 1] for each task, over `n` frames."""

    name: str
    values: Mapping[str, float]
    n: int


def answers_scenes(model: TaskTok) -> bool:
    """Whether a model has networks for the scenes' tasks, with the scenes' labels."""
    return _has_their_labels(model) and all(task in model.task_nets for task in model.config.tasks)


def check_answers_scenes(model: TaskTok) -> None:
    """Refuse a model of other labels: the held-out frames are scenes."""
    if not _has_their_labels(model):
        raise UsageError(
            f"{model.config.preset} does not answer the scenes' labels, and the held-out frames are scenes: give a checkpoint "
            f"that was trained on them, such as {' or '.join(SHIPPED)}"
        )


def _has_their_labels(model: TaskTok) -> bool:
    known = preset(SHIPPED[0]).tasks
    return all(task in known and part.labels == known[task].labels for task, part in model.config.tasks.items())


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
