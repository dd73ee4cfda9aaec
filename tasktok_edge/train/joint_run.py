"""TaskTok's own training as a run: steps, validation, snapshots, and a state that a stopped run goes on from."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tasktok_edge.data.official import TASKS
from tasktok_edge.data.steps import Batch, Plan, evaluation_batches, training_batches
from tasktok_edge.errors import CheckpointError, UsageError
from tasktok_edge.model.checkpoint import save_checkpoint
from tasktok_edge.model.faster_rcnn import FasterRCNN
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.staging import stage
from tasktok_edge.train.evaluate import restore, tally
from tasktok_edge.train.joint_data import JointData
from tasktok_edge.train.joint_recipe import JointRecipe
from tasktok_edge.train.joint_step import JointStep, clean_half
from tasktok_edge.train.loop import Progress
from tasktok_edge.train.machine import accelerator_for
from tasktok_edge.train.start import Start

STATE = "state.pt"


@dataclass
class JointRun:
    """A run in `folder`: `checkpoint/` is its last state as a model, `best/` the one of the best validation."""

    recipe: JointRecipe
    folder: Path
    accelerator: Accelerator
    model: TaskTok
    oracles: nn.ModuleDict
    data: JointData
    facts: dict[str, Any]  # for provenance.json
    fingerprint: str
    workers: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)  # a validation each: step, cls, det, seg, mean

    def __post_init__(self) -> None:
        self.steps = JointStep(self.recipe, self.model, self.oracles, self.accelerator)
        lengths = {task: len(self.data.training[task]) for task in TASKS}
        self.plan = Plan(lengths, seed=self.recipe.seed, batch=self.recipe.batch, weights=self.recipe.task_draw)

    @property
    def best(self) -> dict[str, float] | None:
        return max(self.history, key=lambda row: row["mean"], default=None)


def begin(
    recipe: JointRecipe,
    folder: Path,
    start: Start,
    data: JointData,
    *,
    orders: dict[str, list[int]] | None,
    facts: dict[str, Any],
    workers: int = 0,
) -> JointRun:
    """Set a run up, or pick it up where it stopped. `orders` start the switches of a new run, never of one that goes on."""
    accelerator = accelerator_for("fp16", "no")  # with a gradient scaler on CUDA, as TaskTok trains
    check_processes(recipe, accelerator.num_processes)
    model, oracles = start.model.to(accelerator.device), start.oracles.to(accelerator.device)
    fingerprint = start.fingerprint
    for net in (n for n in [*model.task_nets.values(), *oracles.values()] if isinstance(n, FasterRCNN)):
        net.min_size, net.max_size = recipe.detector_sides
    run = JointRun(recipe, folder, accelerator, model, oracles, data, facts, fingerprint, workers)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / STATE).is_file():
        _resume(run)
    elif orders is not None:
        for task, order in orders.items():
            model.switch.start_from_order(task, order)
    return run


def check_processes(recipe: JointRecipe, processes: int) -> None:
    """Refuse batches that processes cannot share, or of which batch normalisation would see a single image."""
    for task, n in recipe.batch.items():
        if n % processes:
            raise UsageError(f"a batch of {n} for {task} cannot be shared by {processes} processes: use a divisor")
        least = n // processes + clean_half(n // processes, processes - 1, processes)
        if least < 2 and task != "det" and recipe.norms_learn:
            raise UsageError(
                f"{processes} processes leave some a single image of {task}, too few for batch normalisation: use fewer"
            )


def train(run: JointRun) -> Iterator[Progress]:
    """Take the steps that are left; validate, keep the best as one snapshot, save. All processes run this."""
    recipe, accelerator = run.recipe, run.accelerator
    batches = training_batches(
        run.data.training,
        run.plan,
        start=run.step,
        steps=recipe.steps,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        workers=run.workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    means: dict[str, float] = {}
    for number, task, batch in batches:
        _seed(recipe.seed, number, accelerator.process_index)
        for name, value in run.steps(task, _to(batch, accelerator.device)).items():
            loss = float(value)
            if not math.isfinite(loss):
                raise FloatingPointError(f"step {number}: the loss '{name}' is {loss}; the last save is whole, lower the rates")
            means[name] = 0.98 * means.get(name, loss) + 0.02 * loss
        run.step = number + 1
        if run.step % recipe.validate_every == 0 or run.step == recipe.steps:
            yield from _validate(run)
        if run.step % recipe.save_every == 0 or run.step == recipe.steps:
            _save(run)
        yield Progress("joint", run.step, recipe.steps, dict(means))
    run.model.eval()


@torch.no_grad()
def _validate(run: JointRun) -> Iterator[Progress]:
    """Measure every task on held-out images, in fp32; where their mean is the best yet, keep all parts of this very step."""
    found: dict[str, float] = {}
    for task in TASKS:
        data, config = run.data.validation[task], run.model.config.tasks[task]
        counts, done = tally(config), 0
        n = min(len(data), run.recipe.validate_frames or len(data))
        batches = evaluation_batches(
            data,
            batch=1 if task == "seg" else 8,
            limit=run.recipe.validate_frames,
            process=run.accelerator.process_index,
            processes=run.accelerator.num_processes,
            workers=run.workers,
        )
        for batch in batches:
            there = _to(batch, run.accelerator.device)
            degraded = there["degraded"]
            assert isinstance(degraded, Tensor)
            counts.add(run.model.task_net(task), restore(run.model, degraded, task), there)
            done = min(done + len(degraded) * run.accelerator.num_processes, n)
            yield Progress(f"validate {task}, step {run.step}", done, n)
        found[task] = counts.value(run.accelerator)
    row = {"step": float(run.step), **found, "mean": sum(found.values()) / len(found)}
    is_best = run.best is None or row["mean"] > run.best["mean"]
    run.history.append(row)
    if is_best:
        _snapshot(run, "best")


def _save(run: JointRun) -> None:
    """Keep what the run needs to go on, whole or not at all, and the model as a checkpoint."""
    if run.accelerator.is_main_process:
        state = {
            "step": run.step,
            "recipe": run.recipe.model_dump_json(),
            "fingerprint": run.fingerprint,
            "history": run.history,
            "modules": {name: module.state_dict() for name, module in _moving(run).items()},
            "groups": {name: (g.optimizer.state_dict(), g.updates) for name, g in run.steps.groups.items()},
            "scaler": run.accelerator.scaler.state_dict() if run.accelerator.scaler is not None else None,
        }
        path = run.folder / STATE
        torch.save(state, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)  # a killed run leaves the last whole file
        (run.folder / "validation.json").write_text(json.dumps(run.history, indent=1) + "\n")
    _snapshot(run, "checkpoint")


def _snapshot(run: JointRun, name: str) -> None:
    """Write the model with all its parts of one step, and its teachers, as a checkpoint folder."""
    if run.accelerator.is_main_process:
        row = next((row for row in reversed(run.history) if row["step"] == run.step), None)
        told = {**run.facts, "recipe": run.recipe.model_dump(), "step": run.step, "validation": row}
        told["processes"] = run.accelerator.num_processes
        with stage(run.folder / name, overwrite=True, marker="config.json") as target:
            save_checkpoint(target, run.model, oracles=run.oracles, facts=told, exact=True)
    run.accelerator.wait_for_everyone()


def _resume(run: JointRun) -> None:
    path = run.folder / STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as fault:
        raise CheckpointError(f"'{path}' is no whole state ({type(fault).__name__}): remove it to begin again") from None
    if state["recipe"] != run.recipe.model_dump_json():
        raise UsageError(f"'{run.folder}' was begun with another recipe or number of steps: give the same, or another --out")
    if state["fingerprint"] != run.fingerprint:
        raise UsageError(f"'{run.folder}' was begun from other files: give the same --init, or another --out")
    for name, module in _moving(run).items():
        module.load_state_dict(state["modules"][name])
    for name, group in run.steps.groups.items():
        optimizer_state, group.updates = state["groups"][name]
        group.optimizer.load_state_dict(optimizer_state)
    if run.accelerator.scaler is not None and state["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    run.step, run.history = int(state["step"]), list(state["history"])


def _moving(run: JointRun) -> dict[str, nn.Module]:
    model = run.model
    return {"decoder": model.tokenizer.decoder, "refiner": model.refiner, "switch": model.switch, "nets": model.task_nets}


def _seed(seed: int, step: int, process: int) -> None:
    """Random numbers of a step (dropout, the detector's samples) follow from its number: a resumed run draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0]))


def _to(batch: Batch, device: torch.device) -> Batch:
    def move(value: Tensor) -> Tensor:
        return value.to(device, non_blocking=True)

    return {key: [move(v) for v in value] if isinstance(value, list) else move(value) for key, value in batch.items()}
