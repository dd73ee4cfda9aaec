"""Metrics of weighted frames equal the reference libraries' on the frames repeated; intervals cover at their stated rate."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from tasktok_edge.data.scenes import make_scene, render
from tasktok_edge.evidence import Floats, Meter, Truth, mean_ap, mean_iou, meter, observe, top
from tasktok_edge.interval import Interval, paired_interval
from tasktok_edge.metrics import coco_map
from tasktok_edge.runtimes.answers import Classification, Detections, Segmentation

N_LABELS = 4
NAMES = tuple("abcd")
BLANK = render(make_scene("test", 0), size=8)
Rng = np.random.Generator


def repeated(weights: Floats) -> list[int]:
    return [i for i, w in enumerate(weights.astype(int)) for _ in range(w)]


def draws(rng: Rng, n: int) -> Floats:
    """All frames once, and a resample."""
    return np.stack([np.ones(n), np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_top_1_and_top_5_are_torchmetrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 30)), 8
    scores, labels = rng.random((n, k)).astype(np.float32), rng.integers(0, k, n)
    seen = [observe(Classification(int(s.argmax()), "", s), Truth(label=int(t))) for s, t in zip(scores, labels, strict=True)]
    for weights in draws(rng, n):
        rows = repeated(weights)
        for top_k in (1, 5):
            wanted = multiclass_accuracy(
                torch.from_numpy(scores[rows]), torch.from_numpy(labels[rows]), k, average="micro", top_k=top_k
            )
            assert top(seen, top_k)(weights[None])[0] == pytest.approx(float(wanted), abs=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_miou_is_torchmetrics_and_unknown_pixels_do_not_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 8))
    masks, truth = (rng.integers(0, N_LABELS - 1, (n, 6, 5)).astype(np.uint8) for _ in range(2))
    truth[rng.random(truth.shape) < 0.1] = 255
    seen = [observe(Segmentation(m, NAMES), Truth(semantic=t)) for m, t in zip(masks, truth, strict=True)]
    for weights in draws(rng, n):
        rows = repeated(weights)
        wanted = multiclass_jaccard_index(
            torch.from_numpy(masks[rows]).long().flatten(), torch.from_numpy(truth[rows]).long().flatten(),
            N_LABELS, average="macro", ignore_index=255,
        )  # fmt: skip
        assert mean_iou(seen)(weights[None])[0] == pytest.approx(float(wanted), abs=1e-6)


def scene(rng: Rng) -> tuple[Detections, Truth]:
    """Some objects, found more or less, and some that are not there."""
    n = int(rng.integers(0, 4))
    corners = rng.uniform(0, 60, (n, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 40, (n, 2))], axis=1).astype(np.float32)
    labels = rng.integers(0, N_LABELS, n)
    extra = rng.uniform(0, 50, (int(rng.integers(0, 3)), 2))
    found = np.concatenate([boxes + rng.normal(0, 3, boxes.shape), np.concatenate([extra, extra + 20], 1)]).astype(np.float32)
    guesses = [*labels.tolist(), *rng.integers(0, N_LABELS, len(extra)).tolist()]
    scores = ((1 + rng.permutation(10)[: len(found)]) / 10).astype(np.float32)  # equal ones in other frames alone
    return Detections(found, guesses, scores, NAMES), Truth(boxes=boxes, box_labels=labels)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_map_is_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [scene(rng) for _ in range(int(rng.integers(2, 12)))]
    seen = [observe(*pair) for pair in pairs]
    for weights in draws(rng, len(pairs)):
        chosen = [pairs[i] for i in repeated(weights)]
        if not any(len(answer.boxes) for answer, _ in chosen) or not any(
            len(t.boxes) for _, t in chosen if t.boxes is not None
        ):
            continue  # pycocotools has no figure there
        frames = [replace(BLANK, boxes=t.boxes, box_labels=t.box_labels) for _, t in chosen]
        wanted = coco_map([answer for answer, _ in chosen], frames)
        assert mean_ap(seen)(weights[None])[0] == pytest.approx(wanted, abs=1e-9)


def test_the_interval_covers_a_known_drop_at_its_stated_rate() -> None:
    """Server 85 %, device 82 %, their errors in common as those of two models of one kind are."""
    rng, covered, studies, n = np.random.default_rng(0), 0, 300, 400
    for study in range(studies):
        server = rng.random(n) < 0.85
        device = np.where(server, rng.random(n) < 0.94, rng.random(n) < 0.14)
        drop = 0.85 * 0.94 + 0.15 * 0.14 - 0.85
        meters = (top([{"rank": int(not hit)} for hit in hits]) for hits in (device, server))
        found = paired_interval(*meters, n, seed=study, resamples=500)
        covered += found.low <= drop <= found.high
    assert 0.92 <= covered / studies <= 0.98


def noisy(rng: Rng, error: float, n: int = 60) -> list[dict[str, list[int]]]:
    matrices = np.stack([rng.multinomial(900, [0.5 - error, error, error, 0.5 - error]) for _ in range(n)])
    return [{"confusion": m.tolist()} for m in matrices]


def test_the_same_seed_gives_the_same_interval_and_the_same_answers_a_point() -> None:
    rng = np.random.default_rng(0)
    good, bad = (meter("seg", noisy(rng, error)) for error in (0.05, 0.1))
    first, again = (paired_interval(bad, good, 60, resamples=300) for _ in range(2))
    assert first == again and first.low < first.value < first.high < 0
    assert paired_interval(good, good, 60, resamples=300) == Interval(0.0, 0.0, 0.0)
    assert first.outcome(0.01) == "fail" and Interval(0.0, 0.0, 0.0).outcome(0.01) == "pass"


def test_of_no_detections_the_metric_is_nought() -> None:
    truth = Truth(boxes=np.array([[0, 0, 9, 9]], np.float32), box_labels=np.array([1]))
    none = Detections(np.zeros((0, 4), np.float32), [], np.zeros(0, np.float32), NAMES)
    empty: Meter = mean_ap([observe(none, truth)] * 3)
    assert empty(np.ones((1, 3)))[0] == 0
