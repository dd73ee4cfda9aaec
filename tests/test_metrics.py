"""Measures by hand-computed numbers."""

import numpy as np
import pytest

from tasktok_edge.data.scenes import Frame
from tasktok_edge.metrics import same_answer, score
from tasktok_edge.runtimes.answers import Classification, Detections, Segmentation
from tasktok_edge.scores import won_back


def frame(*, label: int = 0, semantic: list[list[int]] | None = None, boxes: list[list[float]] | None = None) -> Frame:
    mask = np.array([[0]] if semantic is None else semantic, np.uint8)
    found = np.array(boxes or [], np.float32).reshape(-1, 4)
    return Frame(
        image=np.zeros((*mask.shape, 3), np.uint8), label=label, semantic=mask, instances=mask, boxes=found,
        box_labels=np.zeros(len(found), np.int64), depth=np.zeros(mask.shape, np.float32),
    )  # fmt: skip


def label(index: int) -> Classification:
    return Classification(index, "abc"[index], np.eye(3, dtype=np.float32)[index])


def mask(rows: list[list[int]]) -> Segmentation:
    return Segmentation(np.array(rows, np.uint8), ("a", "b"))


def boxes(*found: tuple[list[float], float], label: int = 0) -> Detections:
    return Detections(
        np.array([b for b, _ in found], np.float32).reshape(-1, 4),
        [label] * len(found),
        np.array([s for _, s in found], np.float32),
        ("x", "y"),
    )


def test_top_1() -> None:
    assert score([label(0), label(1), label(2), label(2)], [frame(label=i) for i in (0, 1, 2, 0)]) == pytest.approx(0.75)


def test_miou_is_over_one_confusion_matrix() -> None:
    # a: 3 seen, 3 true, 2 common, union 4; b: 5 seen, 5 true, 4 common, union 6
    answers = [mask([[0, 0], [1, 1]]), mask([[0, 1], [1, 1]])]
    truth = [frame(semantic=[[0, 0], [1, 1]]), frame(semantic=[[1, 0], [1, 1]])]
    assert score(answers, truth) == pytest.approx((2 / 4 + 4 / 6) / 2)


def test_map_of_perfect_half_and_no_answers() -> None:
    truth = [frame(boxes=[[0, 0, 40, 40], [60, 60, 100, 100]])]
    both = boxes(([0, 0, 40, 40], 0.9), ([60, 60, 100, 100], 0.8))
    assert score([both], truth) == pytest.approx(1.0)
    # One of two: precision 1 up to recall 0.5, which is 51 of COCO's 101 points.
    assert score([boxes(([0, 0, 40, 40], 0.9))], truth) == pytest.approx(51 / 101)
    assert score([boxes()], truth) == 0.0


def test_a_box_at_iou_0_8_counts_at_the_six_lower_thresholds() -> None:
    found = boxes(([0, 0, 40, 32], 0.9))  # IoU 0.8 exactly: .50 to .80 are seven thresholds, >= counts
    assert score([found], [frame(boxes=[[0, 0, 40, 40]])]) == pytest.approx(0.7, abs=0.1001)


def test_same_answer() -> None:
    assert same_answer(label(1), label(1)) and not same_answer(label(1), label(2))
    one = np.zeros((20, 50), int)
    other = one.copy()
    other.flat[:5] = 1
    assert same_answer(mask(one.tolist()), mask(other.tolist()))  # 99.5 %
    other.flat[5] = 1
    assert not same_answer(mask(one.tolist()), mask(other.tolist()))
    a = boxes(([0, 0, 40, 40], 0.9), ([50, 50, 60, 60], 0.2))
    assert same_answer(a, boxes(([0, 0, 40, 41], 0.8)))  # the unsure one does not count
    assert not same_answer(a, boxes(([0, 0, 40, 41], 0.8), label=1))
    assert not same_answer(a, boxes())
    assert not same_answer(boxes(), a)
    assert same_answer(boxes(([0, 0, 9, 9], 0.301)), boxes(([0, 0, 9, 9], 0.299)))


def test_won_back() -> None:
    assert won_back(clean=0.9, degraded=0.5, restored=0.7) == pytest.approx(0.5)
    assert np.isnan(won_back(clean=0.5, degraded=0.5, restored=0.7))
