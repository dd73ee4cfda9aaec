"""Will a Core ML program run on the Neural Engine? An expectation from what is publicly known; only a Mac's compute plan tells.

Apple documents little of it. Each rule names where it comes from, and says "Apple" or "community", as the latter measured what
they could on the devices they had.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tasktok_edge.bundle import Bundle
from tasktok_edge.errors import UsageError
from tasktok_edge.runtimes.mlprogram import Function, Operator, Package, Reference

TYPED = "Apple, coremltools guide, Typed Execution: the Neural Engine computes in fp16"
LAYOUT = "Apple, machinelearning.apple.com/research/neural-engine-transformers: 4 axes, the last padded to 64 bytes"
W8A8 = "Apple, coremltools guide, Quantization Overview: int8 times int8 is faster from A17 Pro and M4 on"
UNSUPPORTED = "community, github.com/hollance/neural-engine, unsupported layers"
LIMITS = "community, github.com/hollance/neural-engine and coremltools issues: sizes that fell back"

NOT_THERE = {
    "argsort", "band_part", "cond", "crop_resize", "cumsum", "gru", "lstm", "non_maximum_suppression", "non_zero", "one_hot",
    "range_1d", "reduce_prod", "rnn", "scatter", "scatter_along_axis", "scatter_nd", "topk", "while_loop",
}  # fmt: skip
UNSURE = {"gather", "gather_along_axis", "gather_nd", "resample", "select", "tile"}
COPIES = {"reshape", "transpose", "concat", "split", "slice_by_index", "stack"}
MAX_RANK, MAX_SIDE, MAX_CHANNELS, MAX_KERNEL = 5, 16384, 65536, 13
LINE_BYTES = 64

Unit = str  # "Neural Engine", "unsure", "GPU", "CPU"


@dataclass(frozen=True)
class Placed:
    """An operator, where it is expected, and why not on the Neural Engine, or at what cost."""

    operator: str
    name: str
    unit: Unit
    macs: int
    rules: tuple[tuple[str, str], ...]  # what it meets, and the source


@dataclass(frozen=True)
class Expectation:
    """All operators of a function in their order."""

    function: str
    placed: tuple[Placed, ...]

    def operators(self) -> dict[Unit, int]:
        return dict(Counter(p.unit for p in self.placed))

    def macs(self) -> dict[Unit, int]:
        found: Counter[Unit] = Counter()
        for p in self.placed:
            found[p.unit] += p.macs
        return dict(found)

    @property
    def breaks(self) -> tuple[Placed, ...]:
        """The operators that end a stretch on the Neural Engine."""
        pairs = zip(self.placed, self.placed[1:], strict=False)
        return tuple(b for a, b in pairs if a.unit == "Neural Engine" != b.unit)


def expectations(bundle: Bundle) -> dict[str, Expectation]:
    """Place the operators of every function of a bundle, by the function's name; UsageError where it is not for Core ML."""
    manifest = bundle.manifest
    if manifest.target != "coreml":
        raise UsageError(f"{manifest.name} is for {manifest.target}: the Neural Engine takes Core ML's programs")
    packages = {file: Package(bundle.path / file) for file in {f.file for f in manifest.functions}}
    return {f.name: expected(packages[f.file].function(f.entry)) for f in manifest.functions}


def expected(function: Function) -> Expectation:
    """Place every operator of a function; constants, and what is computed from them alone, take no time and are left out."""
    shapes: dict[str, tuple[int, ...]] = {typed.name: typed.shape for typed in function.inputs}
    fixed: set[str] = set()
    placed = []
    for operator in function.operators:
        shapes |= {typed.name: typed.shape for typed in operator.results}
        if all(name in fixed for name in operator.reads()):
            fixed.update(typed.name for typed in operator.results)
        else:
            placed.append(_placed(operator, shapes))
    return Expectation(function.name, tuple(placed))


def _placed(operator: Operator, shapes: Mapping[str, tuple[int, ...]]) -> Placed:
    result = operator.results[0]
    rules: list[tuple[str, str]] = []
    unit = "Neural Engine"

    def leave(to: Unit, why: str, source: str) -> None:
        nonlocal unit
        order: Sequence[Unit] = ("Neural Engine", "unsure", "GPU", "CPU")
        unit = max(unit, to, key=order.index)
        rules.append((why, source))

    if result.dtype == "FLOAT32" and operator.type != "cast":
        leave("GPU", "computes in fp32", TYPED)
    if result.dtype in ("INT32", "BOOL"):
        leave("CPU", "computes in whole numbers", UNSUPPORTED)
    if operator.type in NOT_THERE:
        leave("CPU", "not among its operators", UNSUPPORTED)
    if operator.type in UNSURE:
        leave("unsure", "falls back on some devices", UNSUPPORTED)
    if len(result.shape) > MAX_RANK:
        leave("CPU", f"has more than {MAX_RANK} axes", LIMITS)
    if any(side > MAX_SIDE for side in result.shape[-2:]) or (len(result.shape) > 2 and result.shape[-3] > MAX_CHANNELS):
        leave("GPU", f"a side above {MAX_SIDE}, or more than {MAX_CHANNELS} channels", LIMITS)
    weight = _shape(operator, "weight", shapes)
    if operator.type == "conv" and weight[-1] > MAX_KERNEL:
        leave("GPU", f"a kernel wider than {MAX_KERNEL}", LIMITS)
    if operator.type in COPIES:
        rules.append(("copies", LAYOUT))
    if operator.type in ("quantize", "dequantize"):
        rules.append(("int8 pays on newer ones alone", W8A8))
    line = result.shape[-1] * 2 if result.shape else LINE_BYTES
    if line % LINE_BYTES and result.dtype == "FLOAT16":
        rules.append(("its last axis is padded", LAYOUT))
    return Placed(operator.type, result.name, unit, _macs(operator, shapes), tuple(rules))


def _shape(operator: Operator, parameter: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    given = operator.arguments.get(parameter, [""])[0]
    if isinstance(given, Reference):
        return shapes[given.name]
    return () if isinstance(given, str) else tuple(given.shape)


def _macs(operator: Operator, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-adds of matrix products and convolutions; of others none."""
    made = math.prod(operator.results[0].shape)
    counted: dict[str, Callable[[], int]] = {
        "linear": lambda: made * _shape(operator, "weight", shapes)[-1],
        "conv": lambda: made * math.prod(_shape(operator, "weight", shapes)[1:]),
        "matmul": lambda: made * _shape(operator, "x", shapes)[-2 if operator.arguments.get("transpose_x", [False])[0] else -1],
        "scaled_dot_product_attention": lambda: _attention(
            _shape(operator, "query", shapes), _shape(operator, "value", shapes), _shape(operator, "key", shapes)
        ),
    }
    return counted[operator.type]() if operator.type in counted else 0


def _attention(query: tuple[int, ...], value: tuple[int, ...], key: tuple[int, ...]) -> int:
    """Scores and weighted sums of queries (..., L, E), keys (..., S, E) and values (..., S, V)."""
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
