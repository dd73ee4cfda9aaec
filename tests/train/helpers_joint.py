"""TaskTok's own training in small: a folder to start from, trees of pictures, and runs of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from tasktok_edge.data.official import TASKS
from tasktok_edge.model.checkpoint import save_checkpoint
from tasktok_edge.model.config import SwinIRConfig, TaskConfig, TaskTokConfig, TokenizerConfig, ViTConfig
from tasktok_edge.model.faster_rcnn import FasterRCNN, RegionHeads
from tasktok_edge.model.official.infer import NETS, VOC
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.train.joint_data import JointData, open_data
from tasktok_edge.train.joint_recipe import JointRecipe, joint_recipe
from tasktok_edge.train.orders import write_orders
from tasktok_edge.train.search import Order
from tests.data.helpers_trees import WNIDS, write_imagenet, write_voc

TOKENS = 6
LABELS = {"cls": WNIDS, "det": VOC, "seg": ("background", *VOC)}
CONFIG = TaskTokConfig(
    preset="tasktok-6",
    image_size=64,
    prerestorer=SwinIRConfig(width=8, depths=(1,), heads=2, head_width=8),
    tokenizer=TokenizerConfig(
        image_size=32,
        patch=8,
        tokens=TOKENS,
        channels=10,
        encoder=ViTConfig(width=16, layers=1, heads=2),
        decoder=ViTConfig(width=16, layers=1, heads=2),
    ),
    refiner=ViTConfig(width=16, layers=1, heads=2),
    tasks={t: TaskConfig(kind=t, labels=LABELS[t], net=NETS[t], framing="pad" if t == "det" else "windows") for t in TASKS},
    resize="bicubic",
)


def quick(**changes: object) -> JointRecipe:
    """The recipe for trying, with other numbers."""
    return joint_recipe("tasktok-mini").model_copy(update=changes)


def build(seed: int = 0) -> tuple[TaskTok, nn.ModuleDict]:
    """A small model of random weights that show something, and its teachers, which are the same networks."""
    model = deepcopy(_model(seed))
    return model, deepcopy(model.task_nets)


@cache
def _model(seed: int) -> TaskTok:
    torch.manual_seed(seed)
    model = TaskTok(CONFIG)
    nn.init.normal_(model.refiner.conv_out.weight, std=0.1)
    nn.init.normal_(model.tokenizer.decoder.ffn.weight, std=0.1)
    for module in model.task_nets.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # else nothing of the picture reaches the last layers
    detector = model.task_nets["det"]
    assert isinstance(detector, FasterRCNN)
    detector.min_size, detector.max_size = joint_recipe("tasktok-mini").detector_sides
    return model


@contextmanager
def light_detectors() -> Iterator[None]:
    """Detectors built meanwhile have a box head of 16 for 1024, which is most of all weights and of the time."""
    before = RegionHeads.__init__.__defaults__
    RegionHeads.__init__.__defaults__ = (16,)  # type: ignore[misc]
    try:
        yield
    finally:
        RegionHeads.__init__.__defaults__ = before  # type: ignore[misc]


def write_init(folder: Path) -> Path:
    """A checkpoint whose switches nothing has moved, with teachers that are not its networks: L1 has a kink at 0."""
    model, oracles = build()
    with torch.no_grad():
        for p in oracles.parameters():
            p *= 1.02
    save_checkpoint(folder, model, oracles=oracles, facts={}, exact=True)
    return folder


def write_trees(root: Path) -> Path:
    """`root`/imagenet and `root`/voc."""
    write_imagenet(root / "imagenet")
    write_voc(root / "voc")
    return root


def orders() -> dict[str, list[int]]:
    return {task: torch.randperm(TOKENS, generator=torch.Generator().manual_seed(i)).tolist() for i, task in enumerate(TASKS)}


def write_order_file(path: Path) -> Path:
    write_orders(path, {task: Order(row, TOKENS, [], 1.0, 0.0) for task, row in orders().items()}, facts={})
    return path


def data(trees: Path) -> JointData:
    return open_data(trees / "imagenet", trees / "voc", config=CONFIG, seed=7777, degradation="mix-b", paired={})


def batch(task: str, n: int = 4, seed: int = 0) -> dict[str, Any]:
    """A batch of noise with labels, the pictures of det unpadded and with two boxes each."""
    random = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {key: torch.rand(n, 3, 64, 64, generator=random) for key in ("clean", "degraded")}
    match task:
        case "cls":
            found["label"] = torch.arange(n) % 3
        case "seg":
            found["semantic"] = torch.randint(0, 21, (n, 64, 64), generator=random)
            found["semantic"][:, : 5 + seed] = 255
        case "det":
            found["boxes"] = [torch.tensor([[2.0, 3, 30, 40], [20, 10, 60, 50]]) for _ in range(n)]
            found["box_labels"] = [torch.tensor([1 + i, 20]) for i in range(n)]
            found["valid_size"] = torch.full((n, 2), 64)
    return found


def alone() -> Accelerator:
    return Accelerator(mixed_precision="no", cpu=True)
