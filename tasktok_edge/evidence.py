"""What an answer shows for its task's metric, small enough to be kept, and the metrics of any share of the frames.

A `Meter` gives a metric for rows of weights (B, n), how often each of n frames counts: once for the metric itself, any
number of times in a resample. Metrics are those of torchmetrics and pycocotools on the frames repeated so, as tests hold.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tasktok_edge.data.folders import IGNORED
from tasktok_edge.metrics import coco_box
from tasktok_edge.runtimes.answers import Answer, Classification, Segmentation

Floats = NDArray[np.float64]
Meter = Callable[[Floats], Floats]
Observation = Mapping[str, Any]  # as JSON takes it
TOP = 5


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of a frame: label; mask (H, W), 255 where it is not known; boxes (n, 4) xyxy pixels with labels (n,)."""

    label: int | None = None
    semantic: NDArray[np.uint8] | None = None
    boxes: NDArray[np.float32] | None = None
    box_labels: NDArray[np.int64] | None = None


def observe(answer: Answer, truth: Truth) -> Observation:
    """What counts of an answer, beside the truth, for its metric."""
    if isinstance(answer, Classification):
        return {"rank": int((answer.scores > answer.scores[truth.label]).sum())}
    if isinstance(answer, Segmentation):
        assert truth.semantic is not None
        n, known = len(answer.labels), truth.semantic != IGNORED
        cells = truth.semantic[known].astype(np.int64) * n + answer.mask[known]
        return {"confusion": np.bincount(cells, minlength=n * n).tolist()}
    assert truth.boxes is not None and truth.box_labels is not None
    return {
        "boxes": answer.boxes.tolist(),
        "labels": list(answer.labels),
        "scores": answer.scores.tolist(),
        "true_boxes": truth.boxes.tolist(),
        "true_labels": truth.box_labels.tolist(),
    }


def meter(kind: str, observations: Sequence[Observation]) -> Meter:
    """The metric of a kind of task, in [0, 1]: top-1, mIoU of one confusion matrix, or COCO's mAP[.5:.95]."""
    return {"cls": top, "seg": mean_iou, "det": mean_ap}[kind](observations)


def top(observations: Sequence[Observation], k: int = 1) -> Meter:
    """The share of frames whose label is among the best `k`."""
    hits = np.array([o["rank"] < k for o in observations], np.float64)
    return lambda weights: weights @ hits / weights.sum(axis=1)


def mean_iou(observations: Sequence[Observation]) -> Meter:
    """The mean, over the classes that were there or were found, of intersection over union, all frames in one matrix."""
    matrices = np.array([o["confusion"] for o in observations], np.float64)
    n = int(matrices.shape[1] ** 0.5)

    def of(weights: Floats) -> Floats:
        matrix = (weights @ matrices).reshape(-1, n, n)
        both = np.diagonal(matrix, axis1=1, axis2=2)
        either = matrix.sum(1) + matrix.sum(2) - both
        with np.errstate(invalid="ignore"):
            return np.asarray(np.nanmean(both / either, axis=1), np.float64)

    return of


@dataclass(frozen=True, eq=False)
class _Class:
    """Detections of one class, the best first, matched by pycocotools at each of T thresholds of IoU."""

    frame: NDArray[np.int64]  # (D,)
    right: NDArray[np.bool_]  # (T, D)
    counts: NDArray[np.bool_]  # (T, D), right or wrong; pycocotools ignores some, such as boxes of negative area
    objects: Floats  # (n,) how many there are in each frame


def mean_ap(observations: Sequence[Observation]) -> Meter:
    """COCO's mAP[.5:.95], up to 100 boxes a frame: its matches by pycocotools, which no resampling changes, then its curve."""
    classes, recalls = _matched(observations)

    def of(weights: Floats) -> Floats:
        found = [_average_precision(one, weights, recalls) for one in classes]
        if not found:
            return np.zeros(len(weights))
        with np.errstate(invalid="ignore"):
            return np.asarray(np.nanmean(np.stack(found), axis=0), np.float64)

    return of


def _average_precision(one: _Class, weights: Floats, recalls: Floats) -> Floats:
    """For each row of weights the mean over thresholds of the precision at COCO's 101 recalls; NaN without any object.

    Recall rises at true positives alone, and between two of them precision falls: it is looked at there, and nowhere else.
    """
    objects = weights @ one.objects  # (B,)
    each = weights[:, one.frame]  # (B, D)
    rows = np.arange(len(each))[:, None]
    sums, counted, seen = np.zeros(len(each)), None, each
    for right, counts in zip(one.right, one.counts, strict=True):
        if counted is None or not np.array_equal(counts, counted):  # nearly always the same for all thresholds
            counted, seen = counts, np.cumsum(each * counts, axis=1)
        at = np.flatnonzero(right)
        if not len(at):
            continue
        true = np.cumsum(each[:, at], axis=1)
        precision = true / np.maximum(seen[:, at], np.spacing(1.0))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = true / np.maximum(objects, 1)[:, None]
        # One search for all rows: recall is at most 1, so that rows 2 apart do not meet.
        place = np.searchsorted((recall + 2 * rows).ravel(), (recalls + 2 * rows).ravel()).reshape(len(each), -1) - rows * len(
            at
        )
        padded = np.concatenate([precision, np.zeros((len(each), 1))], axis=1)
        sums += padded[rows, np.minimum(place, len(at))].mean(axis=1)
    return np.where(objects > 0, sums / len(one.right), np.nan)


def _matched(observations: Sequence[Observation]) -> tuple[list[_Class], Floats]:
    images, annotations, results = list[Any](), list[Any](), list[Any]()
    labels = sorted({k for o in observations for k in (*o["labels"], *o["true_labels"])})
    for i, o in enumerate(observations, 1):
        images.append({"id": i})
        for box, label in zip(o["true_boxes"], o["true_labels"], strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": label + 1, "iscrowd": 0, **coco_box(box)}
            )
        for box, label, score in zip(o["boxes"], o["labels"], o["scores"], strict=True):
            results.append({"image_id": i, "category_id": label + 1, "score": score, **coco_box(box)})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its way through
        coco, found = COCO(), COCO()
        categories = [{"id": k + 1} for k in labels]
        coco.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        coco.createIndex()
        if results:
            found = coco.loadRes(results)
        else:
            found.dataset = {"info": {}, "images": images, "annotations": [], "categories": categories}
            found.createIndex()
        judge = COCOeval(coco, found, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], judge.params.areaRngLbl[:1]
        judge.evaluate()
    n, classes = len(observations), []
    for k in range(len(labels)):
        seen = [(i, e) for i, e in enumerate(judge.evalImgs[k * n : (k + 1) * n]) if e is not None]
        objects = np.zeros(n)
        for i, e in seen:
            objects[i] = len(e["gtIds"])
        scores = np.concatenate([np.zeros(0), *(e["dtScores"] for _, e in seen)])
        order = np.argsort(-scores, kind="mergesort")
        frame = np.concatenate([np.zeros(0, np.int64), *(np.full(len(e["dtScores"]), i) for i, e in seen)])
        none = np.zeros((len(judge.params.iouThrs), 0))
        matched = np.concatenate([none, *(e["dtMatches"] for _, e in seen)], axis=1)[:, order] > 0
        counts = np.concatenate([none, *(e["dtIgnore"] for _, e in seen)], axis=1)[:, order] == 0
        classes.append(_Class(frame[order], matched & counts, counts, objects))
    return classes, np.asarray(judge.params.recThrs, np.float64)
