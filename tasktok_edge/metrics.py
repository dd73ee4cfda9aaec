"""Each task's own measure by its standard implementation, in [0, 1]; and when two answers are the same answer."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from tasktok_edge.data.scenes import Frame
from tasktok_edge.runtimes.answers import Answer, Classification, Detections, Segmentation

METRIC_NAMES = {"cls": "top-1", "seg": "mIoU", "det": "mAP"}
Record = dict[str, object]
SURE_SCORE = 0.3  # a detection that a person would draw; below it, answers may come and go with the last digit
SAME_BOX_IOU = 0.9
SAME_MASK = 0.995  # share of equal pixels


def score(answers: Sequence[Answer], truth: Sequence[Frame]) -> float:
    """Top-1 accuracy, mIoU from one confusion matrix, or COCO mAP[.5:.95], whichever fits the answers."""
    first = answers[0]
    if isinstance(first, Classification):
        predicted = torch.tensor([a.index for a in answers if isinstance(a, Classification)])
        labels = torch.tensor([frame.label for frame in truth])
        return float(multiclass_accuracy(predicted, labels, len(first.scores), average="micro"))
    if isinstance(first, Segmentation):
        masks = np.stack([a.mask for a in answers if isinstance(a, Segmentation)])
        wanted = np.stack([frame.semantic for frame in truth])
        return float(
            multiclass_jaccard_index(
                torch.from_numpy(masks).flatten().long(),
                torch.from_numpy(wanted).flatten().long(),
                len(first.labels),
                average="macro",
            )
        )
    return coco_map([a for a in answers if isinstance(a, Detections)], truth)


def coco_map(answers: Sequence[Detections], truth: Sequence[Frame]) -> float:
    """COCO mAP averaged over IoU .50 to .95, by pycocotools; boxes in pixels of the frame."""
    images, annotations, results = list[Record](), list[Record](), list[Record]()
    for i, (answer, frame) in enumerate(zip(answers, truth, strict=True), 1):
        images.append({"id": i})
        for box, label in zip(frame.boxes.tolist(), frame.box_labels.tolist(), strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": label + 1, "iscrowd": 0, **coco_box(box)}
            )
        for box, label, confidence in zip(answer.boxes.tolist(), answer.labels, answer.scores.tolist(), strict=True):
            results.append({"image_id": i, "category_id": label + 1, "score": confidence, **coco_box(box)})
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its way through
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(answers[0].names)],
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(results), "bbox")
        params = judge.params  # the figures by size of object aren't asked for, and take three quarters of the time
        params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0])


def coco_box(box: Sequence[float]) -> Record:
    """A box x0, y0, x1, y1 as COCO writes one: corner, width and height, and the area."""
    x0, y0, x1, y1 = box
    return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}


def same_answer(a: Answer, b: Answer) -> bool:
    """Whether a person would get the same answer: same label; 99.5 % of equal pixels; the same sure detections.

    A detection is sure at a score of 0.3; it must have a partner of its label in the other answer, at IoU 0.9 or more, with
    a score of at least 0.25 (so that one that falls from .3001 to .2999 is not another answer).
    """
    if isinstance(a, Classification) and isinstance(b, Classification):
        return a.index == b.index
    if isinstance(a, Segmentation) and isinstance(b, Segmentation):
        return float(np.mean(a.mask == b.mask)) >= SAME_MASK
    if isinstance(a, Detections) and isinstance(b, Detections):
        return _covered(a, b) and _covered(b, a)
    return False


def _covered(a: Detections, b: Detections) -> bool:
    for box, label, confidence in zip(a.boxes, a.labels, a.scores, strict=True):
        if confidence < SURE_SCORE:
            continue
        near = (np.array(b.labels) == label) & (b.scores >= SURE_SCORE - 0.05)
        if not near.any() or _iou(box, b.boxes[near]).max() < SAME_BOX_IOU:
            return False
    return True


def _iou(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    inner = np.clip(high - low, 0, None).prod(1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - inner
    return np.asarray(inner / np.maximum(union, 1e-9), np.float32)
