"""The official task networks: torchvision's names, torchvision's answers.

`expected_task_nets.npz` holds what torchvision 0.29.2 itself answers, its own CPU kernels included, for the weights of
`seeded_state` and the images of `seeded_image`. It was run apart from this project, which never imports it.
"""

import hashlib
import zlib
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tasktok_edge.model import detection_ops as ops
from tasktok_edge.model.deeplab import DeepLabV3
from tasktok_edge.model.faster_rcnn import FasterRCNN
from tasktok_edge.model.mobilenet import FrozenBatchNorm2d
from tasktok_edge.model.resnet import ResNet18

Net = TypeVar("Net", bound=nn.Module)

SMALL = {"min_size": 320, "max_size": 533}  # the official 800 and 1333 by 2.5
SIZE = (100, 120)
BOXES = torch.tensor([[12.0, 20.0, 60.0, 58.0], [36.0, 30.0, 108.0, 95.0]])
LABELS = torch.tensor([3, 7])
# Gains that keep random detectors undecided; rows without a mean keep them from calling everything the same.
QUIET = {
    "rpn.head.cls_logits.weight": 0.07,
    "rpn.head.bbox_pred.weight": 0.01,
    "roi_heads.box_predictor.cls_score.weight": 0.05,
    "roi_heads.box_predictor.bbox_pred.weight": 0.09,
}


def seeded_state(net: nn.Module) -> dict[str, Tensor]:
    """Weights of every name from the name alone, sized so that features neither fade nor grow; few boxes pass as objects."""
    state = {}
    for name, like in net.state_dict().items():
        if not like.is_floating_point():
            state[name] = torch.zeros_like(like)
            continue
        x = torch.randn(like.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if name.endswith("running_var"):
            x = 1 + 0.2 * x.abs()
        elif like.ndim == 1:
            x = 0.1 * x + (1.0 if name.endswith("weight") else 0.0)
        else:
            x = x * (2 / like[0].numel()) ** 0.5
        if name in QUIET:
            x = (x - x.mean(1, keepdim=True)) * QUIET[name]
        if name == "rpn.head.cls_logits.bias":
            x = x - 4.75
        if name == "roi_heads.box_predictor.cls_score.bias":
            x[0] += 2
        state[name] = x
    return state


def seeded_image(size: tuple[int, int] = SIZE) -> Tensor:
    """Soft coloured noise (1, 3, H, W) in [0, 1]."""
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)


@cache
def expected() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "expected_task_nets.npz") as file:
        return {name: torch.from_numpy(array) for name, array in file.items()}


def seeded(net: Net) -> Net:
    net.load_state_dict(seeded_state(net), strict=True)
    return net.eval()


def assert_equal(found: Tensor, name: str) -> None:
    """Equal to 1e-4 of the largest value."""
    wanted = expected()[name]
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=1e-4 * max(wanted.abs().max().item(), 1e-6))


@pytest.fixture(scope="module")
def small_detector() -> FasterRCNN:
    return seeded(FasterRCNN(**SMALL))


@pytest.mark.parametrize(
    ("net", "count", "digest", "some"),
    [
        (ResNet18, 122, "f77af260c2dbd0ec", {"layer2.0.downsample.1.running_var": (128,), "fc.weight": (1000, 512)}),
        (DeepLabV3, 352, "b133b950a2626c64", {"classifier.0.convs.4.1.weight": (256, 960, 1, 1), "classifier.4.bias": (21,)}),
        (
            FasterRCNN,
            284,
            "c8256021f6168c44",
            {"rpn.head.conv.0.0.bias": (256,), "backbone.fpn.layer_blocks.1.0.weight": (256, 256, 3, 3)},
        ),
    ],
)
def test_names_and_shapes_are_those_of_the_official_files(
    net: type[nn.Module], count: int, digest: str, some: dict[str, tuple[int, ...]]
) -> None:
    shapes = {name: tuple(value.shape) for name, value in net().state_dict().items()}
    assert shapes | some == shapes
    assert len(shapes) == count
    listing = "\n".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == digest


def test_the_classifier_answers_as_the_official_one() -> None:
    net = seeded(ResNet18())
    features = net.features(seeded_image())
    assert_equal(features[0][:, ::8], "cls_layer4")
    assert_equal(net.answer(features), "cls_logits")


def test_the_segmenter_answers_as_the_official_one() -> None:
    net = seeded(DeepLabV3())
    image = seeded_image()
    features = net.features(image)
    assert_equal(features[0][:, ::16], "seg_c5")
    assert_equal(net(image)[..., ::4, ::4], "seg_logits")
    assert net.answer(features).shape == (1, 21, 112, 128)


def test_the_detector_answers_as_the_official_one_at_its_own_size() -> None:
    net = seeded(FasterRCNN())
    features = net.features(seeded_image())
    for i, feature in enumerate(features):
        assert_equal(feature[:, ::16, ::2, ::2], f"det_fpn{i}")
    (found,) = net.answer(features, SIZE)
    for name, value in found._asdict().items():
        assert_equal(value, f"det_{name}")


def test_the_detector_at_another_size(small_detector: FasterRCNN) -> None:
    (found,) = small_detector(seeded_image())
    for name, value in found._asdict().items():
        assert_equal(value, f"small_{name}")


def test_the_detectors_losses_are_the_official_ones(small_detector: FasterRCNN) -> None:
    """Of an image with two objects and one with none, in one batch."""
    features = small_detector.features(seeded_image().repeat(2, 1, 1, 1))
    torch.manual_seed(0)
    losses = small_detector.losses(features, SIZE, [BOXES, torch.zeros(0, 4)], [LABELS, torch.zeros(0, dtype=torch.int64)])
    assert len(losses) == 4
    for name, loss in losses.items():
        assert_equal(loss, name)


def test_nothing_found_and_nothing_to_find(small_detector: FasterRCNN) -> None:
    net = FasterRCNN(**SMALL)
    net.load_state_dict(small_detector.state_dict())
    nn.init.constant_(net.rpn.head.cls_logits.bias, -99.0)  # type: ignore[arg-type]
    features = net.features(seeded_image())
    (found,) = net.answer(features, SIZE)
    assert [tuple(value.shape) for value in found] == [(0, 4), (0,), (0,)]
    losses = net.losses(features, SIZE, [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)])
    assert all(loss.isfinite() for loss in losses.values())


def test_detections_scale_with_the_size_that_is_asked_for(small_detector: FasterRCNN) -> None:
    features = small_detector.features(seeded_image())
    small, large = (small_detector.answer(features, size)[0] for size in (SIZE, (2 * SIZE[0], 2 * SIZE[1])))
    torch.testing.assert_close(2 * small.boxes, large.boxes)
    assert torch.equal(small.labels, large.labels)
    assert small.labels.min() >= 1


def test_one_pass_gives_losses_and_features_and_a_few_steps_lower_them(small_detector: FasterRCNN) -> None:
    net = FasterRCNN(**SMALL)
    net.load_state_dict(small_detector.state_dict())
    image = seeded_image()
    with torch.no_grad():
        wanted = small_detector.features(image)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-5)
    seen = []
    for _ in range(4):
        torch.manual_seed(0)
        features = net.features(image)
        losses = net.losses(features, SIZE, [BOXES], [LABELS])
        loss = sum(losses.values(), torch.zeros(())) + 0.5 * sum(F.l1_loss(a, b) for a, b in zip(features, wanted, strict=True))
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimiser.step()
        seen.append(loss.item())
    assert seen[-1] < 0.9 * seen[0]


@pytest.mark.parametrize("net", [ResNet18, DeepLabV3])
def test_exported_is_eager(net: type[ResNet18] | type[DeepLabV3]) -> None:
    eager, image = seeded(net()), seeded_image((64, 96))
    program = torch.export.export(eager, (image,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(image), eager(image))


def test_frozen_normalisation_is_that_of_batches_at_rest() -> None:
    live, x = nn.BatchNorm2d(6).eval(), torch.randn(2, 6, 3, 5)
    for name, value in seeded_state(live).items():
        live.state_dict()[name].copy_(value)
    frozen = FrozenBatchNorm2d(6)
    frozen.load_state_dict({k: v for k, v in live.state_dict().items() if k != "num_batches_tracked"}, strict=True)
    torch.testing.assert_close(frozen.train()(x), live(x))
    assert not list(frozen.parameters())


def random_boxes(n: int, seed: int) -> Tensor:
    """(n, 4) within 100 pixels, sides of 1 to 50."""
    generator = torch.Generator().manual_seed(seed)
    corner, sides = torch.rand(n, 2, generator=generator) * 50, 1 + torch.rand(n, 2, generator=generator) * 49
    return torch.cat([corner, corner + sides], 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 1000), st.sampled_from([0.1, 0.3, 0.5, 0.7]))
def test_suppression_is_the_greedy_one(n: int, seed: int, threshold: float) -> None:
    boxes, scores = random_boxes(n, seed), torch.rand(n, generator=torch.Generator().manual_seed(seed + 1))
    overlap, kept = ops.overlaps(boxes, boxes), []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap[i, j] <= threshold for j in kept):
            kept.append(i)
    assert ops.suppress(boxes, scores, threshold).tolist() == kept


def test_groups_do_not_suppress_each_other() -> None:
    boxes, scores, groups = random_boxes(1, 0).repeat(4, 1), torch.tensor([0.2, 0.9, 0.8, 0.4]), torch.tensor([5, 2, 5, 2])
    assert ops.suppress_by_group(boxes, scores, groups, 0.5).tolist() == [1, 2]


def test_pooling_reads_a_ramp_at_the_centres_of_its_bins() -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    boxes = torch.tensor([[8.0, 16.0, 64.0, 72.0], [0.0, 0.0, 28.0, 14.0]])
    pooled = ops.roi_align(torch.stack([y, x, torch.ones(20, 30)]), boxes, 0.25, bins=7)
    centres = (torch.arange(7) + 0.5) / 7
    torch.testing.assert_close(pooled[0, 0], (4 + 14 * centres)[:, None].expand(7, 7))
    torch.testing.assert_close(pooled[0, 1], (2 + 14 * centres)[None].expand(7, 7))
    torch.testing.assert_close(pooled[1, 1], (7 * centres)[None].expand(7, 7))
    torch.testing.assert_close(pooled[:, 2], torch.ones(2, 7, 7))


def test_pooling_sees_only_the_feature() -> None:
    """Readings beside the feature repeat its edge for one cell, then are zero."""
    pooled = ops.roi_align(torch.ones(1, 4, 4), torch.tensor([[3.0, 3.0, 10.0, 10.0]]), 1.0, bins=7, samples=1)
    assert pooled[0, 0, 0].tolist() == [1, 0, 0, 0, 0, 0, 0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_decoding_inverts_encoding(seed: int) -> None:
    boxes, anchors = random_boxes(9, seed), random_boxes(9, seed + 1)
    weights = (10.0, 10.0, 5.0, 5.0)
    torch.testing.assert_close(ops.decode(ops.encode(boxes, anchors, weights), anchors, weights), boxes, atol=1e-3, rtol=1e-4)


def test_every_target_gets_a_box_and_the_middling_teach_nothing() -> None:
    targets = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 20.0], [30.0, 0.0, 40.0, 10.0], [58.0, 50.0, 68.0, 60.0]])
    index, kind = ops.match(targets, boxes, low=0.3, high=0.7, keep_best=True)
    assert kind.tolist() == [1, -1, 0, 1]
    assert index[kind == 1].tolist() == [0, 1]
    objects, background = ops.sample(kind, 3, 0.34)
    assert len(objects) == 1
    assert kind[objects].tolist() == [1]
    assert background.tolist() == [2]
