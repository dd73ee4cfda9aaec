"""What every layer loses when it alone computes in int8, and the smallest int8 model that stays within a given loss."""

from collections.abc import Collection, Generator, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from tasktok_edge.errors import UsageError
from tasktok_edge.model.int8 import int8_layers
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.progress import Doing
from tasktok_edge.quantize.judge import Arrays, Judge
from tasktok_edge.quantize.ptq import to_int8

NOISE_FRAMES = 2  # what so many frames of a classification weigh is no loss yet: they come and go with the last digit


@dataclass(frozen=True)
class LayerLoss:
    """What is lost when this layer alone computes in int8: its weight, its input and its output.

    `drop` has the points of 100 of each task that the layer touches, below 0 where the task gained. `db` is of what it touches
    against the floating-point model: "tokens", "frames", and each task's raw answers.
    """

    name: str
    db: dict[str, float]
    drop: dict[str, float]
    bytes: int  # of its weight in int8, scales included
    macs: int  # for one frame and one task

    @property
    def worst_db(self) -> float:
        """The PSNR of the raw answers of the task that suffers most; of frames where no task has a network."""
        return min((value for what, value in self.db.items() if what in self.drop), default=self.db.get("frames", 0.0))

    @property
    def worst_drop(self) -> float:
        """The points that the task that suffers most loses."""
        return max(self.drop.values(), default=0.0)

    @property
    def part(self) -> str:
        """The part of the model that the layer belongs to: pre-restorer, encoder, refiner, decoder, or a task's network."""
        first, second = self.name.split(".")[:2]
        return {"prerestorer": "pre-restorer", "tokenizer": second, "task_nets": f"{second} network"}.get(first, first)


@dataclass(frozen=True)
class Sensitivity:
    """Every layer in the order of the module; points of each task in floating point, and with all layers in int8."""

    rows: tuple[LayerLoss, ...]
    frames: int
    points: dict[str, float]
    int8_points: dict[str, float]

    @property
    def noise(self) -> float:
        """Points that mean nothing yet on so many frames."""
        return 100 * NOISE_FRAMES / self.frames

    def ranked(self) -> list[LayerLoss]:
        """Give the rows, the most sensitive first: by points beyond noise, then by PSNR.

        On some hundred frames most layers lose less than noise; their PSNR still tells them apart.
        """
        return sorted(self.rows, key=lambda row: (-row.worst_drop if row.worst_drop > self.noise else 0.0, row.worst_db))


@dataclass(frozen=True)
class Found:
    """The int8 model with the fewest layers in floating point that was found to lose at most what was allowed."""

    keep_fp: tuple[str, ...]  # the most sensitive first; for `to_int8`, beside what was to be kept in any case
    layers: int  # that were tried in int8, those of `keep_fp` included
    points: dict[str, float]  # of each task
    fp_points: dict[str, float]
    bytes: int  # of its weights on disk
    fp_bytes: int  # of the floating-point model's

    @property
    def helps(self) -> bool:
        """Whether any layer may compute in int8 at all."""
        return len(self.keep_fp) < self.layers


@dataclass(frozen=True)
class _Bench:
    """The judge, and an int8 model whose layers can be switched one by one."""

    judge: Judge
    made: TaskTok


def switchable(model: TaskTok, calibration: Tensor, *, keep_fp: Collection[str] = ()) -> TaskTok:
    """Give the int8 form of `model`, each layer with quantizers of its own, so that any of them can be bypassed.

    To round a tensor twice by one range is to round it once: with all layers on this is `to_int8`, bit for bit.
    """
    if model.config.int8:
        raise UsageError("this checkpoint computes in int8 already: give the floating-point one that it was made of")
    made = to_int8(model, calibration, keep_fp=keep_fp)
    layers = int8_layers(made)
    for name, source in made.config.int8.items():
        kind, _, other = source.partition(" ")
        if kind in ("as", "after"):
            layers[name].input = deepcopy(layers[other].input if kind == "as" else layers[other].output)
    return made


def sensitivity(
    model: TaskTok, calibration: Tensor, arrays: Arrays, *, keep_fp: Collection[str] = ()
) -> Iterator[Doing | Sensitivity]:
    """Judge every quantizable layer of `model`, but `keep_fp`, alone in int8; yields progress, and the `Sensitivity` last.

    calibration: (n, 3, S, S) float in [0, 1]; arrays: other frames with labels, as `judging_frames` gives them.
    """
    bench = yield from _bench(model, calibration, arrays, keep_fp)
    yield (yield from _sensitivity(bench))


def search(
    model: TaskTok,
    calibration: Tensor,
    arrays: Arrays,
    *,
    max_drop: float,
    known: Sensitivity | None = None,
    keep_fp: Collection[str] = (),
) -> Iterator[Doing | Found]:
    """Find how many of the most sensitive layers must stay in floating point; yields progress, and the `Found` last.

    No task may lose more than `max_drop` points. Searches as if more layers in floating point never lost more; what is found
    has been judged as it is. `known` saves the time to measure the layers; `keep_fp` stays as it is in any case.
    """
    bench = yield from _bench(model, calibration, arrays, keep_fp)
    judge, names = bench.judge, list(int8_layers(bench.made))

    def judged(more: Sequence[str]) -> Found:
        if len(more) == len(names):
            return Found(tuple(more), len(names), judge.points, judge.points, weight_bytes(model), weight_bytes(model))
        # Made anew: weights that stay in floating point move the ranges of what lies behind them a little.
        made = to_int8(model, calibration, keep_fp=[*keep_fp, *more])
        return Found(tuple(more), len(names), judge(made).points, judge.points, weight_bytes(made), weight_bytes(model))

    def fits(found: Found) -> bool:
        return all(judge.points[task] - points <= max_drop for task, points in found.points.items())

    best = judged(())
    if not fits(best):
        if known is None:
            known = yield from _sensitivity(bench)
        order = [row.name for row in known.ranked() if row.name in names]
        best = judged(order)  # the floating-point model
        too_few, steps = 0, 2 * len(order).bit_length()
        for i in range(steps):
            enough = len(best.keep_fp)
            if enough - too_few <= 1:
                break
            yield Doing("search", i, steps)
            # Doubles, then bisects: mostly a few layers break, and points that come and go don't make it keep half the model.
            n = min(max(2 * too_few, 1), (too_few + enough) // 2)
            middle = judged(order[:n])
            if fits(middle):
                best = middle
            else:
                too_few = n
        yield Doing("search", steps, steps)
    yield best


def worst(found: Sensitivity, n: int) -> list[str]:
    """Name the `n` most sensitive layers, the worst first."""
    return [row.name for row in found.ranked()[:n]]


def weight_bytes(model: TaskTok) -> int:
    """Weights on disk: layers that compute in int8 as codes and a scale for each output channel, all else in fp32."""
    total = sum(4 * p.numel() for p in model.parameters())
    layers = [layer for layer in int8_layers(model).values() if not layer.bypassed]
    return total - sum(4 * layer.weight.numel() - _bytes(layer.weight) for layer in layers)


def _bytes(weight: Tensor) -> int:
    return weight.numel() + 4 * len(weight)


def _bench(model: TaskTok, calibration: Tensor, arrays: Arrays, keep_fp: Collection[str]) -> Generator[Doing, None, _Bench]:
    yield Doing("calibration", 0, 1)
    made = switchable(model, calibration, keep_fp=keep_fp)
    yield Doing("calibration", 1, 1)
    yield Doing("floating point", 0, 1)
    judge = Judge(model, arrays)
    yield Doing("floating point", 1, 1)
    return _Bench(judge, made)


def _sensitivity(bench: _Bench) -> Generator[Doing, None, Sensitivity]:
    judge, made = bench.judge, bench.made
    layers = int8_layers(made)
    _switch(made, layers)
    together = judge(made).points
    macs = _macs(made, judge.batches[0]["degraded"][:1])
    rows = []
    for i, (name, layer) in enumerate(layers.items()):
        yield Doing("layers", i, len(layers))
        _switch(made, [name])
        verdict = judge(made, name)
        drop = {task: judge.points[task] - points for task, points in verdict.points.items()}
        rows.append(LayerLoss(name, verdict.db, drop, _bytes(layer.weight), macs[name]))
    yield Doing("layers", len(layers), len(layers))
    return Sensitivity(tuple(rows), judge.frames, judge.points, together)


def _switch(made: TaskTok, on: Collection[str]) -> None:
    for name, layer in int8_layers(made).items():
        layer.bypass(name not in on)


@torch.inference_mode()
def _macs(made: TaskTok, frame: Tensor) -> dict[str, int]:
    """Multiply-adds of each layer for one frame (1, 3, S, S); what several tasks share is counted for one."""
    layers = int8_layers(made)
    counted = dict.fromkeys(layers, 0)

    def count(name: str, y: Tensor) -> None:
        counted[name] += y.numel() * layers[name].weight[0].numel()

    hooks = [
        layer.output.register_forward_pre_hook(lambda _, args, name=name: count(name, args[0]))
        for name, layer in layers.items()
    ]
    task = next(iter(made.config.tasks))
    tokens = made.replace_selected(made.encode(frame.float()), task)
    for task in made.task_nets:
        _, seen = made.shown(tokens, task)
        made.task_net(task)(seen)
    for hook in hooks:
        hook.remove()
    return counted
