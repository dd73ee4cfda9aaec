"""The batches of TaskTok's joint training: one task a step, its samples, and the processes that share them.

What a step sees depends on the seed and the step alone: not on the workers, the processes or where a run was resumed.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tasktok_edge.data.official import ORDER_STREAM, TASK_STREAM, TASKS, Draw, Sample, Task, TaskDataset, Training
from tasktok_edge.errors import UsageError, unknown_word

Batch = dict[str, Tensor | list[Tensor]]
TASK_WEIGHTS: Mapping[str, float] = {"cls": 2.0, "det": 1.0, "seg": 1.0}
BATCH: Mapping[str, int] = {"cls": 16, "det": 8, "seg": 8}  # of all processes together
LISTS = ("boxes", "box_labels")  # as many as a picture has, so no tensor holds a batch of them
_Key = tuple[int, Draw]  # which data set, which sample
_BLOCK = 4096  # steps whose tasks are drawn at once


class Step(NamedTuple):
    """What a process gets of one step; `batch` holds its share of the samples, `LISTS` as lists."""

    number: int
    task: Task
    batch: Batch


class Plan:
    """Which task and which samples each step sees, a function of (seed, step).

    Tasks are drawn independently with `weights`. Each data set is gone through in a new random order every epoch, by the steps
    of its task alone.
    """

    def __init__(
        self,
        lengths: Mapping[Task, int],
        *,
        seed: int,
        batch: Mapping[str, int] = BATCH,
        weights: Mapping[str, float] = TASK_WEIGHTS,
    ) -> None:
        if not lengths:
            raise UsageError(f"no task to train: give data for at least one of {', '.join(TASKS)}")
        for task in lengths:
            if task not in TASKS:
                raise unknown_word("task", task, TASKS)
            if not lengths[task] or batch.get(task, 0) < 1 or not weights.get(task, 0) > 0:
                raise UsageError(
                    f"task {task} has {lengths[task]} samples, batch {batch.get(task)} and weight {weights.get(task)}: "
                    "each must be more than 0; leave the task out if it is not wanted"
                )
        self.tasks = tuple(task for task in TASKS if task in lengths)  # the caller's order must not matter
        self.lengths, self.seed, self.batch = lengths, seed, batch
        shares = np.array([weights[task] for task in self.tasks])
        self._shares = shares / shares.sum()
        self._blocks: list[NDArray[np.int64]] = []
        self._before = [np.zeros(len(self.tasks), np.int64)]  # a block: how many steps each task had until then

    def task(self, step: int) -> tuple[Task, int]:
        """Give the task of `step`, and how many earlier steps had the same one."""
        block, place = divmod(step, _BLOCK)
        while len(self._blocks) <= block:
            rng = np.random.default_rng([TASK_STREAM, self.seed, len(self._blocks)])
            self._blocks.append(rng.choice(len(self.tasks), _BLOCK, p=self._shares))
            self._before.append(self._before[-1] + np.bincount(self._blocks[-1], minlength=len(self.tasks)))
        drawn = self._blocks[block]
        earlier = self._before[block][drawn[place]] + np.count_nonzero(drawn[:place] == drawn[place])
        return self.tasks[drawn[place]], int(earlier)

    def draws(self, step: int) -> list[Draw]:
        """Give the samples of `step`, for all processes together."""
        task, earlier = self.task(step)
        first, n = earlier * self.batch[task], self.lengths[task]
        places = (divmod(p, n) for p in range(first, first + self.batch[task]))
        return [Draw(int(_order(self.seed, task, epoch, n)[place]), epoch) for epoch, place in places]


@lru_cache(maxsize=6)  # three tasks, and a batch may end one epoch and begin the next
def _order(seed: int, task: Task, epoch: int, n: int) -> NDArray[np.int64]:
    return np.random.default_rng([ORDER_STREAM, seed, TASKS.index(task), epoch]).permutation(n)


def training_batches(
    datasets: Mapping[Task, TaskDataset],
    plan: Plan,
    *,
    start: int = 0,
    steps: int | None = None,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Step]:
    """Yield steps `start` to `steps`, without end if None; process r of n gets samples r, r + n, ... of each batch."""
    for task in plan.tasks:
        if plan.batch[task] % processes:
            raise UsageError(
                f"a batch of {plan.batch[task]} for {task} cannot be shared by {processes} processes: make it a multiple"
            )
        if task not in datasets or len(datasets[task]) != plan.lengths[task]:
            raise UsageError(f"the plan wants {plan.lengths[task]} samples of {task}: make it from the same data sets")
        if not isinstance(datasets[task].source, Training):
            raise UsageError(f"the data of {task} are for evaluation: open them with Training()")
    numbers = range(start, steps) if steps is not None else count(start)
    keys = ([(plan.tasks.index(plan.task(i)[0]), draw) for draw in plan.draws(i)[process::processes]] for i in numbers)
    batches = _load([datasets[task] for task in plan.tasks], keys, workers=workers, pin_memory=pin_memory)
    return (Step(i, plan.task(i)[0], batch) for i, batch in enumerate(batches, start))


def evaluation_batches(
    dataset: TaskDataset,
    *,
    batch: int = 1,
    limit: int | None = None,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield the first `limit` samples in order, or all; process r of n gets samples r, r + n, ...

    The last batch may be smaller. Pictures of segmentation keep their shape, so their batch is 1.
    """
    indices = range(len(dataset) if limit is None else min(limit, len(dataset)))[process::processes]
    keys = ([(0, Draw(i)) for i in indices[first : first + batch]] for first in range(0, len(indices), batch))
    return _load([dataset], keys, workers=workers, pin_memory=pin_memory)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack the samples of a task; boxes and their labels, of which each picture has its own number, become lists."""
    shapes = {tuple(sample["clean"].shape) for sample in samples}
    if len(shapes) > 1:
        raise UsageError(f"pictures of one batch have the shapes {sorted(shapes)}: evaluate segmentation with a batch of 1")
    values = {key: [sample[key] for sample in samples] for key in samples[0]}
    return {key: value if key in LISTS else torch.stack(value) for key, value in values.items()}


class _Fetcher(Dataset[Sample | UsageError]):
    """What the workers read. Faults come back as values: raised there, they would arrive wrapped in a worker's traceback."""

    def __init__(self, datasets: Sequence[TaskDataset]) -> None:
        self.datasets = datasets

    def __getitem__(self, key: _Key) -> Sample | UsageError:
        dataset, draw = key
        try:
            return self.datasets[dataset][draw]
        except UsageError as fault:
            return fault


def _collate(samples: list[Sample | UsageError]) -> Batch | UsageError:
    good = [sample for sample in samples if not isinstance(sample, UsageError)]
    try:
        return collate(good) if len(good) == len(samples) else next(s for s in samples if isinstance(s, UsageError))
    except UsageError as fault:
        return fault


def _load(
    datasets: Sequence[TaskDataset], keys: Iterable[list[_Key]], *, workers: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    fault: UsageError | None = None

    def until_fault() -> Iterator[list[_Key]]:
        for key in keys:
            if fault is not None:
                return
            yield key

    loader: DataLoader[Batch | UsageError] = DataLoader(
        _Fetcher(datasets),  # type: ignore[arg-type]
        batch_sampler=until_fault(),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
        # spawn: a fork of a process whose engines hold threads waits for ever on their locks
        multiprocessing_context="spawn" if workers else None,
        generator=torch.Generator(),  # else every loader takes a number from torch's global one, and a resumed run differs
    )
    for batch in loader:
        # After a fault, what the workers had begun is waited for: one that is stopped while it sends a tensor aborts, loudly.
        if isinstance(batch, UsageError):
            fault = fault or batch
        elif fault is None:
            yield batch
    if fault is not None:
        raise fault


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)  # as many workers as cores: more threads would only wait for each other
