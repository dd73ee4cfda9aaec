"""What many tests share: a tiny model, seconds to build and export, with nothing left at its identity start."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share two cores with engines that spin
os.environ["TASKTOK_EDGE_CACHE"] = ""  # what one test found out is nothing to another

from pathlib import Path
from typing import TypeVar

import pytest
import torch

from tasktok_edge.model.checkpoint import save_checkpoint
from tasktok_edge.model.config import preset
from tasktok_edge.model.tasktok import TaskTok

M = TypeVar("M", bound=torch.nn.Module)


def build_tiny(seed: int = 0, name: str = "tiny") -> TaskTok:
    """A tiny TaskTok of random weights whose parts all do something."""
    torch.manual_seed(seed)
    return shake(TaskTok(preset(name)))


def build_tiny_edge() -> TaskTok:
    """The same of an edge model's structure."""
    return build_tiny(name="tiny-edge")


def shake(module: M) -> M:
    """Move what starts as the identity or as nothing, and choose tokens: every part does something then."""
    for name, parameter in module.named_parameters():
        zero = parameter.detach().abs().max() == 0
        if zero and parameter.ndim >= 2 and "latent_tokens" not in name and "mask_token" not in name:
            torch.nn.init.normal_(parameter, std=0.05)
    if isinstance(module, TaskTok):
        for i, task in enumerate(module.config.tasks):
            order = torch.randperm(module.config.tokenizer.tokens, generator=torch.Generator().manual_seed(i))
            module.switch.start_from_order(task, order.tolist())
    return module.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """What a test left behind does not reach the next: with two threads, sums of gradients may differ in their last bit."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> TaskTok:
    return build_tiny()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(folder, build_tiny(), facts={})
    return folder
