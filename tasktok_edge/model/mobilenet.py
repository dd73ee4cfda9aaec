"""MobileNetV3-Large without its classifier (arXiv 1905.02244): the trunk of TaskTok's segmenter and detector."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Norm = Literal["batch", "frozen"]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation by stored statistics alone: four buffers, nothing to train, the same in both modes."""

    weight: Tensor  # (C,), as are all four
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight * (self.running_var + self.eps).rsqrt()
        offset = self.bias - self.running_mean * gain
        return x * gain[:, None, None] + offset[:, None, None]


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """The layer of that kind. The epsilons differ, as they do in the official networks."""
    if norm == "frozen":
        return FrozenBatchNorm2d(channels, eps=1e-5)
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class SqueezeExcite(nn.Module):
    """Weigh each channel by a number in [0, 1] that all of them decide together (arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.relu = nn.ReLU()
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * self.gate(self.fc2(self.relu(self.fc1(mean))))


def _conv(
    n_in: int,
    n_out: int,
    norm: Norm,
    activation: type[nn.Module] | None,
    *,
    kernel: int = 1,
    stride: int = 1,
    dilation: int = 1,
) -> nn.Sequential:
    """Convolution, normalisation and, unless it is None, activation; depthwise where the kernel is wider than 1 pixel."""
    groups = n_in if kernel > 1 and n_in == n_out else 1
    padding = (kernel - 1) // 2 * dilation
    conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, dilation=dilation, groups=groups, bias=False)
    return nn.Sequential(conv, normalisation(norm, n_out), *([activation()] if activation else []))


class Row(NamedTuple):
    """One line of the paper's table 1. `squeezed` is the width inside the squeeze-and-excite layer, 0 where there is none."""

    kernel: int
    expanded: int
    n_out: int
    squeezed: int
    activation: type[nn.Module]
    stride: int


LARGE = (
    Row(3, 16, 16, 0, nn.ReLU, 1),
    Row(3, 64, 24, 0, nn.ReLU, 2),
    Row(3, 72, 24, 0, nn.ReLU, 1),
    Row(5, 72, 40, 24, nn.ReLU, 2),
    Row(5, 120, 40, 32, nn.ReLU, 1),
    Row(5, 120, 40, 32, nn.ReLU, 1),
    Row(3, 240, 80, 0, nn.Hardswish, 2),
    Row(3, 200, 80, 0, nn.Hardswish, 1),
    Row(3, 184, 80, 0, nn.Hardswish, 1),
    Row(3, 184, 80, 0, nn.Hardswish, 1),
    Row(3, 480, 112, 120, nn.Hardswish, 1),
    Row(3, 672, 112, 168, nn.Hardswish, 1),
    Row(5, 672, 160, 168, nn.Hardswish, 2),
    Row(5, 960, 160, 240, nn.Hardswish, 1),
    Row(5, 960, 160, 240, nn.Hardswish, 1),
)
STEM, TOP = 16, 960  # channels of the first and of the last layer
LAST_STRIDED = 13  # the layer of the trunk that reaches stride 32: LARGE's 13th row, after the stem
LAST_STRIDED_CHANNELS = LARGE[LAST_STRIDED - 1].n_out


class InvertedResidual(nn.Module):
    """Widen, filter each channel, weigh the channels, narrow; a shortcut where the shape stays."""

    def __init__(self, n_in: int, row: Row, norm: Norm, *, dilation: int) -> None:
        super().__init__()
        stride = row.stride if dilation == 1 else 1
        wide = row.expanded
        layers: list[nn.Module] = [] if wide == n_in else [_conv(n_in, wide, norm, row.activation)]
        layers.append(_conv(wide, wide, norm, row.activation, kernel=row.kernel, stride=stride, dilation=dilation))
        if row.squeezed:
            layers.append(SqueezeExcite(wide, row.squeezed))
        layers.append(_conv(wide, row.n_out, norm, None))
        self.block = nn.Sequential(*layers)
        self.shortcut = stride == 1 and n_in == row.n_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.shortcut else self.block(x)


def mobilenet_v3_large(norm: Norm, *, dilated: bool = False) -> nn.Sequential:
    """Build the trunk: a normalised image (B, 3, H, W) to (B, 960, H/32, W/32).

    Layer 0 is the stem, 1 to 15 are the table's rows, 16 widens to 960 channels. `dilated`: the last three rows see as far
    without striding, and the result has stride 16.
    """
    layers: list[nn.Module] = [_conv(3, STEM, norm, nn.Hardswish, kernel=3, stride=2)]
    n_in = STEM
    for i, row in enumerate(LARGE, start=1):
        layers.append(InvertedResidual(n_in, row, norm, dilation=2 if dilated and i >= LAST_STRIDED else 1))
        n_in = row.n_out
    return nn.Sequential(*layers, _conv(n_in, TOP, norm, nn.Hardswish))
