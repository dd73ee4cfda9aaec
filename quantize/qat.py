"""Quantization-aware training: the int8 model is tuned while its integers are simulated (arXiv 1712.05877)."""

from collections.abc import Callable, Collection, Iterator

from torch import Tensor

from tasktok_edge.errors import UsageError
from tasktok_edge.model.fuse import fuse
from tasktok_edge.model.int8 import ActivationQuantizer, int8_layers
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.quantize.finetune import Bench, Scope, finetune
from tasktok_edge.quantize.ptq import round_others, to_int8
from tasktok_edge.train.loop import Progress

FOLLOWING_SHARE = 0.5  # of the steps in which ranges follow the activations; then they stand, and the weights settle
OUTSIDE_REFINER = ("prerestorer", "tokenizer", "task_nets")


def quantize_after(model: TaskTok, calibration: Tensor, *, scope: Scope, keep_fp: Collection[str] = ()) -> TaskTok:
    """Post-training quantization of the refiner or of the whole pipeline; `calibration` is (n, 3, S, S) float in [0, 1]."""
    if model.config.int8:
        raise UsageError("this checkpoint computes in int8 already: give the floating-point one that it was made of")
    model = fuse(model)
    outside = [part for part in OUTSIDE_REFINER if scope == "refiner" and list(model.get_submodule(part).parameters())]
    made = to_int8(model, calibration, keep_fp=[*keep_fp, *outside])
    round_others(made)
    return made


def qat(
    bench: Bench,
    quantized: TaskTok,
    teacher: TaskTok,
    *,
    name: str,
    scope: Scope = "pipeline",
    after_step: Callable[[int], None] = lambda _: None,
) -> Iterator[Progress]:
    """Tune an int8 model in place against labels, clean frames and the tokens of `teacher`, its floating-point self.

    Ranges follow what passes for the first half of the steps.
    """
    quantizers = [m for m in quantized.modules() if isinstance(m, ActivationQuantizer)]
    end = int(FOLLOWING_SHARE * bench.recipe.steps)

    def before_step(i: int) -> None:
        for q in quantizers:
            q.following = i < end

    yield from finetune(bench, quantized, teacher, name=name, scope=scope, before_step=before_step, after_step=after_step)
    for layer in int8_layers(quantized).values():
        layer.scale_weight()  # the last update came after the last time
    round_others(quantized)
