import numpy as np
import pytest

from tasktok_edge.frames import Layout, Window, lay_out
from tasktok_edge.runtimes.answers import MAX_BOXES, classification, detections, segmentation, softmax, suppress

NAMES = ("cat", "dog")


def test_softmax_of_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.array([[1e4, 1e4 - 1, -1e4]], np.float32))[0], [0.7311, 0.2689, 0], atol=1e-4)


def test_classification_averages_probabilities_not_logits() -> None:
    logits = [
        np.array([[8.0, 0.0]], np.float32),
        np.array([[0.0, 1.0]], np.float32),
        np.array([[0.0, 1.0]], np.float32),
    ]
    found = classification(logits, NAMES)
    assert found.scores[1] == pytest.approx((1 / (1 + np.e**8) + 2 / (1 + np.e**-1)) / 3, abs=1e-5)
    assert (found.index, found.label) == (0, "cat") if found.scores[0] > 0.5 else (1, "dog")
    assert classification(logits[:1], NAMES).label == "cat"


@pytest.mark.parametrize("labels", [1, 2, 7, 256])
def test_segmentation_takes_the_first_of_the_best(labels: int) -> None:
    logits = np.random.default_rng(0).integers(0, 3 + labels // 4, (1, labels, 16, 16)).astype(np.float32)  # many ties
    found = segmentation([logits], lay_out(16, 16, 16), tuple(map(str, range(labels))))
    np.testing.assert_array_equal(found.mask, logits[0].argmax(0))
    assert found.mask.dtype == np.uint8


def test_segmentation_over_windows() -> None:
    layout = lay_out(20, 50, 8)
    logits = [np.full((1, 3, 8, 8), -5.0, np.float32) for _ in layout.windows]
    for i, x in enumerate(logits):
        x[:, i] = 5.0
    mask = segmentation(logits, layout, ("a", "b", "c")).mask
    assert mask.shape == (20, 50)
    assert mask[:, 0].tolist() == [0] * 20
    assert mask[:, 25].tolist() == [1] * 20
    assert mask[:, -1].tolist() == [2] * 20


def box(*rows: tuple[float, ...]) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([rows], np.float32)


def test_detections_scale_shift_clip_and_suppress() -> None:
    places = (Window(0, 0, 20, 20), Window(0, 10, 20, 20))  # functions of 10 pixels: factor 2
    layout = Layout(20, 30, 10, "area", places, is_plain=False)
    left = box((1, 1, 5, 5), (1, 1, 5, 5.5), (8, 8, 30, 30), (1, 1, 5, 5)), box((0.9, 0), (0.8, 0), (0.3, 0), (0, 0.7))
    right = box((-4, 1, 0, 5), (-9, -9, -8, -8), (0, 0, 2, 2)), box((0.95, 0), (0.9, 0), (0.04, 0))
    found = detections([left, right], layout, NAMES)
    np.testing.assert_allclose(found.boxes, [[2, 2, 10, 10], [2, 2, 10, 10], [16, 16, 30, 20]])
    np.testing.assert_allclose(found.scores, [0.95, 0.7, 0.3])
    assert found.labels == [0, 1, 0]  # another label is not suppressed, the box outside and the weak one are gone
    assert found.names == NAMES


def test_only_peaks_of_a_heat_map_are_boxes() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, (1, 25, 2)).astype(np.float32)
    scores[0, 7], scores[0, 8] = 1.0, 1.0  # two cells side by side, as high: both are peaks
    corner = 4.0 * np.stack(np.divmod(np.arange(25), 5)[::-1], -1)
    boxes = np.concatenate([corner, corner + 3], -1)[None].astype(np.float32)  # none overlaps another
    found = detections([(boxes, scores)], lay_out(20, 20, 20), NAMES, heat_map=5)
    wanted = set()
    for label in range(2):
        heat = np.pad(scores[0, :, label].reshape(5, 5), 1, constant_values=-1)
        for y in range(5):
            for x in range(5):
                if heat[y + 1, x + 1] == heat[y : y + 3, x : x + 3].max() > 0.05:
                    wanted.add((label, 4.0 * x, 4.0 * y))
    assert {(label, *b[:2]) for label, b in zip(found.labels, found.boxes.tolist(), strict=True)} == wanted
    assert {(0, 8.0, 4.0), (0, 12.0, 4.0)} <= wanted and len(wanted) < 25


def test_detections_in_a_padded_frame() -> None:
    layout = lay_out(20, 60, 15, framing="pad")  # 5 rows of 15, the rest is reflection
    found = detections([(box((3, 1, 6, 4), (10, 3, 12, 9), (1, 6, 9, 12)), box((0.9, 0), (0.8, 0), (0.7, 0)))], layout, NAMES)
    np.testing.assert_allclose(found.boxes, [[12, 4, 24, 16], [40, 12, 48, 20]])  # clipped, and what is outside is gone
    tall = detections([(box((1, 3, 4, 6)), box((0.9, 0)))], lay_out(60, 20, 15, framing="pad"), NAMES)
    np.testing.assert_allclose(tall.boxes, [[4, 12, 16, 24]])


def test_segmentation_of_a_padded_frame() -> None:
    logits = np.zeros((1, 2, 8, 8), np.float32)
    logits[0, 1, :4, 4:] = 9.0  # the right half of the four rows that are the frame
    logits[0, 1, 4:] = 9.0  # and all that is not
    mask = segmentation([logits], lay_out(20, 40, 8, framing="pad"), NAMES).mask
    assert mask.shape == (20, 40)
    assert (mask[:, :17] == 0).all() and (mask[:, 23:] == 1).all()


def test_nothing_found() -> None:
    found = detections([(box((1, 1, 2, 2)), box((0.01, 0.05)))], lay_out(8, 8, 8), NAMES)
    assert found.boxes.shape == (0, 4)
    assert found.labels == []
    assert found.scores.dtype == np.float32


def slow_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> list[int]:  # type: ignore[type-arg]
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        for j in kept:
            low, high = np.maximum(boxes[i, :2], boxes[j, :2]), np.minimum(boxes[i, 2:], boxes[j, 2:])
            common = float(np.prod(np.clip(high - low, 0, None)))
            areas = [float(np.prod(boxes[k, 2:] - boxes[k, :2])) for k in (i, j)]
            if labels[i] == labels[j] and common > 0.5 * (sum(areas) - common):
                break
        else:
            kept.append(i)
    return kept[:MAX_BOXES]


def test_suppression_is_the_textbooks() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (300, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (300, 2))], 1)
    scores, labels = rng.permutation(300) / 300, rng.integers(0, 3, 300)
    assert suppress(boxes, scores, labels).tolist() == slow_nms(boxes, scores, labels)
