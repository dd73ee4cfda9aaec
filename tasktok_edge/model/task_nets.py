"""Small task networks for the scenes: classification, segmentation, detection. Each names the features its losses compare."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasktok_edge.model.config import STRIDE, TaskConfig
from tasktok_edge.model.deeplab import DeepLabV3
from tasktok_edge.model.faster_rcnn import FasterRCNN
from tasktok_edge.model.resnet import ResNet18


class ConvBN(nn.Sequential):
    """Convolution, 3x3 and padded or reading patches side by side, batch normalisation, ReLU."""

    def __init__(self, n_in: int, n_out: int, *, kernel: int = 3, stride: int = 1) -> None:
        conv = nn.Conv2d(n_in, n_out, kernel, stride, 1 if kernel == 3 else 0, bias=False)
        super().__init__(conv, nn.BatchNorm2d(n_out), nn.ReLU(inplace=False))


class Stem(nn.Sequential):
    """Image (B, 3, S, S), nominal [0, 1], to the first features."""

    def forward(self, image: Tensor) -> Tensor:
        x = image * 2 - 1
        for layer in self:
            x = layer(x)
        return x


class BasicBlock(nn.Module):
    """The residual block of ResNet-18 (arXiv 1512.03385)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv_1 = ConvBN(n_in, n_out, stride=stride)
        self.conv_2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn_2 = nn.BatchNorm2d(n_out)
        same = stride == 1 and n_in == n_out
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn_2(self.conv_2(self.conv_1(x))) + self.shortcut(x))


class Backbone(nn.Module):
    """Image (B, 3, S, S), nominal [0, 1], to one feature map a stage, at strides 4, 8, 16, …"""

    def __init__(self, config: TaskConfig) -> None:
        super().__init__()
        if config.patch:
            self.stem: nn.Module = Stem(ConvBN(3, config.widths[0], kernel=config.patch, stride=config.patch))
        else:
            self.stem = Stem(ConvBN(3, config.stem, stride=2), ConvBN(config.stem, config.widths[0], stride=2))
        n_in, stages = config.widths[0], []
        for i, width in enumerate(config.widths):
            stages.append(BasicBlock(n_in, width, 1 if i == 0 else 2))
            n_in = width
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        x, features = self.stem(image), []  # a stem that was fused with the decoder reads its features instead
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Pyramid(nn.Module):
    """Feature pyramid (arXiv 1612.03144): all stages summed at stride 4, (B, head, S/4, S/4)."""

    def __init__(self, config: TaskConfig) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, config.head, 1) for width in config.widths)
        self.smooth = ConvBN(config.head, config.head)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.lateral[-1](features[-1])
        for lateral, feature in zip(list(self.lateral)[-2::-1], features[-2::-1], strict=True):
            x = lateral(feature) + F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.smooth(x)


class Classifier(nn.Module):
    """Image to logits (B, labels)."""

    def __init__(self, config: TaskConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.head = nn.Linear(config.widths[-1], config.n_outputs)

    def features(self, image: Tensor) -> list[Tensor]:
        """What the high-level feature loss compares: the last stage."""
        return self.backbone(image)[-1:]

    def answer(self, features: list[Tensor]) -> Tensor:
        return self.head(features[0].mean((2, 3)))

    def forward(self, image: Tensor) -> Tensor:
        return self.answer(self.features(image))


class Segmenter(nn.Module):
    """Image to logits (B, labels, S, S)."""

    def __init__(self, config: TaskConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.pyramid = Pyramid(config)
        self.head = nn.Conv2d(config.head, config.n_outputs, 1)
        self.grow: nn.Module = nn.Upsample(scale_factor=float(STRIDE), mode="bilinear", align_corners=False)

    def features(self, image: Tensor) -> list[Tensor]:
        """The last stage, and the pyramid at stride 4."""
        stages = self.backbone(image)
        return [stages[-1], self.pyramid(stages)]

    def answer(self, features: list[Tensor]) -> Tensor:
        return self.grow(self.head(features[1]))

    def forward(self, image: Tensor) -> Tensor:
        return self.answer(self.features(image))


class Detector(nn.Module):
    """Image to boxes (B, S/4 * S/4, 4), xyxy in pixels, and logits (B, S/4 * S/4, labels), a cell each.

    Anchor-free: a heat map per label (CenterNet, arXiv 1904.07850) and distances to the four sides (FCOS, arXiv 1904.01355).
    """

    centres: Tensor  # (G*G, 2)

    def __init__(self, config: TaskConfig, image_size: int) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.pyramid = Pyramid(config)
        self.tower = ConvBN(config.head, config.head)
        self.heat = nn.Conv2d(config.head, config.n_outputs, 1)
        self.sides = nn.Conv2d(config.head, 4, 1)
        nn.init.constant_(self.heat.bias, -4.0) if self.heat.bias is not None else None
        cells = (torch.arange(image_size // STRIDE, device="cpu") + 0.5) * STRIDE
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        self.register_buffer("centres", torch.stack([x, y], -1).reshape(-1, 2), persistent=False)  # (G*G, 2)

    def features(self, image: Tensor) -> list[Tensor]:
        """The last stage, and the pyramid at stride 4."""
        stages = self.backbone(image)
        return [stages[-1], self.pyramid(stages)]

    def answer(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = self.tower(features[1])
        sides = F.softplus(self.sides(x)).flatten(2).transpose(1, 2) * (4 * STRIDE)  # left, top, right, bottom
        boxes = torch.cat([self.centres - sides[..., :2], self.centres + sides[..., 2:]], -1)
        return boxes, self.heat(x).flatten(2).transpose(1, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.answer(self.features(image))


# Each gives `features` that losses compare, and the `answer` they lead to.
TaskNet = Classifier | Segmenter | Detector | ResNet18 | DeepLabV3 | FasterRCNN


def build_task_net(config: TaskConfig, *, image_size: int) -> TaskNet:
    """Build the network of this task; those of TaskTok's paper have torchvision's parameter names."""
    n = config.n_outputs
    match config.net:
        case "resnet18":
            return ResNet18(n)
        case "deeplabv3_mobilenet_v3_large":
            return DeepLabV3(n)
        case "fasterrcnn_mobilenet_v3_large_fpn":
            return FasterRCNN(n + 1)  # the background is no label
        case "scenes":
            if config.kind == "cls":
                return Classifier(config)
            return Segmenter(config) if config.kind == "seg" else Detector(config, image_size)
    raise ValueError(f"nothing here builds a network called {config.net!r}")
