"""Layers that compute in int8: static scales, weights per output channel and symmetric, activations per tensor and affine.

In PyTorch the integers are simulated (arXiv 1712.05877): every value that an engine keeps as an integer is rounded to that
integer's grid, in training with the gradient of the identity. Without gradients sums are of whole numbers, so that a layer
gives the very codes that an engine gives; what is left of a difference comes from layers in floating point. Activations are
rounded before *and* behind a layer: XNNPACK and ONNX Runtime take no other form.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOWEST, HIGHEST = -128, 127
# Weights keep to seven bits: x86 without VNNI (AVX2, AMD before Zen 4) sums pairs of uint8 times int8 in 16 bits, which two
# products of 255 * 127 do not fit, and OpenVINO and ONNX Runtime alike answer 15 dB worse there. 2 * 255 * 63 fits.
WEIGHT_HIGHEST = 63
FRAME = "frame"
RANGE_MOMENTUM = 0.02  # of ranges that follow a training


class ActivationQuantizer(nn.Module):
    """x to (clamp(round(x / scale) + zero_point, -128, 127) - zero_point) * scale; one range for the whole tensor.

    `watching` widens the range to all that passes and leaves the values alone: calibration. `following` lets the range
    follow what passes, as training needs it. Otherwise the range stays. `bypassed` lets values pass as they are.
    """

    low: Tensor  # () float32, at most 0: 0 is always exact, ReLU and padding need it
    high: Tensor  # () float32, at least 0

    def __init__(self, low: float | Tensor = 0.0, high: float | Tensor = 0.0) -> None:
        super().__init__()
        self.watching = self.following = self.bypassed = False
        self.register_buffer("low", torch.as_tensor(low).clone())
        self.register_buffer("high", torch.as_tensor(high).clone())

    @property
    def scale(self) -> Tensor:
        """The step between two values, () float32."""
        return ((self.high - self.low) / (HIGHEST - LOWEST)).clamp(min=1e-8)

    @property
    def zero_point(self) -> Tensor:
        """The code of 0, () int32."""
        return (LOWEST - self.low / self.scale).round().clamp(LOWEST, HIGHEST).to(torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        if self.watching or (self.following and self.training):
            self._see(x.detach())
        if self.watching or self.bypassed:
            return x
        return torch.fake_quantize_per_tensor_affine(x.float(), self.scale, self.zero_point, LOWEST, HIGHEST)

    @torch.no_grad()
    def _see(self, x: Tensor) -> None:
        low, high = x.min().float().clamp(max=0), x.max().float().clamp(min=0)
        if self.watching:
            self.low.copy_(torch.minimum(self.low, low))
            self.high.copy_(torch.maximum(self.high, high))
        else:
            self.low.lerp_(low, RANGE_MOMENTUM)
            self.high.lerp_(high, RANGE_MOMENTUM)

    def scaled(self, gain: float) -> "ActivationQuantizer":
        """The quantizer of gain * x, `gain` above 0."""
        return ActivationQuantizer(self.low * gain, self.high * gain)


class Quantised(nn.Identity):
    """In the place of a quantizer where the layer that made the tensor has quantised it: `by` is that layer's `output`."""

    def __init__(self, by: ActivationQuantizer) -> None:
        super().__init__()
        self._by = [by]  # in a list it is no part of this module: its range is kept once

    @property
    def by(self) -> ActivationQuantizer:
        return self._by[0]

    @property
    def scale(self) -> Tensor:
        return self.by.scale


class FramePixels(nn.Identity):
    """In the place of a quantizer where the frame itself is read: its bytes are codes already."""

    @property
    def scale(self) -> Tensor:
        return torch.tensor(1 / 255)


class _Int8Layer(nn.Module):
    """What both kinds of layer share: `weight` (out, …) with `weight_scale` (out,), quantizers before and behind."""

    weight: Tensor
    bias: Any  # torch's own annotation admits None, which no layer here has
    weight_scale: Tensor
    bypassed = False

    def _add_quantizers(self) -> None:
        self.input: ActivationQuantizer | Quantised | FramePixels = ActivationQuantizer()
        self.output = ActivationQuantizer()
        self.register_buffer("weight_scale", torch.ones(len(self.weight)))

    def bypass(self, bypassed: bool) -> None:
        """Compute in floating point from now on, or in int8 again; a layer whose `input` is another's moves that one too."""
        self.bypassed = self.output.bypassed = bypassed
        if isinstance(self.input, ActivationQuantizer):
            self.input.bypassed = bypassed

    @torch.no_grad()
    def scale_weight(self) -> None:
        """Let the scale of each output channel be its largest magnitude / 63."""
        scale = self.weight.abs().flatten(1).amax(1) / WEIGHT_HIGHEST
        # A channel that is all but dead would count its bias in steps so small that 32 bits do not hold them.
        self.weight_scale.copy_(scale.clamp(min=max(float(scale.max()) / 4096, 1e-8)))

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The weight as int8, (out, …)."""
        return (self.weight / self._scale()).round().clamp(-HIGHEST, HIGHEST).to(torch.int8)

    def rounded(self) -> Tensor:
        """The weight on its grid, float; its gradient passes to the weight as if nothing had been rounded."""
        if self.bypassed:
            return self.weight
        if self.training:
            self.scale_weight()
        on_grid = self.codes() * self._scale()
        return self.weight + (on_grid - self.weight).detach() if self.training else on_grid

    def rounded_bias(self) -> Tensor:
        """The bias (out,) as engines add it to their sums of products of integers: on the grid of those sums."""
        if self.bypassed:
            return self.bias
        step = self.input.scale * self.weight_scale
        on_grid = (self.bias / step).round() * step
        return self.bias + (on_grid - self.bias).detach() if self.training else on_grid

    @property
    def whole(self) -> bool:
        """Whether sums are of whole numbers: not where gradients are wanted, nor while ranges are looked for."""
        return not (torch.is_grad_enabled() or self.bypassed or self.output.watching)

    def _count(self, x: Tensor) -> Tensor:
        """Values on the input's grid as float counts of its steps."""
        return (x / self.input.scale).round()

    def _from_sums(self, sums: Tensor, rows: slice) -> Tensor:
        """Sums of products of codes, channels last, as values: put on the output's grid in one rounding, as engines do it."""
        step = self.input.scale * self.weight_scale[rows]
        counts = (sums.round() + (self.bias[rows] / step).round()) * (step / self.output.scale)
        return counts.round() * self.output.scale

    def _scale(self) -> Tensor:
        return self.weight_scale.reshape(-1, *[1] * (self.weight.ndim - 1))


class Int8Linear(_Int8Layer, nn.Linear):
    """`nn.Linear` in int8, and the ReLU behind it where there is one."""

    def __init__(self, n_in: int, n_out: int, *, relu: bool = False) -> None:
        nn.Linear.__init__(self, n_in, n_out)
        self.relu = relu
        self._add_quantizers()

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x, slice(None))

    def rows(self, x: Tensor, rows: slice) -> Tensor:
        """The outputs `rows` alone."""
        x = self.input(x)
        if self.whole:
            y = self._from_sums(F.linear(self._count(x), self.codes()[rows].float()), rows)
        else:
            y = F.linear(x, self.rounded()[rows], self.rounded_bias()[rows])
        return cast(Tensor, self.output(F.relu(y) if self.relu else y))


class Int8Conv2d(_Int8Layer, nn.Conv2d):
    """`nn.Conv2d` in int8, batch normalisation folded in, and the ReLU behind it where there is one."""

    def __init__(self, like: nn.Conv2d, *, relu: bool) -> None:
        kernel, stride, padding = like.kernel_size, like.stride, like.padding
        nn.Conv2d.__init__(self, like.in_channels, like.out_channels, kernel, stride, padding)  # type: ignore[arg-type]
        self.relu = relu
        self._add_quantizers()

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        if self.whole:
            sums = F.conv2d(self._count(x), self.codes().float(), None, self.stride, self.padding)
            y = self._from_sums(sums.movedim(1, -1), slice(None)).movedim(-1, 1)
        else:
            y = F.conv2d(x, self.rounded(), self.rounded_bias(), self.stride, self.padding)
        return cast(Tensor, self.output(F.relu(y) if self.relu else y))


Int8Layer = Int8Linear | Int8Conv2d


def int8_layers(model: nn.Module) -> dict[str, Int8Layer]:
    """The layers of `model` that compute in int8, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Layer)}


def build_int8(model: nn.Module, inputs: Mapping[str, str]) -> None:
    """Replace layers of `model` by their int8 form, in place and without weights; every batch normalisation is folded away.

    `inputs` names each such layer and says where its input is quantised: "own", by a quantizer of its own; "as NAME", by that
    of another layer that reads the same tensor; "after NAME", by the layer that made it; "frame", by the camera.
    """
    for name, norm, relu in conv_groups(model):
        conv = cast(nn.Conv2d, model.get_submodule(name))
        if name in inputs:
            model.set_submodule(name, Int8Conv2d(conv, relu=relu is not None))
            if relu is not None:
                model.set_submodule(relu, nn.Identity())
        elif norm is not None:
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels, device=conv.weight.device))
        if norm is not None:
            model.set_submodule(norm, nn.Identity())
    for name in inputs:
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            relu = f"{name.rpartition('.')[0]}.act" if name.endswith(".fc") else None
            fused = relu is not None and isinstance(model.get_submodule(relu), nn.ReLU)
            model.set_submodule(name, Int8Linear(layer.in_features, layer.out_features, relu=fused))
            if relu is not None and fused:
                model.set_submodule(relu, nn.Identity())
    layers = int8_layers(model)
    for name, source in inputs.items():
        kind, _, other = source.partition(" ")
        if kind == "as":
            layers[name].input = layers[other].input
        elif kind == FRAME:
            layers[name].input = FramePixels()
        elif kind == "after":
            layers[name].input = Quantised(layers[other].output)


def conv_groups(model: nn.Module) -> list[tuple[str, str | None, str | None]]:
    """Every convolution with the batch normalisation and the ReLU right behind it, by name."""
    found: list[tuple[str, str | None, str | None]] = []
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not isinstance(module, nn.Conv2d):
            continue
        parent, _, own = name.rpartition(".")
        beside = {"conv_1": (None, "relu"), "conv_2": ("bn_2", None), "0": ("1", "2")}.get(own, (None, None))
        norm, relu = (f"{parent}.{part}" if part is not None else None for part in beside)
        norm = norm if norm is not None and isinstance(modules.get(norm), nn.BatchNorm2d | nn.Identity) else None
        relu = relu if relu is not None and isinstance(modules.get(relu), nn.ReLU | nn.Identity) else None
        found.append((name, norm, relu))
    return found
