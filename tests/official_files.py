"""Official-layout checkpoints for tests: file names, key names, shapes and dtypes as published, filled from a seed.

Each tensor's numbers depend on its official name, so that a wrong name in our table gives wrong outputs. What the published
forward gives for seed 0 and `image(0)` is frozen in tests/model/official/expected.npz (every 8th row and column of the
published 128x128 samples of a restored frame, every 4th of the pre-restored one's).
"""

import sys
import zlib
from pathlib import Path

import torch
from torch import Tensor

from tasktok_edge.model.config import SwinIRConfig, TaskConfig, TaskTokConfig, TokenizerConfig, ViTConfig
from tasktok_edge.model.deeplab import DeepLabV3
from tasktok_edge.model.faster_rcnn import FasterRCNN
from tasktok_edge.model.official.names import official_name, official_shape
from tasktok_edge.model.resnet import ResNet18
from tasktok_edge.model.tasktok import TaskTok

TASKS = ("cls", "det", "seg")  # switch 0, 1, 2


def _vit(width: int, layers: int) -> ViTConfig:
    return ViTConfig(width=width, layers=layers, heads=width // 64)


def _config(name: str, *, tokens: int, patch: int, encoder: ViTConfig, decoder: ViTConfig, refiner: int) -> TaskTokConfig:
    tasks = {task: TaskConfig(kind=task, labels=("a",), net="none") for task in TASKS}
    size = 16 * patch
    tokenizer = TokenizerConfig(image_size=size, patch=patch, tokens=tokens, channels=64, encoder=encoder, decoder=decoder)
    return TaskTokConfig(
        preset=name, image_size=512, prerestorer=SwinIRConfig(), tokenizer=tokenizer, refiner=_vit(512, refiner), tasks=tasks
    )


VARIANTS: dict[str, TaskTokConfig] = {
    # Not an official size: seconds to run, and N differs from the channel count, so that a transposed token tensor shows.
    "mini": _config("tasktok-32", tokens=32, patch=16, encoder=_vit(512, 2), decoder=_vit(512, 2), refiner=2),
    "bl64": _config("tasktok-64", tokens=64, patch=16, encoder=_vit(768, 12), decoder=_vit(1024, 24), refiner=6),
    "sl256": _config("tasktok-256", tokens=256, patch=16, encoder=_vit(512, 8), decoder=_vit(1024, 24), refiner=6),
    "bl64_input512": _config(
        "tasktok-64-input512", tokens=64, patch=32, encoder=_vit(768, 12), decoder=_vit(1024, 24), refiner=6
    ),
}


def shapes(variant: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes of every tensor, by file."""
    config = VARIANTS[variant]
    with torch.device("meta"):
        model = TaskTok(config)
    parts = {"prerestorer": model.prerestorer, "tokenizer": model.tokenizer, "refiner": model.refiner}
    found = {
        part: {
            name: official_shape(name, t.shape) for ours, t in m.state_dict().items() for name in [official_name(part, ours)]
        }
        for part, m in parts.items()
    }
    found["tokenizer"]["quantize.embedding.weight"] = (8192, 64)
    found["refiner"] |= {f"token_switch_tasks.{i}": (config.tokenizer.tokens,) for i in range(3)}
    for group in range(4):
        for block in range(3):
            prefix = f"layers.{group}.residual_group.blocks.{block}"
            found["prerestorer"][f"{prefix}.attn.relative_position_index"] = (64, 64)
            if block == 1:
                found["prerestorer"][f"{prefix}.attn_mask"] = (64, 64, 64)
    return {
        "weights/codeformer_swinir_tiny.pt": found["prerestorer"],
        "tasktok_last.pt": found["tokenizer"],
        "token_predictor_last.pt": found["refiner"],
    }


def tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers of a size that keeps activations near 1."""
    if name.endswith("relative_position_index"):
        place = torch.cartesian_prod(torch.arange(8), torch.arange(8))
        delta = place[:, None] - place + 7
        return delta[..., 0] * 15 + delta[..., 1]
    if name.endswith("attn_mask"):
        return torch.zeros(shape)  # never read
    x = torch.randn(shape, generator=torch.Generator().manual_seed((zlib.crc32(name.encode()) + seed) % 2**31))
    if len(shape) == 1 and name.endswith(".weight"):
        return 1 + 0.1 * x
    if "token_switch" in name:
        x[0] = 0.0  # a probability of exactly one half
        return x
    if len(shape) == 1:
        return 0.05 * x
    if name.endswith(("embedding", "mask_token", "latent_tokens", "bias_table")):
        return 0.5 * x
    return x * x[0].numel() ** -0.5


def write(folder: Path, variant: str = "mini", *, seed: int = 0, prefix: str = "") -> Path:
    """Write the three files of a variant; `prefix` as DistributedDataParallel leaves it."""
    for file, wanted in shapes(variant).items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save({f"{prefix}{name}": tensor(name, shape, seed) for name, shape in wanted.items()}, folder / file)
    return folder


def write_nets(folder: Path, *, seed: int = 0) -> Path:
    """Write the three task networks, torchvision's names, statistics of batch norms away from their start."""
    torch.manual_seed(seed)
    for task, net in (("cls", ResNet18()), ("det", FasterRCNN()), ("seg", DeepLabV3())):
        state = net.state_dict()
        for name, value in state.items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                value.normal_(std=0.1)
        torch.save(state, folder / f"{task}net_last.pt")
    return folder


def image(seed: int = 0) -> Tensor:
    """A frame (1, 3, 512, 512) in [0, 1], smooth with some noise."""
    generator = torch.Generator().manual_seed(1234 + seed)
    coarse = torch.rand(1, 3, 16, 16, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=512, mode="bilinear", align_corners=False)
    return (fine + 0.05 * torch.randn(1, 3, 512, 512, generator=generator)).clamp(0, 1)


if __name__ == "__main__":  # python -m tests.official_files VARIANT DIR
    print(f"wrote {write(Path(sys.argv[2]), sys.argv[1])}")
