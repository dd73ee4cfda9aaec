"""Methods one after the other: a checkpoint in, a smaller one out."""

import json
from collections.abc import Generator, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tasktok_edge.data.dataset import SceneDataset, StepSampler, to_unit
from tasktok_edge.errors import UsageError, unknown_word
from tasktok_edge.model.config import Level
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.progress import Doing
from tasktok_edge.quantize.distill import Student, distill, distill_recipe
from tasktok_edge.quantize.finetune import Bench, FinetuneRecipe, Scope, finetune, prepare
from tasktok_edge.quantize.layers import choose_blocks, without_blocks
from tasktok_edge.quantize.levels import with_level
from tasktok_edge.quantize.prune import hold_zeros, prune
from tasktok_edge.quantize.ptq import calibration_frames
from tasktok_edge.quantize.qat import qat, quantize_after
from tasktok_edge.quantize.slim import Shares, cut, plan, probe
from tasktok_edge.train.loop import Progress
from tasktok_edge.train.losses import task_loss

Method = Literal["distill", "slim", "prune", "levels", "ptq", "qat"]
PROBE_BATCH = 16
LAYER_PROBES = 8  # a whole block is seen in so many times fewer batches than a unit

_TINY = FinetuneRecipe(frames=16, versions=1, steps=2, batch=4, probe_batches=2)
RECIPES: dict[str, dict[Method, FinetuneRecipe]] = {
    "scenes-edge": {
        "slim": FinetuneRecipe(steps=9000),
        "prune": FinetuneRecipe(steps=400, learning_rate=3e-4),
        "levels": FinetuneRecipe(steps=400, learning_rate=3e-4),
        "qat": FinetuneRecipe(steps=1500, learning_rate=1e-4, task_net_rate=2e-4),
    },
    "tiny": dict.fromkeys(("slim", "prune", "levels", "qat"), _TINY),
}

# What stays of scenes-edge.
SHARES = Shares(layers=5 / 9, heads=0.6, hidden=0.34, prerestorer=0.5, task_nets=0.5, tasks={"det": 0.75})


@dataclass(frozen=True)
class Wish:
    """What is asked of the methods. `frames` (n, 3, S, S) in [0, 1] calibrate int8 ranges; None: scenes of the split `val`."""

    methods: tuple[Method, ...]
    scope: Scope = "pipeline"
    recipe: str = "scenes-edge"
    steps: int | None = None
    preset: str = "scenes-edge"
    shares: Shares = SHARES
    sparsity: float = 0.5
    level: Level = "context"
    tokens: float | None = None
    keep_fp: tuple[str, ...] = ()
    frames: Tensor | None = None
    cache: Path | None = None
    workers: int = 2


@dataclass(frozen=True)
class Step:
    """What one method gave: a model in evaluation mode, under the method's name."""

    name: str
    model: TaskTok


def methods_of(text: str) -> tuple[Method, ...]:
    """Turn "slim,prune,qat" into methods, in the order given; UsageError for a word or an order that makes no sense."""
    known = get_args(Method)
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise unknown_word("method", word, [*known, "sensitivity"])
    if len(set(words)) < len(words):
        raise UsageError(f"--method {text}: each method once")
    if "distill" in words[1:]:
        raise UsageError(f"--method {text}: distill begins another model, so it comes first")
    integer = [word for word in words if word in ("ptq", "qat")]
    if len(integer) > 1:
        raise UsageError(f"--method {text}: qat begins with ptq already; ask for one of them")
    if integer and words[-1] != integer[0]:
        raise UsageError(f"--method {text}: {integer[0]} comes last, the others change floating-point weights")
    return tuple(words)  # type: ignore[arg-type]  # checked above


def shrink(model: TaskTok, wish: Wish, folder: Path, *, teacher: TaskTok | None = None) -> Iterator[Progress | Doing | Step]:
    """Apply the methods of `wish` to a copy of `model`; yields progress, and a `Step` when a method is done.

    Runs and their frames are kept in `folder`, where one that was stopped goes on. `teacher` gives the tokens that fine-tuning
    comes near to; None: the model itself. QAT always learns from the floating-point model that it began with, whose
    post-training quantization is a step of its own, to compare with.
    """
    if wish.recipe not in RECIPES:
        raise unknown_word("recipe", wish.recipe, RECIPES)
    if model.config.int8:
        raise UsageError("this checkpoint computes in int8 already: give the floating-point one that it was made of")
    teacher, pruned = teacher or model, False
    for i, method in enumerate(wish.methods, 1):
        name = f"{i}-{method}"
        if method == "distill":
            model = yield from _distilled(model, wish, folder / name)
            yield Step(method, model)
            continue
        if method == "ptq":
            yield Doing("calibration")
            yield Step(method, quantize_after(model, _calibration(model, wish), scope=wish.scope, keep_fp=wish.keep_fp))
            return
        recipe = RECIPES[wish.recipe][method]
        recipe = recipe if wish.steps is None else recipe.model_copy(update={"steps": wish.steps})
        bench = yield from prepare(recipe, folder, size=model.config.image_size, cache=wish.cache, workers=wish.workers)
        if method == "prune":
            model = deepcopy(model)
            yield from prune(bench, model, teacher, name=name, sparsity=wish.sparsity)
            pruned = True
            yield Step(method, model)
            continue
        floating, scope = model, wish.scope
        match method:
            case "slim":
                model = yield from _slimmed(bench, model, wish, name)
            case "levels":
                model, scope = with_level(model, wish.level, wish.tokens), "refiner"
            case "qat":
                yield Doing("calibration")
                model = quantize_after(model, _calibration(model, wish), scope=scope, keep_fp=wish.keep_fp)
                yield Step("ptq", deepcopy(model))
        zeros = hold_zeros(model.refiner) if pruned else _nothing
        if method == "qat":
            yield from qat(bench, model, floating, name=name, scope=scope, after_step=zeros)
        else:
            yield from finetune(bench, model, teacher, name=name, scope=scope, after_step=zeros)
        yield Step(method, model)


def _nothing(_: int) -> None:
    pass


def _distilled(server: TaskTok, wish: Wish, folder: Path) -> Generator[Progress, None, TaskTok]:
    for step in distill(server, wish.preset, distill_recipe(wish.recipe), folder, workers=wish.workers):
        if isinstance(step, Student):
            return step.model
        yield step
    raise AssertionError("distill ends with a Student")


def _slimmed(bench: Bench, model: TaskTok, wish: Wish, name: str) -> Generator[Doing, None, TaskTok]:
    """Probe and cut; the plan is kept, so that a run that was stopped goes on with the same model."""
    path = bench.folder / f"{name}.json"
    if not path.is_file():
        kept = yield from choose_blocks(model, partial(_probe_loss, bench), wish.shares.layers)
        probed = without_blocks(model, kept).eval().requires_grad_(True)
        losses = _probe_losses(bench, probed, n=bench.recipe.probe_batches)
        importance = yield from probe(probed, losses, n=bench.recipe.probe_batches)
        chosen = {group: units.tolist() for group, units in plan(probed, importance, wish.shares).items()}
        path.write_text(json.dumps({"blocks": kept, "units": chosen}))
    planned = json.loads(path.read_text())
    units = {group: torch.tensor(stay) for group, stay in planned["units"].items()}
    return cut(without_blocks(model, planned["blocks"]), units).requires_grad_(False)


@torch.no_grad()
def _probe_loss(bench: Bench, model: TaskTok) -> float:
    n = max(bench.recipe.probe_batches // LAYER_PROBES, 1)
    return sum(float(loss) for loss in _probe_losses(bench, model.eval(), n=n))


def _probe_losses(bench: Bench, model: TaskTok, *, n: int) -> Iterator[Tensor]:
    """The loss of all tasks on training frames, `n` batches, the same for every model."""
    recipe, dataset = bench.recipe, SceneDataset(bench.arrays)
    draws = StepSampler(frames=len(dataset), versions=recipe.versions, batch=PROBE_BATCH, seed=recipe.seed, start=0, steps=n)
    for rows in draws:
        samples = [dataset[row] for row in rows]
        batch = {key: torch.stack([s[key] for s in samples]) for key in samples[0]}
        total = torch.tensor(0.0)
        for task, config in model.config.tasks.items():
            net, restored = model.task_net(task), model.restore(to_unit(batch["degraded"]), task)
            total = total + task_loss(net, config.kind, net.features(restored), batch)
            total = total + recipe.pixel_weight * F.l1_loss(restored, to_unit(batch["clean"]))
        yield total


def _calibration(model: TaskTok, wish: Wish) -> Tensor:
    return calibration_frames(model) if wish.frames is None else wish.frames
