"""The verb `greedy`: token orders of a model by each task's metric, on frames that are degraded once."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tasktok_edge.data.cache import CacheSpec
from tasktok_edge.data.dataset import SceneDataset, to_unit
from tasktok_edge.data.official import TASKS, Draw, Task, TaskDataset
from tasktok_edge.data.steps import Batch, collate
from tasktok_edge.model.task_nets import TaskNet
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.train.evaluate import tally
from tasktok_edge.train.loop import Progress, cached
from tasktok_edge.train.search import Order, deadline, search

BATCH = 8


@dataclass
class Orders:
    """What was found, by task."""

    found: dict[str, Order] = field(default_factory=dict)


def official_frames(data: TaskDataset, task: Task, *, n: int, seed: int, accelerator: Accelerator) -> list[Batch]:
    """This process' share of `n` training samples, drawn by the seed; less where there are less."""
    rows = np.random.default_rng([seed, TASKS.index(task)]).permutation(len(data))[:n]
    own = rows[accelerator.process_index :: accelerator.num_processes]
    return [collate([data[Draw(int(i))] for i in own[first : first + BATCH]]) for first in range(0, len(own), BATCH)]


def scene_frames(
    folder: Path, *, n: int, size: int, degradation: str, accelerator: Accelerator, workers: int
) -> Iterator[Progress | list[Batch]]:
    """This process' share of the first `n` scenes of the split `train`, kept in `folder`; the batches come last."""
    spec = CacheSpec("train", n, size, degradation=degradation)
    arrays = yield from cached(folder, spec, accelerator, workers=workers)
    data = SceneDataset(arrays)
    rows = range(accelerator.process_index, n, accelerator.num_processes)
    batches: list[Batch] = []
    for first in range(0, len(rows), BATCH):
        samples = [data[i, 0, False] for i in rows[first : first + BATCH]]
        batch: Batch = {key: torch.stack([s[key] for s in samples]) for key in samples[0]}
        for key in ("clean", "degraded"):
            batch[key] = to_unit(cast(Tensor, batch[key]))
        batches.append(batch)
    yield batches


@torch.no_grad()
def find_orders(
    model: TaskTok,
    oracles: nn.ModuleDict,
    frames: Mapping[str, list[Batch]],
    *,
    accelerator: Accelerator,
    rounds: int | None = None,
    budget_s: float | None = None,
) -> Iterator[Progress | Orders]:
    """Search the order of every task, within `rounds` and `budget_s` seconds for all of them; the `Orders` come last.

    Judged by the networks of clean images, and without the pre-restorer, as TaskTok does.
    """
    model.eval()
    orders, ends = Orders(), None if budget_s is None else time.monotonic() + budget_s
    for i, (task, batches) in enumerate(frames.items()):
        # What is left is shared evenly, so that the last task has as good an order as the first.
        over = deadline(None if ends is None else (ends - time.monotonic()) / (len(frames) - i), accelerator)
        clean, degraded = (_tokens(model, [cast(Tensor, batch[key]) for batch in batches]) for key in ("clean", "degraded"))

        def score(tokens: Tensor, task: str = task, batches: list[Batch] = batches) -> float:
            counts = tally(model.config.tasks[task])
            for i, batch in enumerate(batches):
                part = tokens[i * BATCH : (i + 1) * BATCH]
                counts.add(cast(TaskNet, oracles[task]), model.decode(part), _on(batch, accelerator.device))
            return counts.value(accelerator)

        for step in search(score, clean, degraded, name=f"order-{task}", rounds=rounds, stop=over):
            if isinstance(step, Order):
                orders.found[task] = step
            else:
                yield step
    yield orders


def _tokens(model: TaskTok, images: list[Tensor]) -> Tensor:
    device = model.switch.logits[next(iter(model.config.tasks))].device
    return torch.cat([model.tokens(image.to(device)) for image in images])


def _on(batch: Batch, device: torch.device) -> Batch:
    labels = {key: value for key, value in batch.items() if key not in ("clean", "degraded")}
    return {k: [v.to(device) for v in value] if isinstance(value, list) else value.to(device) for k, value in labels.items()}
