"""The losses of the tasks and of TaskTok's joint training (TaskTok)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tasktok_edge.model.task_nets import Detector, TaskNet

Batch = Mapping[str, Tensor]


def task_loss(net: TaskNet, kind: str, features: Sequence[Tensor], batch: Batch) -> Tensor:
    """The task's own loss for features of images whose labels are in `batch`."""
    if isinstance(net, Detector):
        boxes, logits = net.answer(list(features))
        return detection_loss(boxes.float(), logits.float(), net.centres, batch)
    answer: Any = net.answer(list(features))
    logits = answer.float()
    if kind == "cls":
        return F.cross_entropy(logits, batch["label"])
    return F.cross_entropy(logits, batch["semantic"], ignore_index=255)


def detection_loss(boxes: Tensor, logits: Tensor, centres: Tensor, batch: Batch) -> Tensor:
    """Penalty-reduced focal loss on the heat map (CenterNet, eq. 1) plus GIoU (arXiv 1902.09630) of the cells near a centre.

    boxes (B, G, 4) xyxy pixels, logits (B, G, C), centres (G, 2); batch: boxes (B, M, 4), box_labels (B, M), -1 for none.
    """
    truth, labels = batch["boxes"], batch["box_labels"]
    present = labels >= 0
    middle = (truth[..., :2] + truth[..., 2:]) / 2
    sigma = ((truth[..., 2:] - truth[..., :2]) / 8).clamp(min=1.5)  # about a fifth of the object is near its centre
    offset = (centres[None, :, None] - middle[:, None]) / sigma[:, None]  # (B, G, M, 2)
    heat = torch.exp(-0.5 * offset.square().sum(-1)) * present[:, None]  # (B, G, M)
    # The cell nearest to a centre counts as exactly 1, else small objects would have no positive.
    nearest = heat.argmax(1, keepdim=True)
    heat = heat.scatter(1, nearest, present[:, None].to(heat.dtype))
    target = torch.zeros_like(logits)
    for m in range(labels.shape[1]):  # a handful: a loop is plainer than a scatter
        one_hot = F.one_hot(labels[:, m].clamp(min=0), logits.shape[-1])[:, None]
        target = torch.maximum(target, heat[..., m, None] * one_hot)
    p = torch.sigmoid(logits)
    positive = (target >= 1).to(p.dtype)
    focal = positive * (1 - p).square() * F.logsigmoid(logits)
    focal = focal + (1 - positive) * (1 - target).pow(4) * p.square() * F.logsigmoid(-logits)
    weight, owner = heat.max(-1)  # (B, G): how near to which object
    weight = weight * (weight > 0.3)
    matched = truth.gather(1, owner[..., None].expand(-1, -1, 4))
    n = positive.sum().clamp(min=1)
    return -focal.sum() / n + 2 * (weight * (1 - giou(boxes, matched))).sum() / weight.sum().clamp(min=1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes (…, 4) xyxy, pair by pair, in [-1, 1]."""
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=1e-3).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    return inner / union.clamp(min=1e-3) - (outer - union) / outer


def feature_loss(features: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference, averaged over the maps: the high-level feature loss of TaskTok."""
    return torch.stack([F.l1_loss(f.float(), t.float()) for f, t in zip(features, target, strict=True)]).mean()


def token_loss(refined: Tensor, target: Tensor, probabilities: Tensor) -> Tensor:
    """Mean absolute difference of the hard-selected tokens (B, N, C); 0 where none is selected."""
    chosen = (probabilities.detach() > 0.5).to(refined.dtype)[:, None]
    total = chosen.sum() * refined.shape[0] * refined.shape[2]
    return ((refined - target).abs() * chosen).sum() / total.clamp(min=1)
