"""What can be cut out of a model: every head, hidden unit and channel, and the rows and columns of weights that are its own."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasktok_edge.model.prerestorer import PreRestorer
from tasktok_edge.model.task_nets import Backbone, Classifier, Detector, Segmenter
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.model.vit import Block


@dataclass(frozen=True)
class Axis:
    """A dimension of a tensor that is counted in units of a group.

    `copies` runs of the group stand one behind the other (queries, keys and values: 3), each unit `width` long (of a head).
    """

    tensor: str
    dim: int
    group: str
    copies: int = 1
    width: int = 1
    made: bool = False  # this tensor makes the unit (a row of weights) and does not read it (a column)

    def places(self, units: Tensor, length: int) -> Tensor:
        """The indices along `dim`, of that `length`, that belong to `units` (n,)."""
        run = length // self.copies
        inside = (units[:, None] * self.width + torch.arange(self.width)).flatten()
        return torch.cat([inside + run * i for i in range(self.copies)])


def axes_of(model: TaskTok) -> list[Axis]:
    """Every axis of `model` that slimming can shorten, in the order of the data."""
    found: list[Axis] = []
    for name, module in model.named_modules():
        if isinstance(module, PreRestorer):
            found += _prerestorer(name, module)
        elif isinstance(module, Block):
            found += _block(name, module)
        elif isinstance(module, Classifier | Segmenter | Detector):
            found += _task_net(name, module)
    return found


def sizes(model: TaskTok, axes: list[Axis]) -> dict[str, int]:
    """How many units each group has."""
    state = model.state_dict()
    return {a.group: state[a.tensor].shape[a.dim] // (a.copies * a.width) for a in axes}


def _makes(layer: str, group: str, *, bias: bool = True, copies: int = 1, width: int = 1) -> Iterator[Axis]:
    yield Axis(f"{layer}.weight", 0, group, copies, width, made=True)
    if bias:
        yield Axis(f"{layer}.bias", 0, group, copies, width, made=True)


def _reads(layer: str, group: str, width: int = 1) -> Iterator[Axis]:
    yield Axis(f"{layer}.weight", 1, group, width=width)


def _normed(conv: str, norm: str, group: str) -> Iterator[Axis]:
    """A convolution without bias, and the batch normalisation behind it."""
    yield from _makes(conv, group, bias=False)
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield Axis(f"{norm}.{part}", 0, group, made=True)


def _block(name: str, block: Block) -> Iterator[Axis]:
    width = block.attn.inner // block.attn.heads
    yield from _makes(f"{name}.attn.qkv", f"{name}/heads", copies=3, width=width)
    yield from _reads(f"{name}.attn.out_proj", f"{name}/heads", width)
    yield from _makes(f"{name}.fc", f"{name}/hidden")
    yield from _reads(f"{name}.proj", f"{name}/hidden")


def _prerestorer(name: str, module: PreRestorer) -> Iterator[Axis]:
    stream = f"{name}/stream"  # the blocks add to it: one choice of channels for all
    yield from _makes(f"{name}.conv_in", stream)
    for i in range(len(module.blocks)):
        inner, block = f"{name}/blocks.{i}", f"{name}.blocks.{i}"
        yield from _reads(f"{block}.conv_1", stream)
        yield from _makes(f"{block}.conv_1", inner)
        yield from _reads(f"{block}.conv_2", inner)
        yield from _makes(f"{block}.conv_2", stream)
    yield from _reads(f"{name}.conv_out", stream)


def _task_net(name: str, net: nn.Module) -> Iterator[Axis]:
    assert isinstance(net, Classifier | Segmenter | Detector)
    yield from _backbone(name, net.backbone)
    stages = len(net.backbone.stages)
    if isinstance(net, Classifier):
        yield from _reads(f"{name}.head", f"{name}/stage.{stages - 1}")
        return
    summed, smooth = f"{name}/lateral", f"{name}/smooth"
    for i in range(stages):
        yield from _reads(f"{name}.pyramid.lateral.{i}", f"{name}/stage.{i}")
        yield from _makes(f"{name}.pyramid.lateral.{i}", summed)
    yield from _reads(f"{name}.pyramid.smooth.0", summed)
    yield from _normed(f"{name}.pyramid.smooth.0", f"{name}.pyramid.smooth.1", smooth)
    if isinstance(net, Segmenter):
        yield from _reads(f"{name}.head", smooth)
        return
    yield from _reads(f"{name}.tower.0", smooth)
    yield from _normed(f"{name}.tower.0", f"{name}.tower.1", f"{name}/tower")
    for head in ("heat", "sides"):
        yield from _reads(f"{name}.{head}", f"{name}/tower")


def _backbone(name: str, backbone: Backbone) -> Iterator[Axis]:
    here, stream = f"{name}.backbone", f"{name}/stage.0"
    stems = len(list(backbone.stem.children()))
    if stems == 2:
        yield from _normed(f"{here}.stem.0.0", f"{here}.stem.0.1", f"{name}/stem")
        yield from _reads(f"{here}.stem.1.0", f"{name}/stem")
    yield from _normed(f"{here}.stem.{stems - 1}.0", f"{here}.stem.{stems - 1}.1", stream)
    for i in range(len(backbone.stages)):
        stage, before, inner = f"{here}.stages.{i}", stream, f"{name}/stage.{i}/inner"
        stream = f"{name}/stage.{i}"
        yield from _reads(f"{stage}.conv_1.0", before)
        yield from _normed(f"{stage}.conv_1.0", f"{stage}.conv_1.1", inner)
        yield from _reads(f"{stage}.conv_2", inner)
        yield from _normed(f"{stage}.conv_2", f"{stage}.bn_2", stream)
        if i:
            yield from _reads(f"{stage}.shortcut.0", before)
            yield from _normed(f"{stage}.shortcut.0", f"{stage}.shortcut.1", stream)
