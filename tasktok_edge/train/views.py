"""What task networks see of a batch, and losses whose means are those of the whole batch, however many processes share it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from tasktok_edge.data.folders import IGNORED
from tasktok_edge.model import detection_ops as ops
from tasktok_edge.model.faster_rcnn import PROPOSALS_TRAINING, FasterRCNN
from tasktok_edge.model.task_nets import TaskNet

Labels = Mapping[str, Tensor | list[Tensor]]


@dataclass(frozen=True)
class View:
    """Features of some images of a batch, all of one size; `rows` tells which."""

    rows: list[int]
    size: tuple[int, int]  # height, width
    features: list[Tensor]


def look(net: TaskNet, images: Tensor, valid_size: Tensor | None) -> list[View]:
    """Features of images (B, 3, S, S). The detector sees each without its padding, by `valid_size` (B, 2)."""
    whole = (images.shape[2], images.shape[3])
    if valid_size is None or not isinstance(net, FasterRCNN):
        return [View(list(range(len(images))), whole, net.features(images))]
    rows_of: dict[tuple[int, int], list[int]] = {}
    for i, (height, width) in enumerate(valid_size.tolist()):
        rows_of.setdefault((height, width), []).append(i)
    return [View(rows, (h, w), net.features(images[rows, :, :h, :w])) for (h, w), rows in rows_of.items()]


@dataclass(frozen=True)
class BatchMean:
    """A sum over this process' share of a batch, divided so that the mean over processes is the mean over the batch.

    Processes need not hold as many pixels, boxes or tokens as each other: each divides by the mean of all their counts.
    """

    accelerator: Accelerator

    def __call__(self, total: Tensor, count: int | Tensor) -> Tensor:
        n = torch.as_tensor(count, dtype=torch.float64 if total.device.type == "cpu" else torch.float32, device=total.device)
        if self.accelerator.num_processes > 1:
            n = self.accelerator.reduce(n, reduction="mean")
        return total / n.clamp(min=1 / self.accelerator.num_processes).to(total.dtype)


def feature_distance(seen: Sequence[View], wanted: Sequence[View], mean: BatchMean) -> Tensor:
    """Mean absolute difference of each map over the batch, averaged over the maps: TaskTok's high-level feature loss."""
    distances = []
    for i in range(len(seen[0].features)):
        pairs = [(a.features[i].float(), b.features[i].float()) for a, b in zip(seen, wanted, strict=True)]
        total = torch.stack([F.l1_loss(a, b, reduction="sum") for a, b in pairs]).sum()
        distances.append(mean(total, sum(a.numel() for a, _ in pairs)))
    return torch.stack(distances).mean()


def answer_loss(net: TaskNet, kind: str, seen: Sequence[View], labels: Labels, mean: BatchMean) -> Tensor:
    """The task's own loss: cross-entropy, the same without pixels of 255, or the sum of the detector's four."""
    if isinstance(net, FasterRCNN):
        return torch.stack(list(detector_losses(net, seen, labels["boxes"], labels["box_labels"], mean).values())).sum()
    view = seen[0]
    answer: Any = net
    logits = answer.answer(view.features, view.size).float()
    wanted = labels["label" if kind == "cls" else "semantic"]
    assert isinstance(wanted, Tensor)
    total = F.cross_entropy(logits, wanted, ignore_index=IGNORED if kind == "seg" else -100, reduction="sum")
    return mean(total, (wanted != IGNORED).sum() if kind == "seg" else len(wanted))


def detector_losses(
    net: FasterRCNN, seen: Sequence[View], boxes: Sequence[Tensor] | Tensor, labels: Sequence[Tensor] | Tensor, mean: BatchMean
) -> dict[str, Tensor]:
    """Faster R-CNN's four losses over views of several sizes; boxes and labels are by row, as `FasterRCNN.losses` has them."""
    totals: dict[str, list[Tensor]] = {}
    counts = {"rpn": 0, "roi": 0}
    for view in seen:
        resized = net.resized(view.size)
        own = [ops.resize(boxes[i].float(), view.size, resized) for i in view.rows]
        own_labels = [labels[i] for i in view.rows]
        guesses = net.rpn(view.features)
        proposals = net.rpn.propose(guesses, resized, PROPOSALS_TRAINING)
        anchors, regions = _sampled(guesses.anchors, own, proposals)
        for name, loss in net.rpn.losses(guesses, own).items():
            totals.setdefault(name, []).append(loss.float() * anchors)
        for name, loss in net.roi_heads.losses(view.features[0], proposals, own, own_labels).items():
            totals.setdefault(name, []).append(loss.float() * regions)
        counts["rpn"] += anchors
        counts["roi"] += regions
    ours = ("loss_objectness", "loss_rpn_box_reg")
    return {name: mean(torch.stack(parts).sum(), counts["rpn" if name in ours else "roi"]) for name, parts in totals.items()}


def _sampled(anchors: Tensor, boxes: Sequence[Tensor], proposals: Sequence[Tensor]) -> tuple[int, int]:
    """How many anchors and regions the detector's losses are means of: those it samples, at most 256 and 512 an image."""
    kinds = [ops.match(b, anchors, low=0.3, high=0.7, keep_best=True)[1] for b in boxes]
    regions = [ops.match(b, torch.cat([p, b]), low=0.5, high=0.5)[1] for p, b in zip(proposals, boxes, strict=True)]
    return sum(_count(k, 256, 0.5) for k in kinds), sum(_count(k, 512, 0.25) for k in regions)


def _count(kind: Tensor, count: int, share: float) -> int:
    objects = min(int((kind == 1).sum()), int(count * share))
    return objects + min(int((kind == 0).sum()), count - objects)
