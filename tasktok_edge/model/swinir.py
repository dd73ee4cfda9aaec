"""SwinIR (arXiv 2108.10257) as TaskTok's pre-restorer: space-to-depth, four groups of Swin blocks, back by nearest + conv."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasktok_edge.model.config import SwinIRConfig

MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, subtracted at the start and added at the end
MASKED = -100.0  # added to the logits of pixels that a cyclic shift brought together


class WindowAttention(nn.Module):
    """Attention inside windows of `side` x `side` pixels, with a learned bias for each relative position."""

    index: Tensor

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        self.register_buffer("index", relative_index(side), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (W, side*side, D), mask (W, side*side, side*side) or None, to (W, side*side, D)."""
        w, n, d = x.shape
        q, k, v = (t.reshape(w, n, self.heads, -1).transpose(1, 2) for t in self.qkv(x).split(d, -1))
        bias = self.bias() if mask is None else self.bias() + mask[:, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(w, -1, -1, -1))
        return self.proj(y.transpose(1, 2).reshape(w, n, d))

    def bias(self) -> Tensor:
        """What every window adds to its logits, (1, heads, side*side, side*side)."""
        n = self.index.shape[0]
        return self.relative_position_bias_table[self.index.flatten()].reshape(1, n, n, self.heads).permute(0, 3, 1, 2)


class SwinBlock(nn.Module):
    """Window attention and MLP, each behind a LayerNorm; every second block shifts the grid by half a window."""

    mask: Tensor | None

    def __init__(self, config: SwinIRConfig, *, grid: int, shift: int) -> None:
        super().__init__()
        self.grid, self.shift, self.side = grid, shift, config.window
        hidden = int(config.width * config.mlp_ratio)
        self.norm_1 = nn.LayerNorm(config.width)
        self.attn = WindowAttention(config.width, config.heads, config.window)
        self.norm_2 = nn.LayerNorm(config.width)
        self.fc_1 = nn.Linear(config.width, hidden)
        self.fc_2 = nn.Linear(hidden, config.width)
        mask = shifted_mask(grid, config.window, shift) if shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, G, G, D) to the same shape."""
        b, g, side = x.shape[0], self.grid, self.side
        y = _rolled(self.norm_1(x), self.shift)
        y = y.reshape(b * g // side, side, g // side, side, -1).transpose(1, 2).reshape(-1, side * side, x.shape[3])
        mask = self.mask if self.mask is None or b == 1 else self.mask.repeat(b, 1, 1)
        y = self.attn(y, mask)
        y = y.reshape(b * g // side, g // side, side, side, -1).transpose(1, 2).reshape(b, g, g, -1)
        x = x + _rolled(y, g - self.shift if self.shift else 0)
        return x + self.fc_2(F.gelu(self.fc_1(self.norm_2(x))))


class SwinGroup(nn.Module):
    """Swin blocks, then a 3x3 convolution, around a residual (RSTB in the paper)."""

    def __init__(self, config: SwinIRConfig, depth: int, *, grid: int) -> None:
        super().__init__()
        shifts = [0 if i % 2 == 0 else config.window // 2 for i in range(depth)]
        self.blocks = nn.Sequential(*(SwinBlock(config, grid=grid, shift=shift) for shift in shifts))
        self.conv = nn.Conv2d(config.width, config.width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, G, G, D) to the same shape."""
        return x + self.conv(self.blocks(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Upsample(nn.Module):
    """Nearest x2, then a 3x3 convolution: (B, C, H, W) to (B, C', 2H, 2W)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class SwinIR(nn.Module):
    """Image (B, 3, S, S), nominal [0, 1], to image (B, 3, S, S), not clamped. S is fixed, a multiple of unshuffle x window."""

    mean: Tensor

    def __init__(self, config: SwinIRConfig, *, image_size: int) -> None:
        super().__init__()
        width, head = config.width, config.head_width
        self.unshuffle = config.unshuffle
        grid = image_size // config.unshuffle
        self.conv_first = nn.Conv2d(3 * config.unshuffle**2, width, 3, padding=1)
        self.patch_norm = nn.LayerNorm(width)
        self.groups = nn.Sequential(*(SwinGroup(config, depth, grid=grid) for depth in config.depths))
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = nn.Conv2d(width, width, 3, padding=1)
        self.conv_before_upsample = nn.Conv2d(width, head, 3, padding=1)
        self.ups = nn.ModuleList(Upsample(head, head) for _ in range(config.unshuffle.bit_length() - 1))
        self.conv_hr = nn.Conv2d(head, head, 3, padding=1)
        self.conv_last = nn.Conv2d(head, 3, 3, padding=1)
        self.register_buffer("mean", torch.tensor(MEAN, device="cpu").reshape(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        first = self.conv_first(F.pixel_unshuffle(image - self.mean, self.unshuffle))
        x = self.groups(self.patch_norm(first.permute(0, 2, 3, 1)))
        x = self.conv_after_body(self.norm(x).permute(0, 3, 1, 2)) + first
        x = F.leaky_relu(self.conv_before_upsample(x), 0.01)
        for up in self.ups:
            x = F.leaky_relu(up(x), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2)) + self.mean


def relative_index(side: int) -> Tensor:
    """Row of the bias table for each pair of pixels of a window, (side*side, side*side) int64."""
    y, x = (t.flatten() for t in torch.meshgrid(*[torch.arange(side, device="cpu")] * 2, indexing="ij"))
    return (y[:, None] - y + side - 1) * (2 * side - 1) + (x[:, None] - x + side - 1)


def shifted_mask(grid: int, side: int, shift: int) -> Tensor:
    """MASKED where two pixels of a shifted window are no neighbours in the image, else 0: (windows, side*side, side*side)."""
    band = torch.zeros(grid, device="cpu")
    band[grid - side : grid - shift], band[grid - shift :] = 1, 2
    region = (3 * band[:, None] + band).reshape(grid // side, side, grid // side, side).transpose(1, 2).reshape(-1, side * side)
    return (region[:, :, None] != region[:, None]) * MASKED


def _rolled(x: Tensor, shift: int) -> Tensor:
    """x (B, G, G, D) moved up and left by `shift`, around the border; slices, for not every runtime can roll."""
    if not shift:
        return x
    x = torch.cat([x[:, shift:], x[:, :shift]], 1)
    return torch.cat([x[:, :, shift:], x[:, :, :shift]], 2)
