"""Faster R-CNN (arXiv 1506.01497) on a MobileNetV3-Large pyramid, TaskTok's detector, with torchvision's parameter names.

Eager only: how many boxes there are depends on the image.
"""

import math
from itertools import accumulate
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasktok_edge.model import detection_ops as ops
from tasktok_edge.model.mobilenet import LAST_STRIDED, LAST_STRIDED_CHANNELS, TOP, mobilenet_v3_large
from tasktok_edge.model.resnet import ImageNetNormalise

STRIDE = 32  # of both feature maps
WIDTH = 256  # channels of the pyramid
ANCHOR_SIZES = (32, 64, 128, 256, 512)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
PROPOSAL_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
POOLED = 7  # cells a side that the box head sees
SMOOTH = 1 / 9  # where the smooth L1 loss turns from square to straight

# The settings of the official network.
PROPOSAL_SCORE, PROPOSAL_OVERLAP, PROPOSAL_SIDE = 0.05, 0.7, 1e-3
PROPOSALS_TESTING, PROPOSALS_TRAINING = 1000, 2000  # per level before suppression, and per image after it
DETECTION_SCORE, DETECTION_OVERLAP, DETECTION_SIDE, DETECTIONS = 0.05, 0.5, 1e-2, 100


class Detections(NamedTuple):
    """What was found in one image, best first."""

    boxes: Tensor  # (n, 4), x1 y1 x2 y2, pixels of the image that was given
    labels: Tensor  # (n,) int64, 1 and up: 0 is background
    scores: Tensor  # (n,)


class Pyramid(nn.Module):
    """Feature pyramid (arXiv 1612.03144) of two maps of one stride; a third level is taken from the second by its users."""

    def __init__(self, widths: tuple[int, int]) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(width, WIDTH, 1)) for width in widths)
        self.layer_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)) for _ in widths)

    def forward(self, low: Tensor, high: Tensor) -> list[Tensor]:
        top = self.inner_blocks[1](high)
        return [self.layer_blocks[0](self.inner_blocks[0](low) + top), self.layer_blocks[1](top)]


class PyramidTrunk(nn.Module):
    """Normalised image (B, 3, H, W), sides multiples of 32, to two maps (B, 256, H/32, W/32)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mobilenet_v3_large("frozen")
        self.fpn = Pyramid((LAST_STRIDED_CHANNELS, TOP))

    def forward(self, image: Tensor) -> list[Tensor]:
        low = self.body[: LAST_STRIDED + 1](image)
        return self.fpn(low, self.body[LAST_STRIDED + 1 :](low))


class Guesses(NamedTuple):
    """The proposal network's answer on all A anchors, level by level."""

    anchors: Tensor  # (A, 4)
    logits: Tensor  # (B, A), that there is an object
    deltas: Tensor  # (B, A, 4)
    counts: list[int]  # how many of the A are of each level


class ProposalHead(nn.Module):
    """A map (B, 256, h, w) to logits (B, h * w * K) and deltas (B, h * w * K, 4), K anchors a place."""

    def __init__(self, n_anchors: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.ReLU()))
        self.cls_logits = nn.Conv2d(WIDTH, n_anchors, 1)
        self.bbox_pred = nn.Conv2d(WIDTH, 4 * n_anchors, 1)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(feature)
        deltas = self.bbox_pred(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4)
        return self.cls_logits(x).permute(0, 2, 3, 1).flatten(1), deltas


class ProposalNetwork(nn.Module):
    """Where there may be an object, of whatever label. Sizes are those of the network's own resized image."""

    cell: Tensor  # (K, 4)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cell", ops.cell_anchors(ANCHOR_SIZES, ANCHOR_RATIOS), persistent=False)
        self.head = ProposalHead(len(self.cell))

    def forward(self, features: list[Tensor]) -> Guesses:
        padded = features[0].shape[2] * STRIDE, features[0].shape[3] * STRIDE
        answers, anchors = [], []
        for feature in [*features, features[-1][..., ::2, ::2]]:  # the third level, at stride 64
            rows, columns = feature.shape[2:]
            answers.append(self.head(feature))
            # Rounded down as the official network does: where 32 times an odd number was halved, it is not quite 64.
            anchors.append(ops.grid_anchors(self.cell, (rows, columns), (padded[0] // rows, padded[1] // columns)))
        logits, deltas = zip(*answers, strict=True)
        return Guesses(torch.cat(anchors), torch.cat(logits, 1), torch.cat(deltas, 1), [len(a) for a in anchors])

    @torch.no_grad()
    def propose(self, guesses: Guesses, size: tuple[int, int], count: int) -> list[Tensor]:
        """The best boxes of each image, (n, 4), at most `count`."""
        found, starts = [], list(accumulate(guesses.counts[:-1], initial=0))
        for logits, deltas in zip(guesses.logits, guesses.deltas, strict=True):
            best = [level.topk(min(count, len(level))).indices for level in logits.split(guesses.counts)]
            chosen = torch.cat([start + index for start, index in zip(starts, best, strict=True)])
            levels = torch.cat([torch.full_like(index, i) for i, index in enumerate(best)])
            boxes = ops.clip(ops.decode(deltas[chosen], guesses.anchors[chosen], PROPOSAL_WEIGHTS), size)
            scores = logits[chosen].sigmoid()
            good = ((boxes[:, 2:] - boxes[:, :2]) >= PROPOSAL_SIDE).all(1) & (scores >= PROPOSAL_SCORE)
            boxes, scores, levels = boxes[good], scores[good], levels[good]
            found.append(boxes[ops.suppress_by_group(boxes, scores, levels, PROPOSAL_OVERLAP)[:count]])
        return found

    def losses(self, guesses: Guesses, boxes: list[Tensor]) -> dict[str, Tensor]:
        """Object or not, and by how much the anchor misses it, on 256 anchors of each image, half objects if it can be."""
        logits, labels, misses, n_sampled = [], [], [], 0
        matches = [ops.match(b, guesses.anchors, low=0.3, high=0.7, keep_best=True) for b in boxes]
        for i, (index, kind) in enumerate(matches):
            objects, background = ops.sample(kind, 256, 0.5)
            sampled = torch.cat([objects, background])
            logits.append(guesses.logits[i, sampled])
            labels.append(kind[sampled].to(logits[-1].dtype))
            wanted = ops.encode(boxes[i][index[objects]], guesses.anchors[objects], PROPOSAL_WEIGHTS)
            misses.append(F.smooth_l1_loss(guesses.deltas[i, objects], wanted, beta=SMOOTH, reduction="sum"))
            n_sampled += len(sampled)
        objectness = F.binary_cross_entropy_with_logits(torch.cat(logits), torch.cat(labels))
        return {"loss_objectness": objectness, "loss_rpn_box_reg": torch.stack(misses).sum() / max(n_sampled, 1)}


class BoxHead(nn.Module):
    """Pooled features (R, 256, 7, 7) to (R, 1024)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(WIDTH * POOLED**2, width)
        self.fc7 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))


class BoxPredictor(nn.Module):
    """(R, 1024) to logits (R, L), label 0 being background, and deltas (R, L, 4), a box for each label."""

    def __init__(self, width: int, n_outputs: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, n_outputs)
        self.bbox_pred = nn.Linear(width, 4 * n_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


class RegionHeads(nn.Module):
    """What is in each proposal. Sizes are those of the network's own resized image.

    Boxes of all sizes are looked up in map 0, as in the official network: it tells maps apart by stride, and both have 32.
    """

    def __init__(self, n_outputs: int, width: int = 1024) -> None:
        super().__init__()
        self.box_head = BoxHead(width)
        self.box_predictor = BoxPredictor(width, n_outputs)

    def forward(self, feature: Tensor, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        pooled = [ops.roi_align(f, boxes, 1 / STRIDE, bins=POOLED) for f, boxes in zip(feature, proposals, strict=True)]
        return self.box_predictor(self.box_head(torch.cat(pooled)))

    @torch.no_grad()
    def detect(self, feature: Tensor, proposals: list[Tensor], size: tuple[int, int]) -> list[Detections]:
        counts = [len(boxes) for boxes in proposals]
        logits, deltas = self(feature, proposals)
        found = []
        for boxes, scores, moves in zip(proposals, logits.softmax(1).split(counts), deltas.split(counts), strict=True):
            which, label = torch.nonzero(scores[:, 1:] > DETECTION_SCORE).unbind(1)
            label = label + 1
            kept_boxes = ops.clip(ops.decode(moves[which, label], boxes[which], BOX_WEIGHTS), size)
            kept_scores = scores[which, label]
            large = ((kept_boxes[:, 2:] - kept_boxes[:, :2]) >= DETECTION_SIDE).all(1)
            kept_boxes, label, kept_scores = kept_boxes[large], label[large], kept_scores[large]
            best = ops.suppress_by_group(kept_boxes, kept_scores, label, DETECTION_OVERLAP)[:DETECTIONS]
            found.append(Detections(kept_boxes[best], label[best], kept_scores[best]))
        return found

    def losses(self, feature: Tensor, proposals: list[Tensor], boxes: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
        """The label, and by how much the proposal misses, on 512 proposals of each image, at most a quarter of them objects."""
        chosen, wanted_labels, wanted_deltas = [], [], []
        candidates = [torch.cat([p, b]) for p, b in zip(proposals, boxes, strict=True)]  # at least those are right
        for candidate, target, label in zip(candidates, boxes, labels, strict=True):
            index, kind = ops.match(target, candidate, low=0.5, high=0.5)
            sampled = torch.cat(ops.sample(kind, 512, 0.25))
            chosen.append(candidate[sampled])
            if len(target) == 0:
                wanted_labels.append(torch.zeros_like(sampled))
                wanted_deltas.append(torch.zeros_like(candidate[sampled]))
                continue
            wanted_labels.append(torch.where(kind[sampled] == 1, label[index[sampled]], 0))
            wanted_deltas.append(ops.encode(target[index[sampled]], candidate[sampled], BOX_WEIGHTS))
        logits, deltas = self(feature, chosen)
        label, wanted = torch.cat(wanted_labels), torch.cat(wanted_deltas)
        objects = torch.nonzero(label > 0).flatten()
        miss = F.smooth_l1_loss(deltas[objects, label[objects]], wanted[objects], beta=SMOOTH, reduction="sum")
        miss_label = F.cross_entropy(logits, label, reduction="sum")  # the mean of none would be NaN
        n_sampled = max(len(label), 1)
        return {"loss_classifier": miss_label / n_sampled, "loss_box_reg": miss / n_sampled}


class FasterRCNN(nn.Module):
    """Image (B, 3, H, W) in [0, 1] to a list of `Detections`, one an image.

    Looks at the image resized to a short side of `min_size` pixels, or less if the long one would exceed `max_size`.
    """

    def __init__(self, n_outputs: int = 21, *, min_size: int = 800, max_size: int = 1333) -> None:
        super().__init__()
        self.min_size, self.max_size = min_size, max_size
        self.normalise = ImageNetNormalise()
        self.backbone = PyramidTrunk()
        self.rpn = ProposalNetwork()
        self.roi_heads = RegionHeads(n_outputs)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) at which an image of that size is looked at, before it is padded to multiples of 32."""
        scale = min(self.min_size / min(size), self.max_size / max(size))
        return math.floor(size[0] * scale), math.floor(size[1] * scale)

    def features(self, image: Tensor) -> list[Tensor]:
        """What the high-level feature loss compares: the pyramid's maps 0 and 1, (B, 256, h, w), of the resized image."""
        height, width = self.resized((image.shape[2], image.shape[3]))
        x = F.interpolate(self.normalise(image), size=(height, width), mode="bilinear", align_corners=False)
        return self.backbone(F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE)))

    def answer(self, features: list[Tensor], size: tuple[int, int] | None = None) -> list[Detections]:
        """Detections in pixels of an image of that (height, width); without a size, of 32 times the features'."""
        padded = features[0].shape[2] * STRIDE, features[0].shape[3] * STRIDE
        resized = self.resized(size) if size else padded
        proposals = self.rpn.propose(self.rpn(features), resized, PROPOSALS_TESTING)
        found = self.roi_heads.detect(features[0], proposals, resized)
        return [d._replace(boxes=ops.resize(d.boxes, resized, size or padded)) for d in found]

    def losses(
        self, features: list[Tensor], size: tuple[int, int], boxes: list[Tensor], labels: list[Tensor]
    ) -> dict[str, Tensor]:
        """The four losses whose sum is minimised, of `features` that were made of images of that (height, width).

        boxes: for each image (n, 4), x1 y1 x2 y2 in its pixels, n may be 0; labels: (n,) int64, 1 and up. Anchors and proposals
        are sampled by torch's global generator.
        """
        resized = self.resized(size)
        targets = [ops.resize(b.float(), size, resized) for b in boxes]
        guesses = cast(Guesses, self.rpn(features))
        proposals = self.rpn.propose(guesses, resized, PROPOSALS_TRAINING)
        return self.rpn.losses(guesses, targets) | self.roi_heads.losses(features[0], proposals, targets, labels)

    def forward(self, image: Tensor) -> list[Detections]:
        return self.answer(self.features(image), (image.shape[2], image.shape[3]))
