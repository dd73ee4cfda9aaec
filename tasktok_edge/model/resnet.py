"""ResNet-18 (arXiv 1512.03385), TaskTok's classifier, with torchvision's parameter names: its files load as they are."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ImageNetNormalise(nn.Module):
    """Image (B, 3, H, W) in [0, 1] to ImageNet's zero mean and unit deviation. Nothing of it is in a state dict."""

    mean: Tensor  # (3, 1, 1)
    deviation: Tensor  # (3, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406], device="cpu")[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225], device="cpu")[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.deviation


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (B, n_in, H, W) to (B, n_out, H/stride, W/stride)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


def _stage(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(n_in, n_out, stride), ResidualBlock(n_out, n_out, 1))


class ResNet18(nn.Module):
    """Image (B, 3, H, W) in [0, 1] to logits (B, n_outputs)."""

    def __init__(self, n_outputs: int = 1000) -> None:
        super().__init__()
        self.normalise = ImageNetNormalise()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, 1)
        self.layer2 = _stage(64, 128, 2)
        self.layer3 = _stage(128, 256, 2)
        self.layer4 = _stage(256, 512, 2)
        self.fc = nn.Linear(512, n_outputs)

    def features(self, image: Tensor) -> list[Tensor]:
        """What the high-level feature loss compares: the last stage, (B, 512, H/32, W/32)."""
        x = F.relu(self.bn1(self.conv1(self.normalise(image))))
        x = F.max_pool2d(x, 3, 2, 1)
        return [self.layer4(self.layer3(self.layer2(self.layer1(x))))]

    def answer(self, features: list[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Logits (B, n_outputs); an answer about the whole image has no size, so that `size` is not read."""
        return self.fc(features[0].mean((2, 3)))

    def forward(self, image: Tensor) -> Tensor:
        return self.answer(self.features(image))
