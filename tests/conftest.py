"""What many tests share: a tiny model, seconds to build and export, with nothing left at its identity start."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share two cores with engines that spin

from pathlib import Path

import pytest
import torch

from tasktok_edge.model.checkpoint import save_checkpoint
from tasktok_edge.model.config import preset
from tasktok_edge.model.tasktok import TaskTok


def build_tiny(seed: int = 0) -> TaskTok:
    """A tiny TaskTok of random weights whose parts all do something."""
    torch.manual_seed(seed)
    model = TaskTok(preset("tiny")).eval()
    for layer in (model.refiner.conv_out, model.prerestorer.conv_out, model.tokenizer.decoder.ffn):
        assert isinstance(layer, torch.nn.Module)
        torch.nn.init.normal_(layer.weight, std=0.05)  # type: ignore[arg-type]
    for i, task in enumerate(model.config.tasks):
        order = torch.randperm(model.config.tokenizer.tokens, generator=torch.Generator().manual_seed(i))
        model.switch.start_from_order(task, order.tolist())
    return model.requires_grad_(False)


@pytest.fixture
def tiny() -> TaskTok:
    return build_tiny()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(folder, build_tiny(), facts={})
    return folder
