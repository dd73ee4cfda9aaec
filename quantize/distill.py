"""Distillation: a smaller model taught by the server's tokens, pixels and task features."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tasktok_edge.data.cache import CacheSpec
from tasktok_edge.data.dataset import to_unit
from tasktok_edge.errors import UsageError, unknown_word
from tasktok_edge.model.config import preset
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.quantize.start import start_from
from tasktok_edge.train.loop import Batch, Group, Progress, cached, run_stage
from tasktok_edge.train.losses import feature_loss, task_loss
from tasktok_edge.train.machine import accelerator_for

STEM_FRAMES = 64  # that stems of another shape are fitted on before the training


class DistillRecipe(BaseModel):
    """The numbers of one distillation. Frames are scenes of the split `train` under Mix-B."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 7777
    frames: int = Field(ge=2)
    versions: int = Field(ge=1)
    steps: int = Field(ge=1)
    batch: int = Field(ge=2)
    learning_rate: float = 5e-4
    task_net_rate: float = 3e-4
    weight_decay: float = 1e-2
    token_weight: float = 0.5
    pixel_weight: float = 1.0
    feature_weight: float = 1.0


RECIPES = {
    "scenes-edge": DistillRecipe(frames=16000, versions=2, steps=800, batch=24),
    "tiny": DistillRecipe(frames=16, versions=1, steps=2, batch=4),
}


@dataclass(frozen=True)
class Student:
    """The distilled model, in evaluation mode."""

    model: TaskTok


def distill_recipe(name: str) -> DistillRecipe:
    """Give the recipe of this name; UsageError lists what there is."""
    if name not in RECIPES:
        raise unknown_word("recipe", name, RECIPES)
    return RECIPES[name]


def distill(
    server: TaskTok, to_preset: str, recipe: DistillRecipe, folder: Path, *, workers: int = 2
) -> Iterator[Progress | Student]:
    """Teach `to_preset` from `server`; yields progress, and the `Student` last. A run that was stopped goes on.

    Tokens, labels and task networks must have the server's shapes: the student takes over its token switch and starts
    from those of its weights that fit.
    """
    config = preset(to_preset)
    _check_fits(server, config_of=to_preset)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = accelerator_for("bf16", "bf16")
    set_seed(recipe.seed)
    spec = CacheSpec("train", recipe.frames, config.image_size, recipe.versions)
    arrays = yield from cached(folder / "cache", spec, accelerator, workers=workers)
    student = TaskTok(config).to(accelerator.device)
    server = server.to(accelerator.device)
    clean = np.stack([arrays["clean"][i] for i in range(min(STEM_FRAMES, recipe.frames))])
    start_from(server, student, to_unit(torch.from_numpy(clean).permute(0, 3, 1, 2)).to(accelerator.device))
    tasks = list(config.tasks)
    front = [*student.prerestorer.parameters(), *student.tokenizer.parameters(), *student.refiner.parameters()]
    groups = {"front": Group(front, recipe.learning_rate, recipe.steps, recipe.weight_decay)}
    for task in tasks:
        own = recipe.steps // len(tasks) + 1
        groups[task] = Group(list(student.task_nets[task].parameters()), recipe.task_net_rate, own, recipe.weight_decay)

    def step(i: int, batch: Batch) -> dict[str, Tensor]:
        task = tasks[i % len(tasks)]
        kind, net, teacher_net = config.tasks[task].kind, student.task_net(task), server.task_net(task)
        clean, degraded = to_unit(batch["clean"]), to_unit(batch["degraded"])
        student.train()
        with accelerator.autocast():
            with torch.no_grad():
                z_wanted = server.encode(degraded)
                refined_wanted = server.refiner(z_wanted)
                wanted = server.decode(server.switch(z_wanted, refined_wanted, task)).float()
                features_wanted = teacher_net.features(wanted)
            z = student.encode(degraded)
            refined = student.refiner(z)
            restored = student.decode(student.switch(z, refined, task))
            tokens = F.l1_loss(z.float(), z_wanted.float()) + F.l1_loss(refined.float(), refined_wanted.float())
            # Half to what the server shows, half to the truth: where the server is wrong, the student need not be.
            pixels = 0.5 * (F.l1_loss(restored.float(), wanted) + F.l1_loss(restored.float(), clean))
            features = feature_loss(teacher_net.features(restored), features_wanted)
            answer = task_loss(net, kind, net.features(restored), batch)
            loss = recipe.token_weight * tokens + recipe.pixel_weight * pixels + recipe.feature_weight * features + answer
        accelerator.backward(loss)
        nn.utils.clip_grad_norm_(front, 1.0)
        groups["front"].update(accelerator)
        groups[task].update(accelerator)
        return {"tokens": tokens.detach(), "pixels": pixels.detach(), "features": features.detach(), task: answer.detach()}

    server.eval().requires_grad_(False)
    student.switch.requires_grad_(False)
    yield from run_stage(
        "distill", folder, accelerator=accelerator, arrays=arrays, modules={"student": student}, groups=groups,
        steps=recipe.steps, batch=recipe.batch, seed=recipe.seed, step=step,
    )  # fmt: skip
    yield Student(student.eval().requires_grad_(False))


def _check_fits(server: TaskTok, *, config_of: str) -> None:
    a, b = server.config, preset(config_of)
    faults = [
        f"{what} {left} against {right}"
        for what, left, right in (
            ("image size", a.image_size, b.image_size),
            ("tokens", a.tokenizer.tokens, b.tokenizer.tokens),
            ("token channels", a.tokenizer.channels, b.tokenizer.channels),
        )
        if left != right
    ]
    if {name: (t.kind, t.labels, t.net) for name, t in a.tasks.items()} != {
        n: (t.kind, t.labels, t.net) for n, t in b.tasks.items()
    }:
        faults.append("other tasks or labels")
    if faults:
        raise UsageError(f"'{config_of}' cannot be taught by '{a.preset}': {'; '.join(faults)}")
