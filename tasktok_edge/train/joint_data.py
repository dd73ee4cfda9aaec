"""The data of TaskTok's own training: what each task learns from, and what it is validated on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasktok_edge.data.folders import VOC_CLASSES
from tasktok_edge.data.geometry import OFFICIAL, Sizes
from tasktok_edge.data.official import (
    TASKS,
    ClsDataset,
    Evaluation,
    Paired,
    Source,
    Task,
    TaskDataset,
    Training,
    open_dataset,
)
from tasktok_edge.errors import UsageError, unknown_word
from tasktok_edge.model.config import TaskTokConfig

N_LABELS = {"det": len(VOC_CLASSES), "seg": len(VOC_CLASSES) + 1}  # the background is a label of segmentation alone


@dataclass(frozen=True)
class JointData:
    """Data sets by task."""

    training: Mapping[Task, TaskDataset]
    validation: Mapping[Task, TaskDataset]


def sizes_of(config: TaskTokConfig) -> Sizes:
    """The geometry for a model: the official one, or in its proportions."""
    return OFFICIAL if config.image_size == OFFICIAL.image else Sizes.scaled(config.image_size)


def open_data(
    imagenet: Path, voc: Path, *, config: TaskTokConfig, seed: int, degradation: str, paired: Mapping[str, Path]
) -> JointData:
    """Open all six data sets; one UsageError tells everything that is wrong with them.

    Training is degraded on the fly; so is validation, or read from the folder of pairs that `paired` has for the task.
    """
    sizes, faults = sizes_of(config), list[str]()
    training, validation = dict[Task, TaskDataset](), dict[Task, TaskDataset]()
    for task in TASKS:
        root = imagenet if task == "cls" else voc
        held_out: Source = Paired(paired[task]) if task in paired else Evaluation(degradation=degradation)
        plans = ((training, Training(seed, degradation)), (validation, held_out))
        for chosen, source in plans:
            opened = _attempt(lambda t=task, r=root, s=source: open_dataset(t, r, s, sizes=sizes), faults)  # type: ignore[misc]
            if opened is not None:
                chosen[task] = opened
        if task in training:
            faults += _labels_fit(training[task], task, config)
    if faults:
        raise UsageError("; ".join(dict.fromkeys(faults)))
    return JointData(training, validation)


def _attempt(opening: Callable[[], TaskDataset], faults: list[str]) -> TaskDataset | None:
    try:
        return opening()
    except UsageError as fault:
        faults.append(str(fault))
        return None


def _labels_fit(data: TaskDataset, task: Task, config: TaskTokConfig) -> list[str]:
    """Labels are positions: a network of another number of labels would mean something else by each of them."""
    n = config.tasks[task].n_outputs
    there = len(data.pictures.classes) if isinstance(data, ClsDataset) else N_LABELS[task]
    where = f"{data.pictures.root} has" if isinstance(data, ClsDataset) else "VOC2012 has"
    if there == n:
        return []
    return [f"{where} {there} labels, the network for {task} answers {n}: give the data that it was trained for"]


def parse_pairs(words: Sequence[str]) -> dict[str, Path]:
    """Read --paired: TASK=DIR for one task, or DIR for a folder with one of cls, det and seg each.

    >>> parse_pairs(["cls=/data/val-mixb"])
    {'cls': PosixPath('/data/val-mixb')}
    """
    found: dict[str, Path] = {}
    for word in words:
        task, equals, folder = word.partition("=")
        if equals and "/" not in task:
            if task not in TASKS:
                raise unknown_word("task", task, TASKS)
            found[task] = Path(folder)
        else:
            found |= {task: Path(word) / task for task in TASKS}
    return found
