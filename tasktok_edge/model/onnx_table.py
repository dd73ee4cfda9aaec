"""Which ONNX operators there are, and how each is run."""

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tasktok_edge.model import onnx_operators as of
from tasktok_edge.model.onnx_resize import resize
from tasktok_edge.model.onnx_spatial import average_pool, conv, conv_transpose, max_pool, pad


@dataclass(frozen=True)
class Operator:
    """How a node is run."""

    run: Callable[..., Any]
    static: tuple[int, ...] = ()  # inputs that must be constants, given as plain numbers
    prepared: bool = False  # `run` is called once, with its input's shape, and gives what runs and its constants
    of_shape: bool = False  # only the shape of its input is read, so that the result is a constant
    numbers: bool = False  # constants of one element are given as numbers
    ignored: tuple[str, ...] = ()  # attributes that change nothing here
    fixed: Mapping[str, object] = field(default_factory=dict)  # attributes of which only this value is taken

    def unknown(self, attributes: Mapping[str, object]) -> list[str]:
        """Attributes that it does not know, or not with this value."""
        known = {p.name for p in inspect.signature(self.run).parameters.values() if p.kind is p.KEYWORD_ONLY}
        named = [name for name in attributes if name not in known | {*self.ignored, *self.fixed}]
        return named + [f"{n}={attributes[n]}" for n, value in self.fixed.items() if attributes.get(n, value) != value]

    def settings(self, attributes: Mapping[str, object]) -> dict[str, object]:
        """The attributes that `run` takes."""
        return {name: value for name, value in attributes.items() if name not in {*self.ignored, *self.fixed}}


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    def run(x: Tensor) -> Tensor:
        return function(x)

    return Operator(run)


def _binary(function: Callable[[Any, Any], Tensor]) -> Operator:
    def run(a: Tensor, b: Tensor) -> Tensor:
        return function(a, b)

    return Operator(run, numbers=True)


def _variadic(function: Callable[[Any, Any], Tensor]) -> Operator:
    def run(*parts: Tensor) -> Tensor:
        return reduce(function, parts)

    return Operator(run)


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def run(
        x: Tensor, inputs: list[int] | None = None, *, axes: of.Axes = None, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        chosen = of.axes_of(inputs if inputs is not None else axes, x.ndim)
        if not chosen and noop_with_empty_axes:
            return x
        return function(x, chosen or list(range(x.ndim)), bool(keepdims))

    return Operator(run, static=(1,))


OPERATORS: dict[str, Operator] = {
    # of each element
    "Abs": _unary(torch.abs),
    "Ceil": _unary(torch.ceil),
    "Cos": _unary(torch.cos),
    "Elu": Operator(of.elu),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": Operator(of.gelu),
    "HardSigmoid": Operator(of.hard_sigmoid),
    "HardSwish": _unary(F.hardswish),
    "LeakyRelu": Operator(of.leaky_relu),
    "Log": _unary(torch.log),
    "Mish": _unary(F.mish),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "PRelu": Operator(of.prelu),
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(F.relu),
    "Round": _unary(torch.round),
    "Sigmoid": _unary(torch.sigmoid),
    "Sin": _unary(torch.sin),
    "Softplus": _unary(F.softplus),
    "Sqrt": _unary(torch.sqrt),
    "Tanh": _unary(torch.tanh),
    "Cast": Operator(of.cast, ignored=("saturate", "round_mode")),
    "Clip": Operator(of.clip, static=(1, 2)),
    "Dropout": Operator(of.dropout, static=(1, 2), ignored=("ratio", "seed")),
    "Identity": _unary(of.identity),
    # of two or more
    "Add": _binary(operator.add),
    "And": _binary(torch.logical_and),
    "Div": _binary(of.divide),
    "Equal": _binary(operator.eq),
    "Greater": _binary(operator.gt),
    "GreaterOrEqual": _binary(operator.ge),
    "Less": _binary(operator.lt),
    "LessOrEqual": _binary(operator.le),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Mod": Operator(of.modulo),
    "Mul": _binary(operator.mul),
    "Or": _binary(torch.logical_or),
    "Pow": _binary(operator.pow),
    "Sub": _binary(operator.sub),
    "Sum": _variadic(operator.add),
    "Where": Operator(of.where),
    "Einsum": Operator(of.einsum),
    "Gemm": Operator(of.gemm),
    "MatMul": _variadic(torch.matmul),
    # of neighbours
    "AveragePool": Operator(average_pool, prepared=True),
    "Conv": Operator(conv),
    "ConvTranspose": Operator(conv_transpose, fixed={"auto_pad": "NOTSET"}),
    "DepthToSpace": Operator(of.depth_to_space),
    "GlobalAveragePool": Operator(of.image_mean),
    "GlobalMaxPool": Operator(of.image_max),
    "MaxPool": Operator(max_pool, fixed={"storage_order": 0}),
    "Pad": Operator(pad, static=(1, 2, 3)),
    "Resize": Operator(
        resize,
        static=(1, 2, 3),
        prepared=True,
        ignored=("extrapolation_value",),
        fixed={"antialias": 0, "keep_aspect_ratio_policy": "stretch"},
    ),
    "SpaceToDepth": Operator(of.space_to_depth),
    # normalisation
    "BatchNormalization": Operator(of.batch_norm, ignored=("momentum", "spatial"), fixed={"training_mode": 0}),
    "GroupNormalization": Operator(of.group_norm, ignored=("stash_type",)),
    "InstanceNormalization": Operator(of.instance_norm),
    "LayerNormalization": Operator(of.layer_norm, ignored=("stash_type",)),
    "LogSoftmax": Operator(of.log_softmax),
    "Softmax": Operator(of.softmax),
    # over axes
    "ReduceL2": _reduction(lambda x, axes, keep: (x * x).sum(axes, keep).sqrt()),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keep)),
    # shapes
    "Concat": Operator(of.concat),
    "ConstantOfShape": Operator(of.constant_of_shape, static=(0,)),
    "Expand": Operator(of.expand, static=(1,)),
    "Flatten": Operator(of.flatten),
    "Gather": Operator(of.gather, static=(1,), prepared=True),
    "Range": Operator(of.number_range, static=(0, 1, 2)),
    "Reshape": Operator(of.reshape, static=(1,)),
    "Shape": Operator(of.shape, of_shape=True),
    "Size": Operator(of.size, of_shape=True),
    "Slice": Operator(of.cut, static=(1, 2, 3, 4)),
    "Split": Operator(of.split, static=(1,)),
    "Squeeze": Operator(of.squeeze, static=(1,)),
    "Tile": Operator(of.tile, static=(1,)),
    "Transpose": Operator(of.transpose),
    "Unsqueeze": Operator(of.unsqueeze, static=(1,)),
}
# What meant another thing before opset 13.
BEFORE_13 = {"LogSoftmax": Operator(of.log_softmax_of_rows), "Softmax": Operator(of.softmax_of_rows)}


def find_operator(op: str, opset: int) -> Operator | None:
    """How a node of this name is run; None where nothing here does."""
    known = OPERATORS | BEFORE_13 if opset < 13 else OPERATORS
    return known.get(op)
