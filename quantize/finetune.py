"""Fine-tuning after a model was changed: against the labels of every task, the clean frames, and its teacher's tokens."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tasktok_edge.data.cache import CacheSpec
from tasktok_edge.data.dataset import to_unit
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.train.loop import Batch, Group, Progress, cached, run_stage
from tasktok_edge.train.losses import task_loss
from tasktok_edge.train.machine import accelerator_for

Scope = Literal["refiner", "pipeline"]


class FinetuneRecipe(BaseModel):
    """The numbers of one fine-tuning. Frames are scenes of the split `train` under Mix-B."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 7777
    frames: int = Field(default=24000, ge=2)
    versions: int = Field(default=2, ge=1)
    steps: int = Field(ge=1)
    batch: int = Field(default=24, ge=2)
    learning_rate: float = 5e-4  # of all but the task networks
    task_net_rate: float = 1e-3
    weight_decay: float = 1e-2
    warm_up: int = 50
    token_weight: float = 0.5
    pixel_weight: float = 0.5
    probe_batches: int = Field(default=48, ge=1)  # of 16 frames, for the importance of units
    task_draw: dict[str, float] = {"cls": 1.0, "seg": 1.0, "det": 1.5}


@dataclass(frozen=True)
class Bench:
    """What fine-tuning needs beside models: frames and machine."""

    folder: Path
    recipe: FinetuneRecipe
    accelerator: Accelerator
    arrays: Mapping[str, NDArray[np.generic]]


def prepare(
    recipe: FinetuneRecipe, folder: Path, *, size: int, cache: Path | None = None, workers: int = 2
) -> Generator[Progress, None, Bench]:
    """Seed, and open or build the cache of frames of side `size`; yields progress and returns the `Bench`."""
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = accelerator_for("bf16", "bf16")
    set_seed(recipe.seed)
    spec = CacheSpec("train", recipe.frames, size, recipe.versions)
    arrays = yield from cached(cache or folder / "cache", spec, accelerator, workers=workers)
    return Bench(folder, recipe, accelerator, arrays)


def finetune(
    bench: Bench,
    student: TaskTok,
    teacher: TaskTok,
    *,
    name: str,
    scope: Scope = "pipeline",
    before_step: Callable[[int], None] = lambda _: None,
    after_step: Callable[[int], None] = lambda _: None,
) -> Iterator[Progress]:
    """Tune `student` in place; a run that was stopped goes on from `folder/<name>.pt`. Token switches never move.

    `scope` "refiner" leaves every other part as it is. `teacher` gives the tokens to come near to. `before_step(i)` and
    `after_step(i)` are called around step i, for what changes with the steps.
    """
    recipe, accelerator = bench.recipe, bench.accelerator
    student, teacher = student.to(accelerator.device), teacher.to(accelerator.device)
    teacher.eval().requires_grad_(False)
    student.requires_grad_(False)
    tasks = [task for task in student.config.tasks if task in student.task_nets]
    share = np.array([recipe.task_draw.get(task, 1.0) for task in tasks])
    share /= share.sum()
    groups = _groups(student, recipe, scope, dict(zip(tasks, share, strict=True)))

    def step(i: int, batch: Batch) -> dict[str, Tensor]:
        task = str(np.random.default_rng([recipe.seed, *name.encode(), i]).choice(tasks, p=share))
        net = student.task_net(task)
        student.train(scope == "pipeline").refiner.train()
        before_step(i)
        clean, degraded = to_unit(batch["clean"]), to_unit(batch["degraded"])
        with accelerator.autocast():
            with torch.no_grad():
                z_wanted = teacher.encode(degraded)
                refined_wanted = teacher.refiner(z_wanted)
            losses, seen = restoration_losses(student, task, degraded, clean, z_wanted, refined_wanted)
            losses[task] = task_loss(net, student.config.tasks[task].kind, net.features(seen), batch)
            loss = recipe.token_weight * losses["tokens"] + recipe.pixel_weight * losses["pixels"] + losses[task]
        accelerator.backward(loss)
        nn.utils.clip_grad_norm_(groups["front"].parameters, 1.0)
        groups["front"].update(accelerator)
        if task in groups:
            groups[task].update(accelerator)
        after_step(i)
        return {key: value.detach() for key, value in losses.items()}

    yield from run_stage(
        name, bench.folder, accelerator=accelerator, arrays=bench.arrays, modules={"student": student}, groups=groups,
        steps=recipe.steps, batch=recipe.batch, seed=recipe.seed + sum(name.encode()), step=step,
    )  # fmt: skip
    student.eval().requires_grad_(False)


def restoration_losses(
    student: TaskTok, task: str, degraded: Tensor, clean: Tensor, z_wanted: Tensor, refined_wanted: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """How far the student's tokens and frame (B, 3, S, S) are from those wanted, and what its task network is given.

    Of its refined tokens all are compared at level `exact`; at the others only the task's own are there.
    """
    z = student.encode(degraded)
    if student.config.level == "exact":
        refined = student.refiner(z)
        mixed = student.switch(z, refined, task)
    else:
        chosen = student.switch.selected(task)
        mixed = student.replace_selected(z, task)
        refined, refined_wanted = mixed[:, chosen], refined_wanted[:, chosen]
    restored, seen = student.shown(mixed, task)
    tokens = F.l1_loss(z.float(), z_wanted.float()) + F.l1_loss(refined.float(), refined_wanted.float())
    return {"tokens": tokens, "pixels": F.l1_loss(restored.float(), clean)}, seen


def _groups(student: TaskTok, recipe: FinetuneRecipe, scope: Scope, share: Mapping[str, float]) -> dict[str, Group]:
    parts = [student.refiner] if scope == "refiner" else [student.prerestorer, student.tokenizer, student.refiner]
    front = _learning(parts)
    groups = {"front": Group(front, recipe.learning_rate, recipe.steps, recipe.weight_decay, recipe.warm_up)}
    if scope == "pipeline":
        for task, part in share.items():
            own = _learning([student.task_nets[task]])
            groups[task] = Group(own, recipe.task_net_rate, int(recipe.steps * part) + 1, recipe.weight_decay, recipe.warm_up)
    return groups


def _learning(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [p for module in modules for p in module.requires_grad_().parameters()]
