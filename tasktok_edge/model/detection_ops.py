"""What a two-stage detector needs beside its layers, in plain torch: boxes, suppression, pooling, and who learns from what.

Boxes are (n, 4) float, x1 y1 x2 y2 in pixels.
"""

import math

import torch
from torch import Tensor

LARGEST_LOG_SCALE = math.log(1000 / 16)  # a predicted box is never larger than this, so that exp() stays finite

Weights = tuple[float, float, float, float]


def areas(boxes: Tensor) -> Tensor:
    """(n, 4) to (n,)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each with each, (n, m)."""
    width = torch.minimum(a[:, None, 2], b[:, 2]) - torch.maximum(a[:, None, 0], b[:, 0])
    height = torch.minimum(a[:, None, 3], b[:, 3]) - torch.maximum(a[:, None, 1], b[:, 1])
    common = width.clamp(min=0) * height.clamp(min=0)
    return common / (areas(a)[:, None] + areas(b)[None] - common)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes (…, 4) to the image of that (height, width)."""
    height, width = size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def resize(boxes: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Move boxes along with an image that went from one (height, width) to another."""
    y, x = after[0] / before[0], after[1] / before[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def _centres_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides


def encode(boxes: Tensor, anchors: Tensor, weights: Weights) -> Tensor:
    """Boxes as deltas (n, 4) from anchors: shift by the anchor's size, and log of the scale (arXiv 1311.2524)."""
    centres, sides = _centres_and_sides(boxes)
    anchor_centres, anchor_sides = _centres_and_sides(anchors)
    deltas = torch.cat([(centres - anchor_centres) / anchor_sides, (sides / anchor_sides).log()], -1)
    return deltas * deltas.new_tensor(weights)


def decode(deltas: Tensor, anchors: Tensor, weights: Weights) -> Tensor:
    """The inverse of `encode`, for shapes that broadcast against each other, (…, 4)."""
    anchor_centres, anchor_sides = _centres_and_sides(anchors)
    deltas = deltas / deltas.new_tensor(weights)
    centres = anchor_centres + deltas[..., :2] * anchor_sides
    half_sides = 0.5 * anchor_sides * deltas[..., 2:].clamp(max=LARGEST_LOG_SCALE).exp()
    return torch.cat([centres - half_sides, centres + half_sides], -1)


def cell_anchors(sizes: tuple[int, ...], ratios: tuple[float, ...]) -> Tensor:
    """Anchors around the origin, (len(ratios) * len(sizes), 4), corners on whole pixels; a ratio is height to width."""
    scales, roots = torch.tensor(sizes, dtype=torch.float32, device="cpu"), torch.tensor(ratios, device="cpu").sqrt()
    heights = (roots[:, None] * scales).flatten()
    widths = (1 / roots[:, None] * scales).flatten()
    return (torch.stack([-widths, -heights, widths, heights], 1) / 2).round()


def grid_anchors(cell: Tensor, grid: tuple[int, int], strides: tuple[int, int]) -> Tensor:
    """The cell's anchors (K, 4) at each place of a grid, row by row: (rows * columns * K, 4). Strides are y and x, pixels."""
    y = torch.arange(grid[0], device=cell.device) * strides[0]
    x = torch.arange(grid[1], device=cell.device) * strides[1]
    y, x = torch.meshgrid(y, x, indexing="ij")
    return (torch.stack([x, y, x, y], -1).reshape(-1, 1, 4) + cell).reshape(-1, 4)


def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes that no better kept box overlaps by more than the threshold, best first."""
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order]
    beaten_by = (overlaps(ranked, ranked) > threshold).triu(1)  # (better, worse)
    kept = torch.ones_like(order, dtype=torch.bool)
    # Greedy choice without its loop over boxes. After k rounds the first k are decided for good; mostly a few rounds do.
    while True:
        still = ~(beaten_by & kept[:, None]).any(0)
        if torch.equal(still, kept):
            return order[kept]
        kept = still


def suppress_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """`suppress` within each group (n,) of equal numbers; the indices of all, best first."""
    kept = [torch.zeros(0, dtype=torch.int64, device=boxes.device)]
    for group in set(groups.tolist()):
        members = torch.nonzero(groups == group).flatten()
        kept.append(members[suppress(boxes[members], scores[members], threshold)])
    chosen = torch.cat(kept)
    return chosen[scores[chosen].argsort(descending=True, stable=True)]


def _axis_weights(low: Tensor, high: Tensor, cells: int, *, bins: int, samples: int) -> Tensor:
    """How much each of the cells counts for each bin between low and high (n,), in cells: (n, bins, cells)."""
    steps = (torch.arange(bins * samples, device=low.device) + 0.5) / (bins * samples)
    places = low[:, None] + steps * (high - low).clamp(min=1)[:, None]  # (n, bins * samples)
    inside = (places >= -1) & (places <= cells)
    places = places.clamp(0, cells - 1)
    tents = (1 - (places[..., None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0)  # linear interpolation
    return (tents * inside[..., None]).reshape(len(low), bins, samples, cells).mean(2)


def roi_align(feature: Tensor, boxes: Tensor, scale: float, *, bins: int = 7, samples: int = 2) -> Tensor:
    """Look at a feature (C, H, W) through boxes (n, 4): (n, C, bins, bins) (arXiv 1703.06870, without half-pixel shift).

    Each bin is the mean of samples x samples bilinear readings. Readings and mean are linear and separable, so that two
    matrix products per image do it all, gradients included. `scale` is the feature's size by the image's.
    """
    n, (channels, height, width) = len(boxes), feature.shape
    x1, y1, x2, y2 = (boxes * scale).unbind(1)
    rows = _axis_weights(y1, y2, height, bins=bins, samples=samples).to(feature.dtype)  # (n, bins, H)
    columns = _axis_weights(x1, x2, width, bins=bins, samples=samples).to(feature.dtype)  # (n, bins, W)
    x = rows.reshape(n * bins, height) @ feature.transpose(0, 1).reshape(height, channels * width)
    x = x.reshape(n, bins * channels, width) @ columns.transpose(1, 2)
    return x.reshape(n, bins, channels, bins).transpose(1, 2)


def match(targets: Tensor, boxes: Tensor, *, low: float, high: float, keep_best: bool = False) -> tuple[Tensor, Tensor]:
    """For each box (n,) the index of the target that overlaps it most, and its kind: 1 object, 0 background, -1 neither.

    Objects overlap by `high` or more, background by less than `low`. `keep_best`: the boxes that overlap a target most are
    objects in any case, so that every target has one.
    """
    if len(targets) == 0:
        zeros = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return zeros, zeros
    found = overlaps(targets, boxes)  # (targets, n)
    best, index = found.max(0)
    kind = torch.where(best >= high, 1, torch.where(best < low, 0, -1))
    if keep_best:
        kind[(found == found.max(1, keepdim=True).values).any(0)] = 1
    return index, kind


def sample(kind: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Draw `count` boxes by chance, at most that share of them objects: their indices, and those of the background's."""
    objects, background = torch.nonzero(kind == 1).flatten(), torch.nonzero(kind == 0).flatten()
    n_objects = min(len(objects), int(count * share))
    n_background = min(len(background), count - n_objects)
    objects = objects[torch.randperm(len(objects), device=kind.device)[:n_objects]]
    background = background[torch.randperm(len(background), device=kind.device)[:n_background]]
    return objects, background
