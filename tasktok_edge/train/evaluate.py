"""How well a task network answers: counts that processes add up, and the task's own metric of them, in [0, 1]."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from tasktok_edge.data.folders import IGNORED
from tasktok_edge.data.scenes import Frame
from tasktok_edge.frames import blend, lay_out, windows
from tasktok_edge.metrics import coco_map
from tasktok_edge.model.config import STRIDE, TaskConfig
from tasktok_edge.model.faster_rcnn import FasterRCNN
from tasktok_edge.model.task_nets import Detector, TaskNet
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.runtimes.answers import Detections, detections

Labels = Mapping[str, Tensor | list[Tensor]]


class Tally(Protocol):
    """Takes a task network's answers batch by batch; `value` is the metric over all processes, or over this one alone."""

    def add(self, net: TaskNet, images: Tensor, labels: Labels) -> None: ...

    def value(self, accelerator: Accelerator | None = None) -> float: ...


class TopOne:
    """Share of images whose best label is the right one."""

    def __init__(self) -> None:
        self.counts = torch.zeros(2, dtype=torch.float64)  # right, all

    def add(self, net: TaskNet, images: Tensor, labels: Labels) -> None:
        right = net(images).argmax(1) == cast(Tensor, labels["label"])
        self.counts += torch.tensor([int(right.sum()), len(right)])

    def value(self, accelerator: Accelerator | None = None) -> float:
        right, n = _summed(self.counts, accelerator).tolist()
        return right / max(n, 1)


class MeanIoU:
    """Intersection over union of one confusion matrix, averaged over the labels that occur at all; 255 is ignored."""

    def __init__(self, n: int) -> None:
        self.n, self.matrix = n, torch.zeros(n, n, dtype=torch.float64)

    def add(self, net: TaskNet, images: Tensor, labels: Labels) -> None:
        found, wanted = net(images).argmax(1), cast(Tensor, labels["semantic"])
        self.matrix += multiclass_confusion_matrix(found, wanted, self.n, ignore_index=IGNORED).cpu()

    def value(self, accelerator: Accelerator | None = None) -> float:
        matrix = _summed(self.matrix, accelerator)
        union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
        return float((matrix.diag() / union)[union > 0].mean()) if union.any() else 0.0


class CocoMap:
    """COCO's mAP[.5:.95]. Detections are found without padding, where the batch says what is padded."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.answers: list[tuple[Detections, SimpleNamespace]] = []

    def add(self, net: TaskNet, images: Tensor, labels: Labels) -> None:
        first = 1 if isinstance(net, FasterRCNN) else 0  # the official detector counts the background as label 0
        sizes = cast(Tensor, labels.get("valid_size", torch.tensor([images.shape[2:]] * len(images)))).tolist()
        for i, (height, width) in enumerate(sizes):
            found = detect(net, images[i : i + 1, :, :height, :width], self.names)
            there = labels["box_labels"][i] >= first
            boxes, kinds = labels["boxes"][i][there].cpu().numpy(), (labels["box_labels"][i][there] - first).cpu().numpy()
            self.answers.append((found, SimpleNamespace(boxes=boxes, box_labels=kinds)))

    def value(self, accelerator: Accelerator | None = None) -> float:
        every = self.answers if accelerator is None else gather_object(self.answers)
        found, truth = zip(*every, strict=True)
        return max(coco_map(found, cast(list[Frame], truth)), 0.0)  # -1 where there is nothing to find


def tally(config: TaskConfig) -> Tally:
    """Begin to count for a task of this kind."""
    match config.kind:
        case "cls":
            return TopOne()
        case "seg":
            return MeanIoU(config.n_outputs)
        case "det":
            return CocoMap(config.labels)


def detect(net: TaskNet, image: Tensor, names: tuple[str, ...]) -> Detections:
    """Boxes in an image (1, 3, H, W), best first, by either kind of detector; labels count from 0."""
    if isinstance(net, FasterRCNN):
        found = net(image)[0]
        return Detections(found.boxes.cpu().numpy(), (found.labels - 1).tolist(), found.scores.cpu().numpy(), names)
    boxes, logits = net(image)
    layout = lay_out(image.shape[2], image.shape[3], image.shape[2])
    heat_map = image.shape[2] // STRIDE if isinstance(net, Detector) and image.shape[2] == image.shape[3] else 0
    return detections([(boxes.cpu().numpy(), logits.sigmoid().cpu().numpy())], layout, names, heat_map=heat_map)


def restore(model: TaskTok, image: Tensor, task: str) -> Tensor:
    """Restore images (B, 3, H, W) of any shape: where it is not the model's, by blended square windows."""
    height, width = image.shape[2:]
    side = model.config.image_size
    if (height, width) == (side, side):
        return model.restore(image, task)
    places = windows(height, width)
    whole = []
    for i in range(len(image)):
        one = image[i : i + 1]
        parts = torch.cat([one[..., w.top : w.top + w.height, w.left : w.left + w.width] for w in places])
        restored = _resized(model.restore(_resized(parts, side), task), min(height, width))
        tiles: list[NDArray[np.float32]] = list(restored.permute(0, 2, 3, 1).float().cpu().numpy())
        whole.append(torch.from_numpy(blend(tiles, places, height, width)).permute(2, 0, 1))
    return torch.stack(whole).to(image.device)


def _resized(image: Tensor, side: int) -> Tensor:
    return F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False, antialias=False)


def _summed(counts: Tensor, accelerator: Accelerator | None) -> Tensor:
    if accelerator is None or accelerator.num_processes == 1:
        return counts
    device = accelerator.device
    exact = counts.to(device, torch.float64 if device.type != "mps" else torch.float32)
    return accelerator.reduce(exact, reduction="sum").cpu().double()
