"""Fused equals unfused: the image between two linear layers is never made, and nothing else changes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tasktok_edge.model.config import preset
from tasktok_edge.model.fuse import Front, Readout, depth_to_space, fuse, space_to_depth
from tasktok_edge.model.tasktok import TaskTok
from tests.conftest import shake

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}


def unlike_the_start(name: str) -> TaskTok:
    """A model of this preset in which no bias, gain or running statistic is what a new module has."""
    torch.manual_seed(0)
    model = shake(TaskTok(preset(name)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            for values, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0)):
                nn.init.uniform_(values, low, high)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.bias, -1.0, 1.0)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


@pytest.mark.parametrize("name", ["tiny", "tiny-edge"])
def test_fused_equals_unfused(name: str) -> None:
    model = unlike_the_start(name)
    fused, image = fuse(model), torch.rand(2, 3, 32, 32)
    assert isinstance(fused.tokenizer.encoder.patch_embed, Front)
    torch.testing.assert_close(fused.encode(image), model.encode(image), **TOLERANCE)
    for task in model.config.tasks:
        stem = fused.task_nets[task].get_submodule("backbone.stem")
        assert isinstance(stem, Readout) == (name == "tiny-edge")
        torch.testing.assert_close(fused.restore(image, task), model.restore(image, task), **TOLERANCE)
        torch.testing.assert_close(fused(image, task), model(image, task), **TOLERANCE)


def test_what_cannot_be_fused_is_left_alone() -> None:
    model = TaskTok(
        preset("tiny").model_copy(update={"prerestorer": preset("tiny").prerestorer.model_copy(update={"blocks": 0})})
    )
    assert fuse(model) is model
    fused = fuse(TaskTok(preset("tiny-edge")).eval())
    assert fuse(fused) is fused


def test_blocks_are_those_of_pixel_unshuffle_in_another_order() -> None:
    frame = torch.randint(0, 256, (2, 12, 8, 3), dtype=torch.uint8)
    wanted = F.pixel_unshuffle(frame.permute(0, 3, 1, 2).float(), 4).reshape(2, 3, 4, 4, 3, 2)
    assert torch.equal(space_to_depth(frame, 4).float(), wanted.permute(0, 2, 3, 1, 4, 5).reshape(2, 48, 3, 2))
    image = torch.rand(2, 5, 6, 6)
    rows = space_to_depth(image.permute(0, 2, 3, 1), 2).flatten(2).transpose(1, 2)
    assert torch.equal(depth_to_space(rows, 3, 2), image)
