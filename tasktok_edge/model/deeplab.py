"""DeepLabV3 (arXiv 1706.05587) on MobileNetV3-Large, TaskTok's segmenter, with the parameter names of torchvision's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasktok_edge.model.mobilenet import TOP, mobilenet_v3_large
from tasktok_edge.model.resnet import ImageNetNormalise

STRIDE = 16  # of the dilated trunk
RATES = (12, 24, 36)
WIDTH = 256


def _branch(n_in: int, n_out: int, rate: int | None = None) -> list[nn.Module]:
    """Convolution, 1x1 or 3x3 of that dilation, batch normalisation, ReLU."""
    conv = nn.Conv2d(n_in, n_out, 1, bias=False)
    if rate is not None:
        conv = nn.Conv2d(n_in, n_out, 3, padding=rate, dilation=rate, bias=False)
    return [conv, nn.BatchNorm2d(n_out), nn.ReLU()]


class ImageMean(nn.Module):
    """(B, C, h, w) to (B, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class PyramidPooling(nn.Module):
    """Atrous spatial pyramid pooling: (B, n_in, h, w) seen near, at three distances and as a whole, to (B, 256, h, w)."""

    def __init__(self, n_in: int) -> None:
        super().__init__()
        branches = [_branch(n_in, WIDTH), *(_branch(n_in, WIDTH, rate) for rate in RATES), [ImageMean(), *_branch(n_in, WIDTH)]]
        self.convs = nn.ModuleList(nn.Sequential(*branch) for branch in branches)
        self.project = nn.Sequential(*_branch(len(branches) * WIDTH, WIDTH), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        seen = [branch(x) for branch in self.convs]
        seen[-1] = seen[-1].expand(-1, -1, *x.shape[2:])  # the image's mean, everywhere
        return self.project(torch.cat(seen, 1))


class DeepLabV3(nn.Module):
    """Image (B, 3, H, W) in [0, 1] to logits (B, n_outputs, H, W)."""

    def __init__(self, n_outputs: int = 21) -> None:
        super().__init__()
        self.normalise = ImageNetNormalise()
        self.backbone = mobilenet_v3_large("batch", dilated=True)
        self.classifier = nn.Sequential(PyramidPooling(TOP), *_branch(WIDTH, WIDTH, rate=1), nn.Conv2d(WIDTH, n_outputs, 1))

    def features(self, image: Tensor) -> list[Tensor]:
        """What the high-level feature loss compares: the trunk's end (C5), (B, 960, H/16, W/16), sizes rounded up."""
        return [self.backbone(self.normalise(image))]

    def answer(self, features: list[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Logits at `size` (height, width), or at 16 times the features' where none is given."""
        x = self.classifier(features[0])
        size = size or (x.shape[2] * STRIDE, x.shape[3] * STRIDE)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.answer(self.features(image), (image.shape[2], image.shape[3]))
