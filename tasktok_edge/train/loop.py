"""The step loop that every stage shares: batches by step, optimisers, mixed precision, resume from a file, progress."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tasktok_edge.data.cache import CacheSpec, build_cache, open_cache
from tasktok_edge.data.dataset import SceneDataset, StepSampler

Batch = dict[str, Tensor]
_SAVE_EVERY = 250


@dataclass(frozen=True)
class Progress:
    """Where a stage stands; losses are running means."""

    stage: str
    step: int
    steps: int
    losses: dict[str, float] = field(default_factory=dict)


def cached(
    folder: Path, spec: CacheSpec, accelerator: Accelerator, *, workers: int
) -> Generator[Progress, None, dict[str, NDArray[np.generic]]]:
    """Open the cache of `spec`, or let the main process build it first; returns its arrays."""
    try:
        return open_cache(folder, spec)
    except FileNotFoundError:
        if accelerator.is_main_process:
            for n in build_cache(folder, spec, workers=workers):
                yield Progress("frames", n, spec.n)
        accelerator.wait_for_everyone()
        return open_cache(folder, spec)


FINAL_RATE = 1e-7


@dataclass
class Group:
    """Parameters that learn together: a cosine from `rate` to 1e-7 over `steps` of the group's *own* updates.

    AdamW, or SGD where there is a `momentum`.
    """

    parameters: list[nn.Parameter]
    rate: float
    steps: int
    weight_decay: float = 0.0
    warm_up: int = 0
    beta_2: float = 0.999
    momentum: float | None = None

    def __post_init__(self) -> None:
        self.updates = 0
        self.optimizer: torch.optim.Optimizer
        if self.momentum is None:
            betas = (0.9, self.beta_2)
            self.optimizer = torch.optim.AdamW(self.parameters, self.rate, betas=betas, weight_decay=self.weight_decay)
        else:
            self.optimizer = torch.optim.SGD(self.parameters, self.rate, self.momentum, weight_decay=self.weight_decay)

    def rate_at(self, updates: int) -> float:
        """Give the learning rate of the update after so many."""
        share = min(updates / max(self.steps, 1), 1.0)
        warm_up = min((updates + 1) / (self.warm_up + 1), 1.0)
        return FINAL_RATE + (self.rate - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * share)) * warm_up

    def update(self, accelerator: Accelerator) -> None:
        """Average the gradients over processes, step, forget them."""
        update_together([self], accelerator)


def update_together(groups: Sequence[Group], accelerator: Accelerator) -> None:
    """Update the groups that one backward pass gave gradients to.

    Gradients are averaged over processes here and not by DistributedDataParallel, whose wrapper would hide the parts of a model
    that training calls one by one. Where there is a gradient scaler (fp16), its scale moves once for all of them.
    """
    scaler = accelerator.scaler
    for group in groups:
        if accelerator.num_processes > 1:
            for p in group.parameters:
                if p.grad is not None:
                    p.grad = accelerator.reduce(p.grad, reduction="mean")
        for settings in group.optimizer.param_groups:
            settings["lr"] = group.rate_at(group.updates)
        if scaler is None:
            group.optimizer.step()
        else:
            scaler.step(group.optimizer)
    if scaler is not None:
        scaler.update()
    for group in groups:
        # None and not zeros: AdamW would decay, and SGD's momentum move, what took no part in a step.
        group.optimizer.zero_grad(set_to_none=True)
        group.updates += 1


def run_stage(
    name: str,
    folder: Path,
    *,
    accelerator: Accelerator,
    arrays: Mapping[str, NDArray[np.generic]],
    modules: Mapping[str, nn.Module],
    groups: Mapping[str, Group],
    steps: int,
    batch: int,
    seed: int,
    step: Callable[[int, Batch], dict[str, Tensor]],
) -> Iterator[Progress]:
    """Run `step(i, batch)` for every step that is left, and keep `modules` in `folder/name.pt`; a finished stage only loads.

    `step` does its own backward passes and updates; it returns the losses to show.
    """
    path = folder / f"{name}.pt"
    start = _resume(path, modules, groups, accelerator.device)
    if start >= steps:
        yield Progress(name, steps, steps)
        return
    dataset = SceneDataset(arrays)
    sampler = StepSampler(
        frames=len(dataset), versions=arrays["degraded"].shape[1], batch=batch, seed=seed, start=start, steps=steps
    )
    loader: DataLoader[Batch] = DataLoader(dataset, batch_sampler=sampler)  # type: ignore[arg-type]
    shares = accelerator.prepare_data_loader(loader) if accelerator.num_processes > 1 else loader
    means: dict[str, float] = {}
    for i, samples in enumerate(shares, start):
        samples = {key: value.to(accelerator.device, non_blocking=True) for key, value in samples.items()}
        for key, value in step(i, samples).items():
            loss = float(value)
            if not math.isfinite(loss):
                raise FloatingPointError(f"stage {name}, step {i}: the loss '{key}' is {loss}; lower the learning rate")
            means[key] = loss if key not in means else 0.98 * means[key] + 0.02 * loss
        done = i + 1
        if done % _SAVE_EVERY == 0 or done == steps:
            _save(path, done, modules, groups, accelerator)
        yield Progress(name, done, steps, dict(means))


def _save(
    path: Path, step: int, modules: Mapping[str, nn.Module], groups: Mapping[str, Group], accelerator: Accelerator
) -> None:
    if not accelerator.is_main_process:
        return
    state = {
        "step": step,
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "groups": {name: (g.optimizer.state_dict(), g.updates) for name, g in groups.items()},
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)  # a killed run leaves the last whole file


def _resume(path: Path, modules: Mapping[str, nn.Module], groups: Mapping[str, Group], device: torch.device) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    for name, group in groups.items():
        optimizer_state, group.updates = state["groups"][name]
        group.optimizer.load_state_dict(optimizer_state)
    return int(state["step"])
