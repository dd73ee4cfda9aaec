"""The stages of the recipe, in order. Each is a generator: it yields `Progress`, and the caller decides what to show."""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from tasktok_edge.data.cache import CacheSpec
from tasktok_edge.data.dataset import SceneDataset, to_unit
from tasktok_edge.model.config import preset
from tasktok_edge.model.task_nets import TaskNet
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.train.greedy import greedy_order
from tasktok_edge.train.joint import Round
from tasktok_edge.train.loop import Batch, Group, Progress, cached, run_stage
from tasktok_edge.train.losses import task_loss
from tasktok_edge.train.machine import accelerator_for
from tasktok_edge.train.recipe import Recipe


@dataclass
class Run:
    """What the stages share: the model in training, the oracles (task networks of clean frames), data and machine."""

    recipe: Recipe
    folder: Path
    accelerator: Accelerator
    model: TaskTok
    oracles: nn.ModuleDict
    arrays: dict[str, np.ndarray]

    def oracle(self, task: str) -> TaskNet:
        return self.oracles[task]  # type: ignore[return-value]


def start(recipe: Recipe, folder: Path, *, workers: int = 2) -> Iterator[Progress | Run]:
    """Seed, build the modules and the cache; the last thing yielded is the `Run`."""
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = accelerator_for("bf16", "bf16")
    set_seed(recipe.seed)
    config = preset(recipe.preset)
    model = TaskTok(config).to(accelerator.device)
    spec = CacheSpec("train", recipe.frames, config.image_size, recipe.versions)
    arrays = yield from cached(folder / "cache", spec, accelerator, workers=workers)
    yield Run(recipe, folder, accelerator, model, deepcopy(model.task_nets), arrays)


def train_task_nets(run: Run) -> Iterator[Progress]:
    """Task networks on clean frames; the model's own start as copies of these oracles."""
    stage = run.recipe.task_nets
    for task, config in run.model.config.tasks.items():
        net = run.oracle(task)
        groups = {"net": Group(list(net.parameters()), stage.learning_rate, stage.steps, stage.weight_decay)}

        def step(
            i: int, batch: Batch, net: TaskNet = net, kind: str = config.kind, group: Group = groups["net"]
        ) -> dict[str, Tensor]:
            net.train()
            with run.accelerator.autocast():
                loss = task_loss(net, kind, net.features(_jitter(to_unit(batch["clean"]))), batch)
            run.accelerator.backward(loss)
            group.update(run.accelerator)
            return {"loss": loss.detach()}

        yield from _stage(run, f"oracle-{task}", {"net": net}, groups, stage.steps, stage.batch, step)
        net.eval().requires_grad_(False)
        run.model.task_nets[task].load_state_dict(net.state_dict())


def train_prerestorer(run: Run) -> Iterator[Progress]:
    """L1 between the pre-restored and the clean frame."""
    stage, net = run.recipe.prerestorer, run.model.prerestorer
    group = Group(list(net.parameters()), stage.learning_rate, stage.steps)

    def step(i: int, batch: Batch) -> dict[str, Tensor]:
        clean, degraded = to_unit(batch["clean"]), to_unit(batch["degraded"])
        with run.accelerator.autocast():
            loss = F.l1_loss(net(degraded).float(), clean)
        run.accelerator.backward(loss)
        group.update(run.accelerator)
        return {"l1": loss.detach()}

    yield from _stage(run, "prerestorer", {"net": net}, {"net": group}, stage.steps, stage.batch, step)
    net.eval().requires_grad_(False)


def train_tokenizer(run: Run) -> Iterator[Progress]:
    """L1 of clean frames and of some pre-restored ones to themselves."""
    stage, model = run.recipe.tokenizer, run.model
    group = Group(
        list(model.tokenizer.parameters()), stage.learning_rate, stage.steps, stage.weight_decay, stage.warm_up, stage.beta_2
    )

    def step(i: int, batch: Batch) -> dict[str, Tensor]:
        image = to_unit(batch["clean"])
        n = int(len(image) * stage.degraded_share)
        with run.accelerator.autocast():
            if n:
                with torch.no_grad():
                    softened = model.prerestorer(to_unit(batch["degraded"][:n])).float()
                image = torch.cat([softened, image[n:]])
            loss = F.l1_loss(model.decode(model.tokens(image)).float(), image)
        run.accelerator.backward(loss)
        nn.utils.clip_grad_norm_(group.parameters, 1.0)
        group.update(run.accelerator)
        return {"l1": loss.detach()}

    yield from _stage(run, "tokenizer", {"tokenizer": model.tokenizer}, {"tokenizer": group}, stage.steps, stage.batch, step)
    model.tokenizer.encoder.requires_grad_(False)


def order_tokens(run: Run) -> Iterator[Progress]:
    """Greedy order of every task's tokens, kept in orders.json; starts the switches."""
    path, model = run.folder / "orders.json", run.model.eval()
    orders: dict[str, list[int]] = json.loads(path.read_text()) if path.is_file() else {}
    dataset = SceneDataset(run.arrays)
    rows = np.random.default_rng(run.recipe.seed).choice(len(dataset), run.recipe.greedy.frames, replace=False)
    samples = [dataset[int(i), 0, False] for i in rows]
    batch = {key: torch.stack([s[key] for s in samples]).to(run.accelerator.device) for key in samples[0]}
    n = model.config.tokenizer.tokens
    for task in model.config.tasks:
        if task not in orders:
            clean, degraded = to_unit(batch["clean"]), to_unit(batch["degraded"])
            with run.accelerator.autocast():
                for order in greedy_order(model, run.oracle(task), task, clean=clean, degraded=degraded, labels=batch):
                    yield Progress(f"order-{task}", len(order), n)
            orders[task] = order
            path.write_text(json.dumps(orders))
        model.switch.start_from_order(task, orders[task])


def train_joint(run: Run) -> Iterator[Progress]:
    """TaskTok's own training, in rounds; a round that moves the switches starts them from the greedy order."""
    orders = json.loads((run.folder / "orders.json").read_text())
    for i, stage in enumerate(run.recipe.joint, 1):
        if stage.restorer_learns:
            for task, order in orders.items():
                run.model.switch.start_from_order(task, order)
        round_ = Round(run.recipe.seed, f"joint-{i}", stage, run.model, run.oracles, run.accelerator)
        yield from _stage(run, round_.name, {"model": run.model}, round_.groups, stage.steps, stage.batch, round_.step)
    run.model.eval()


STAGES = (train_task_nets, train_prerestorer, train_tokenizer, order_tokens, train_joint)


def _stage(
    run: Run, name: str, modules: dict[str, nn.Module], groups: dict[str, Group], steps: int, batch: int, step: object
) -> Iterator[Progress]:
    # Another stage, another draw of frames: the seed is shifted by the stage's name, not by Python's salted hash.
    seed = run.recipe.seed + sum(name.encode())
    yield from run_stage(
        name,
        run.folder,
        accelerator=run.accelerator,
        arrays=run.arrays,
        modules=modules,
        groups=groups,
        steps=steps,
        batch=batch,
        seed=seed,
        step=step,  # type: ignore[arg-type]
    )


def _jitter(image: Tensor) -> Tensor:
    """Random gain and offset of each image and channel: the camera's exposure is not the label."""
    gain = 1 + 0.2 * (torch.rand(len(image), 3, 1, 1, device=image.device) - 0.5)
    offset = 0.1 * (torch.rand(len(image), 3, 1, 1, device=image.device) - 0.5)
    return image * gain + offset
