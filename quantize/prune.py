"""Pruning: the refiner's smallest weights become zero while it is tuned (NNCF's magnitude masks, arXiv 1710.01878).

Zeros make the download smaller, since it is compressed. They make nothing faster: engines multiply by them.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tasktok_edge.errors import UsageError
from tasktok_edge.model.refiner import Refiner
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.quantize.finetune import Bench, finetune
from tasktok_edge.train.loop import Progress

RAMP_SHARE = 0.6  # of the steps in which more and more weights are masked; then the masks stand, and the others settle
FIRST_SPARSITY = 0.1  # the ramp's start, or half of what is asked for


@dataclass(frozen=True)
class Zeros:
    """A matrix, and how many of its weights are exactly zero."""

    name: str
    weights: int
    zeros: int

    @property
    def share(self) -> float:
        return self.zeros / self.weights


def prune(bench: Bench, student: TaskTok, teacher: TaskTok, *, name: str, sparsity: float) -> Iterator[Progress]:
    """Tune the refiner of `student` in place until the share `sparsity` of its matrices is zero.

    One threshold for all matrices, each divided by its norm. A run that was stopped goes on from `folder/<name>.pt`.
    """
    _check(student, sparsity)
    masks = _Masks(student.refiner, student.config.tokenizer.channels, first=min(FIRST_SPARSITY, sparsity / 2), last=sparsity)
    ramp = max(int(RAMP_SHARE * bench.recipe.steps), 1)
    schedule = masks.schedule(ramp)

    def before_step(i: int) -> None:
        if i < ramp:
            schedule.step(i + 1)

    yield from finetune(bench, student, teacher, name=name, scope="refiner", before_step=before_step)
    student.refiner = masks.applied(student).eval().requires_grad_(False)


def zeros(module: nn.Module) -> list[Zeros]:
    """The zeros of every matrix of a linear in `module`."""
    found = _matrices(module).items()
    return [Zeros(name, weight.numel(), weight.numel() - int(torch.count_nonzero(weight))) for name, weight in found]


def sparsity_of(module: nn.Module) -> float:
    """Share of zeros in all matrices of `module` together."""
    found = zeros(module)
    return sum(z.zeros for z in found) / sum(z.weights for z in found)


def hold_zeros(module: nn.Module) -> Callable[[int], None]:
    """Give what to call after each step of a training, so that the matrices' zeros of now stay zero."""
    held = [(weight, weight.detach() == 0) for weight in _matrices(module).values()]

    @torch.no_grad()
    def after_step(_: int) -> None:
        for weight, zero in held:
            weight.masked_fill_(zero.to(weight.device), 0.0)

    return after_step


def _matrices(module: nn.Module) -> dict[str, Tensor]:
    return {name: m.weight for name, m in module.named_modules() if isinstance(m, nn.Linear)}


def _check(student: TaskTok, sparsity: float) -> None:
    if not 0 < sparsity < 1:
        raise UsageError(f"the share of weights that become zero is above 0 and below 1, not {sparsity}")
    if student.config.int8:
        raise UsageError(
            "this checkpoint computes in int8 already: prune the floating-point one, then quantize; zeros stay zero"
        )
    if student.config.level != "exact":
        raise UsageError(
            f"this checkpoint is at level {student.config.level}: prune the one at level exact, then set the level"
        )
    # NNCF's test is a strict one: of a matrix of equal magnitudes, such as one that never learned, nothing would be left.
    dull = [name for name, weight in _matrices(student.refiner).items() if weight.abs().min() == weight.abs().max()]
    if dull:
        raise UsageError(f"all weights of the refiner's {', '.join(dull)} have one magnitude: train it before it is pruned")


class _Masks:
    """NNCF's masks on a refiner, which it changes in place."""

    def __init__(self, refiner: Refiner, channels: int, *, first: float, last: float) -> None:
        self.nncf = _nncf()
        self.mode = self.nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
        self.first, self.last = first, last
        tokens = refiner.latent_positional_embedding.shape[0]
        example = torch.zeros(1, tokens, channels, device=refiner.conv_in.weight.device)
        self.refiner = self.nncf.prune(refiner, self.mode, ratio=first, examples_inputs=example)

    def schedule(self, steps: int) -> Any:
        """What raises the sparsity when its `step(i)` is called, to the last one at i = `steps`."""
        from nncf.torch.function_hook.pruning.magnitude.schedulers import ExponentialMagnitudePruningScheduler

        return ExponentialMagnitudePruningScheduler(
            self.refiner, mode=self.mode, initial_ratio=self.first, target_ratio=self.last, target_epoch=steps
        )

    def applied(self, model: TaskTok) -> Refiner:
        """A refiner of our own again, the masks multiplied into its weights."""
        nncf = self.nncf
        clean = cast(nn.Module, nncf.strip(self.refiner, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE))
        state: dict[str, Tensor] = {name: value + 0.0 for name, value in clean.state_dict().items()}  # -0.0 becomes 0.0
        tokenizer = model.config.tokenizer
        plain = Refiner(model.config.refiner, tokens=tokenizer.tokens, channels=tokenizer.channels)
        plain.load_state_dict(state)  # strict: nothing of NNCF is left
        return plain.to(next(iter(state.values())).device)


def _nncf() -> Any:
    """Import nncf, which is slow and would report home."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf
