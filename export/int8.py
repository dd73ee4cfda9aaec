"""Int8 layers in the forms that converters know: every tensor goes through its codes, the weights are stored as theirs.

The codes are those that PyTorch's simulation rounds to, so the function is the same up to the order of sums. Activations are
int8 for XNNPACK and Core ML; for x86, whose kernels want it so, they are uint8: the same codes moved by 128.
"""

from typing import Literal, cast

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
import torch.nn.functional as F
from torch import Tensor, nn

from tasktok_edge.export.rewrite import M, sharing_copy
from tasktok_edge.model.int8 import (
    HIGHEST,
    LOWEST,
    ActivationQuantizer,
    FramePixels,
    Int8Conv2d,
    Int8Layer,
    Int8Linear,
    Quantised,
)

# "int8" and "uint8": pairs of quantize and dequantize of such codes. "fake": one operator that rounds, as OpenVINO writes it;
# its converter turns constant weights behind it into codes.
Form = Literal["int8", "uint8", "fake"]
_OPS = torch.ops.quantized_decomposed


class Rounding(nn.Module):
    """An `ActivationQuantizer` in operators."""

    def __init__(self, quantizer: ActivationQuantizer, form: Form) -> None:
        super().__init__()
        shift = 128 if form == "uint8" else 0
        zero = int(quantizer.zero_point) + shift
        self.scheme = (float(quantizer.scale), zero, LOWEST + shift, HIGHEST + shift)
        self.codes = {"int8": torch.int8, "uint8": torch.uint8}.get(form)

    def forward(self, x: Tensor) -> Tensor:
        if self.codes is None:
            return torch.fake_quantize_per_tensor_affine(x, *self.scheme)
        codes = _OPS.quantize_per_tensor(x, *self.scheme, self.codes)
        return cast(Tensor, _OPS.dequantize_per_tensor(codes, *self.scheme, self.codes))

    def by_steps(self, x: Tensor) -> Tensor:
        """The same in plain arithmetic, which no converter takes for a quantizer and leaves out."""
        scale, zero, lowest, highest = self.scheme
        return torch.round(x * (1 / scale)).clamp(lowest - zero, highest - zero) * scale


class Codes(nn.Module):
    """The frame's bytes as codes of pixels in [0, 1]."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, frame: Tensor) -> Tensor:
        if self.form == "fake":  # rounding changes nothing, but tells the engine that these are codes
            return torch.fake_quantize_per_tensor_affine(frame.float() / 255, 1 / 255, 0, 0, 255)
        return cast(Tensor, _OPS.dequantize_per_tensor(frame, 1 / 255, 0, 0, 255, torch.uint8))


class _Layer(nn.Module):
    """What both kinds share. The tensors are parameters: converters leave out those that a function does not read."""

    def __init__(self, layer: Int8Layer, before: nn.Module, form: Form) -> None:
        super().__init__()
        self.input, self.output, self.form = before, Rounding(layer.output, form), form
        self.weight = _constant(layer.rounded() if form == "fake" else layer.codes())
        self.scale = _constant(layer.weight_scale)
        self.zero = _constant(torch.zeros_like(layer.weight_scale, dtype=torch.int32 if form == "fake" else torch.int64))
        self.bias = _constant(layer.rounded_bias())

    def weight_of(self, rows: slice) -> Tensor:
        weight, scale, zero = (_some(t, rows) for t in (self.weight, self.scale, self.zero))
        if self.form == "fake":
            return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -HIGHEST, HIGHEST)
        return cast(Tensor, _OPS.dequantize_per_channel(weight, scale, zero, 0, -HIGHEST, HIGHEST, torch.int8))


class CodedLinear(_Layer):
    """`Int8Linear` on a matrix: kernels of int8 take no stacks of them."""

    def __init__(self, layer: Int8Linear, before: nn.Module, form: Form) -> None:
        super().__init__(layer, before, form)
        self.relu = layer.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x, slice(None))

    def rows(self, x: Tensor, rows: slice) -> Tensor:
        """The outputs `rows` alone."""
        y = F.linear(self.input(x.reshape(-1, x.shape[-1])), self.weight_of(rows), _some(self.bias, rows))
        return cast(Tensor, self.output(F.relu(y) if self.relu else y)).reshape(*x.shape[:-1], -1)


class CodedConv2d(_Layer):
    """`Int8Conv2d`; `apart` where no other layer reads its codes as they are."""

    def __init__(self, layer: Int8Conv2d, before: nn.Module, form: Form, *, apart: bool) -> None:
        super().__init__(layer, before, form)
        self.stride, self.padding, self.relu = layer.stride, layer.padding, layer.relu
        self.apart = apart and form == "fake"

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.input(x), self.weight_of(slice(None)), self.bias, self.stride, self.padding)
        if self.relu:
            y = F.relu(y)
        return self.output.by_steps(y) if self.apart else cast(Tensor, self.output(y))


def in_codes(module: M, form: Form) -> M:
    """Give a copy of a graph, or of a part of one, with every int8 layer in this form."""
    module = sharing_copy(module)
    layers = [m for m in module.modules() if isinstance(m, Int8Linear | Int8Conv2d)]
    read = {layer.input.by for layer in layers if isinstance(layer.input, Quantised)}
    made = {layer: _coded(layer, form, apart=layer.output not in read) for layer in layers}  # what parts share stays one
    if form != "int8" and any(isinstance(layer.input, FramePixels) for layer in layers):
        module.register_module("pixels", Codes(form))
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Int8Linear | Int8Conv2d):
                setattr(parent, name, made[child])
    return module


def _coded(layer: Int8Layer, form: Form, *, apart: bool) -> nn.Module:
    source = layer.input
    if isinstance(source, FramePixels):
        assert isinstance(layer, Int8Conv2d)
        # As int8 the bytes are codes moved by 128; elsewhere `Codes` has said already that they are codes.
        moved = Rounding(ActivationQuantizer(0.0, 1.0), form) if form == "int8" else nn.Identity()
        return CodedConv2d(layer, moved, form, apart=apart)
    if isinstance(layer, Int8Conv2d):
        before = Rounding(source, form) if isinstance(source, ActivationQuantizer) else nn.Identity()
        return CodedConv2d(layer, before, form, apart=apart)
    # Converters look for the rounding right before the linear, and rows are reshaped in between: once more changes nothing.
    return CodedLinear(layer, Rounding(source.by if isinstance(source, Quantised) else source, form), form)


def _constant(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x.detach().clone(), requires_grad=False)


def _some(x: Tensor, rows: slice) -> Tensor:
    return x if rows == slice(None) else x[rows]  # a slice that takes all would hide a constant from partitioners
