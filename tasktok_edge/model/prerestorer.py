"""The pre-restorer: a light convolution net that undoes what it can before the frame is tokenised."""

import torch.nn.functional as F
from torch import Tensor, nn

from tasktok_edge.model.config import PreRestorerConfig, SwinIRConfig
from tasktok_edge.model.swinir import SwinIR


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), the block of EDSR (arXiv 1707.02921): no normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_2(self.relu(self.conv_1(x)))


class PreRestorer(nn.Module):
    """Image (B, 3, S, S) to image (B, 3, S, S): a residual learned on space-to-depth features; starts as the identity."""

    def __init__(self, config: PreRestorerConfig) -> None:
        super().__init__()
        channels = 3 * config.unshuffle**2
        self.unshuffle = config.unshuffle
        self.conv_in = nn.Conv2d(channels, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width) for _ in range(config.blocks)))
        self.conv_out = nn.Conv2d(config.width, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        if self.conv_out.bias is not None:
            nn.init.zeros_(self.conv_out.bias)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(image, self.unshuffle))
        return image + F.pixel_shuffle(self.conv_out(self.blocks(x)), self.unshuffle)


def build_prerestorer(config: PreRestorerConfig | SwinIRConfig, *, image_size: int) -> nn.Module:
    """Build the pre-restorer of this config; without blocks it leaves the image as it is."""
    if isinstance(config, SwinIRConfig):
        return SwinIR(config, image_size=image_size)
    return PreRestorer(config) if config.blocks else nn.Identity()
