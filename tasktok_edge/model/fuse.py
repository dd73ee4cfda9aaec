"""Layers that meet at an image become one, and the image between them is never made: the same function, by other sums.

- The pre-restorer ends with a convolution whose result is added to the frame; the encoder begins with a convolution of that
  sum. Both are linear, so the patches' rows are one convolution of the frame plus one of the pre-restorer's features.
- The decoder ends with a linear map to the pixels of a patch; a task network whose stem reads patches begins with a linear map
  of those. So the network's first features are one linear map of the decoder's: what only wants the answer decodes no pixels.
"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tasktok_edge.model.config import PreRestorerConfig
from tasktok_edge.model.prerestorer import PreRestorer, ResidualBlock

if TYPE_CHECKING:
    from tasktok_edge.model.task_nets import Backbone
    from tasktok_edge.model.tasktok import TaskTok


def space_to_depth(frame: Tensor, side: int) -> Tensor:
    """Frame (B, H, W, C) to (B, side*side*C, H/side, W/side), channels in the order (row, column, colour)."""
    b, h, w, c = frame.shape
    # Four axes and not six: engines have a fast way for those.
    blocks = frame.reshape(b * h // side, side, w // side, side * c).permute(0, 2, 1, 3)
    return blocks.reshape(b, h // side, w // side, side * side * c).permute(0, 3, 1, 2)


def depth_to_space(rows: Tensor, grid: int, side: int) -> Tensor:
    """Rows (B, grid*grid, side*side*C) back to (B, C, grid*side, grid*side)."""
    b, _, d = rows.shape
    cells = rows.reshape(b * grid, grid, side, d // side).permute(0, 2, 1, 3)
    return cells.reshape(b, grid * side, grid * side, d // side**2).permute(0, 3, 1, 2)


class Front(nn.Module):
    """Pre-restorer and patch embedding: image (B, 3, S, S), nominal [0, 1], to the patches' rows as a grid (B, D, G, G)."""

    def __init__(self, config: PreRestorerConfig, *, patch: int, width: int) -> None:
        super().__init__()
        channels, ratio = 3 * config.unshuffle**2, patch // config.unshuffle
        self.unshuffle = config.unshuffle
        self.conv_in = nn.Conv2d(channels, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width) for _ in range(config.blocks)))
        self.image_embed = nn.Conv2d(channels, width, ratio, ratio)
        self.feature_embed = nn.Conv2d(config.width, width, ratio + 2, ratio, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.embed(space_to_depth(image.permute(0, 2, 3, 1), self.unshuffle))

    def embed(self, x: Tensor) -> Tensor:
        """What `space_to_depth` made of the image to the grid of rows."""
        return self.image_embed(x) + self.feature_embed(self.blocks(self.conv_in(x)))


class Readout(nn.Module):
    """The decoder's features (B, G*G, D) to the first features of a task network, (B, C, cells*G, cells*G)."""

    def __init__(self, n_in: int, n_out: int, *, grid: int, cells: int) -> None:
        super().__init__()
        self.grid, self.cells = grid, cells
        self.fc = nn.Linear(n_in, n_out * cells**2)
        self.act = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        return depth_to_space(self.act(self.fc(features)), self.grid, self.cells)


def fuse(model: "TaskTok") -> "TaskTok":
    """Give the model with every seam fused that can be, in evaluation mode; the model itself where there is none."""
    from tasktok_edge.model.tasktok import rebuilt  # where what is here is put into models

    config = model.config
    if not config.can_fuse or config.int8:
        return model
    with torch.no_grad():
        state = {name: value.detach() for name, value in model.state_dict().items()}
        if config.fuses_front:
            _fuse_front(model, state)
        for task in model.task_nets:
            if config.fuses_stem(task):
                _fuse_stem(model, task, state)
    return rebuilt(model, {"fused": True}, state)


def _fuse_front(model: "TaskTok", state: dict[str, Tensor]) -> None:
    pre, embed = cast(PreRestorer, model.prerestorer), cast(nn.Conv2d, model.tokenizer.encoder.patch_embed)
    side, out = pre.unshuffle, pre.conv_out
    width, ratio = embed.out_channels, embed.kernel_size[0] // pre.unshuffle
    # (D, C, ratio, side, ratio, side): the patch embedding as it reads the blocks of the pre-restorer's grid
    blocks = embed.weight.reshape(width, 3, ratio, side, ratio, side)
    assert out.bias is not None and embed.bias is not None
    # A convolution of a convolution: each of the ratio x ratio places reads 3x3 places of the features around it.
    by_channel = blocks.permute(0, 2, 4, 1, 3, 5).reshape(width, ratio, ratio, -1)  # the channels as `pixel_shuffle` has them
    kernel = torch.zeros(width, out.in_channels, ratio + 2, ratio + 2)
    for y in range(ratio):
        for x in range(ratio):
            kernel[:, :, y : y + 3, x : x + 3] += torch.einsum("dc,cwyx->dwyx", by_channel[:, y, x], out.weight)
    bias = embed.bias + by_channel.sum((1, 2)) @ out.bias
    for name in [n for n in state if n.startswith("prerestorer.") or n.startswith("tokenizer.encoder.patch_embed.")]:
        value = state.pop(name)
        if name.startswith("prerestorer.conv_in.weight"):
            n = len(value)  # its channels from (colour, row, column) to those of `space_to_depth`
            value = value.reshape(n, 3, side, side, 3, 3).permute(0, 2, 3, 1, 4, 5).reshape(n, -1, 3, 3)
        if name.startswith(("prerestorer.conv_in.", "prerestorer.blocks.")):
            state[name.replace("prerestorer.", "tokenizer.encoder.patch_embed.")] = value
    here = "tokenizer.encoder.patch_embed"
    state[f"{here}.image_embed.weight"] = blocks.permute(0, 3, 5, 1, 2, 4).reshape(width, -1, ratio, ratio)
    state[f"{here}.image_embed.bias"] = bias
    state[f"{here}.feature_embed.weight"] = kernel
    state[f"{here}.feature_embed.bias"] = torch.zeros(width)


def _fuse_stem(model: "TaskTok", task: str, state: dict[str, Tensor]) -> None:
    decoder, patch = model.tokenizer.decoder, model.config.tasks[task].patch
    backbone = cast("Backbone", model.task_nets[task].get_submodule("backbone"))
    conv, norm = (backbone.stem.get_submodule(name) for name in ("0.0", "0.1"))
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None and norm.running_mean is not None
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = conv.weight * gain[:, None, None, None]  # (C, colour, row, column)
    cells = decoder.patch // patch
    # The pixels of a patch, (cells, row, cells, column, colour): 2 x - 1 of them is what the stem reads.
    split = (cells, patch, cells, patch, 3)
    pixels, offset = 2 * decoder.ffn.weight.reshape(*split, -1), 2 * decoder.ffn.bias.reshape(split) - 1
    fused = torch.einsum("kcyx,aybxcd->abkd", weight, pixels)
    bias = torch.einsum("kcyx,aybxc->abk", weight, offset) + (norm.bias - norm.running_mean * gain)
    stem = f"task_nets.{task}.backbone.stem"
    for name in [n for n in state if n.startswith(f"{stem}.")]:
        del state[name]
    state[f"{stem}.fc.weight"], state[f"{stem}.fc.bias"] = fused.flatten(0, 2), bias.flatten()
