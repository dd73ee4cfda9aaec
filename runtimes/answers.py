"""From what a function gives to what a person asked: label, mask or boxes, in pixels of the frame that was given.

Outputs by task kind, float32, S the function's size:
    restore_<task>          (1, S, S, 3)  nominally in [0, 1], not clamped
    predict_<task>   cls    (1, C)        logits
                     seg    (1, C, S, S)  logits
    predict_<task>_boxes    (1, N, 4)     x1, y1, x2, y2 in pixels of S
    predict_<task>_scores   (1, N, C)     in [0, 1]
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tasktok_edge.frames import Layout, fitted

Kind = Literal["cls", "seg", "det"]

SCORE_FLOOR = 0.05  # torchvision's detectors use the same three, so that scores compare
NMS_IOU = 0.5
MAX_BOXES = 100
SHOWN_SCORE = 0.3  # of boxes that people are shown
MAX_CANDIDATES = 1000  # before suppression, the best first: its cost grows with the square


@dataclass(frozen=True, eq=False)
class Classification:
    index: int
    label: str
    scores: NDArray[np.float32]  # (C,) probabilities


@dataclass(frozen=True, eq=False)
class Segmentation:
    mask: NDArray[np.uint8]  # (H, W) indices into labels
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Detections:
    boxes: NDArray[np.float32]  # (n, 4) x1, y1, x2, y2 in pixels of the frame, best first
    labels: list[int]  # indices into names
    scores: NDArray[np.float32]  # (n,)
    names: tuple[str, ...]


Answer = Classification | Segmentation | Detections


def softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Softmax over the last axis."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), np.float32)


def classification(logits: Sequence[NDArray[Any]], labels: tuple[str, ...]) -> Classification:
    """Average the probabilities of all windows, (1, C) logits each."""
    scores = softmax(logits[0][0]) if len(logits) == 1 else softmax(np.concatenate(logits)).mean(axis=0)
    index = int(scores.argmax())
    return Classification(index, labels[index], scores)


def _softmax_planes(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Softmax over the first axis of (C, H, W)."""
    e = np.exp(logits - logits.max(axis=0))
    e /= e.sum(axis=0)
    return np.asarray(e, np.float32)


def _argmax(planes: Sequence[NDArray[np.float32]]) -> NDArray[np.uint8]:
    """Find which of at most 256 planes (H, W) is the best at every pixel, the first of equals."""
    best = planes[0].copy()
    for plane in planes[1:]:
        np.maximum(best, plane, out=best)
    index = np.full(best.shape, 255, np.uint8)
    for i, plane in enumerate(planes):
        here: NDArray[Any] = cv2.compare(plane, best, cv2.CMP_NE)  # 0 where it is the best, 255 elsewhere
        here |= np.uint8(i)
        np.minimum(index, here, out=index)
    return index


def segmentation(logits: Sequence[NDArray[Any]], layout: Layout, labels: tuple[str, ...]) -> Segmentation:
    """Join the windows' probabilities, (1, C, S, S) logits each, and take the best label of every pixel."""
    if layout.is_plain:
        return Segmentation(_argmax(logits[0][0]), labels)  # softmax would change no order
    windows = [_softmax_planes(x[0]) for x in logits]  # plane by plane: five times as fast as with channels last
    joined = [layout.join([window[c, :, :, None] for window in windows])[..., 0] for c in range(len(labels))]
    return Segmentation(_argmax(joined), labels)


def suppress(boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.intp]:
    """Suppress boxes that overlap a better one of their label by more than NMS_IOU; give indices, best first."""
    if not len(boxes):
        return np.zeros(0, np.intp)
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    suppressed: Any = cv2.dnn.NMSBoxesBatched  # its annotation knows lists alone
    kept = suppressed(sides, scores, labels.astype(np.int32), 0.0, NMS_IOU, top_k=MAX_CANDIDATES)
    return np.asarray(kept, np.intp)[:MAX_BOXES]


def _peaks(scores: NDArray[Any], side: int) -> NDArray[np.bool_]:
    """Which scores (side * side, C), cells row by row, no neighbour of their label exceeds."""
    heat = scores.reshape(side, side, -1)
    highest = cv2.dilate(heat, np.ones((3, 3), np.uint8))
    return np.asarray(heat >= highest.reshape(heat.shape)).reshape(scores.shape)


def detections(
    found: Sequence[tuple[NDArray[Any], NDArray[Any]]], layout: Layout, names: tuple[str, ...], *, heat_map: int = 0
) -> Detections:
    """Merge the windows' boxes (1, N, 4) and scores (1, N, C) in the frame's pixels, and suppress doubles.

    Where the boxes come from the cells of a `heat_map` of this side, only those at its peaks count (arXiv 1904.07850, section
    4): as accurate as all of them, and suppression, which took a fifth of a frame's time, has fewer to look at.
    """
    all_boxes, all_scores, all_labels = [], [], []
    edge = np.array([layout.width, layout.height] * 2, np.float32)
    for (boxes, scores), w in zip(found, layout.windows, strict=True):
        sure = scores[0] > SCORE_FLOOR
        anchor, label = np.nonzero(sure & _peaks(scores[0], heat_map) if heat_map else sure)
        rows, columns = fitted(w, layout.size)
        scale = np.array([w.width / columns, w.height / rows] * 2, np.float32)
        moved = boxes[0][anchor] * scale + np.array([w.left, w.top] * 2, np.float32)
        all_boxes.append(np.clip(moved, 0, edge))
        all_scores.append(scores[0][anchor, label])
        all_labels.append(label)
    box = np.concatenate(all_boxes).astype(np.float32, copy=False)
    score, index = np.concatenate(all_scores), np.concatenate(all_labels)
    solid = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])  # clipping may leave a line
    box, score, index = box[solid], score[solid], index[solid]
    kept = suppress(box, score, index)
    return Detections(box[kept], index[kept].tolist(), score[kept].astype(np.float32, copy=False), names)


def answer_of(
    kind: Kind,
    name: str,
    outputs: Sequence[Mapping[str, NDArray[Any]]],
    layout: Layout,
    labels: tuple[str, ...],
    *,
    heat_map: int = 0,
) -> Answer:
    """Turn the raw outputs of all windows of a frame into the answer of a task of this kind; `name` is predict_<task>."""
    if kind == "cls":
        return classification([o[name] for o in outputs], labels)
    if kind == "seg":
        return segmentation([o[name] for o in outputs], layout, labels)
    return detections([(o[f"{name}_boxes"], o[f"{name}_scores"]) for o in outputs], layout, labels, heat_map=heat_map)


def say(answer: Answer) -> str:
    """Put an answer into a few words."""
    if isinstance(answer, Classification):
        return f"{answer.label} ({answer.scores[answer.index]:.0%})"
    if isinstance(answer, Segmentation):
        shares = np.bincount(answer.mask.ravel(), minlength=len(answer.labels)) / answer.mask.size
        return ", ".join(f"{answer.labels[i]} {shares[i]:.1%}" for i in np.argsort(-shares) if shares[i] >= 0.001)
    sure = [(answer.names[k], s) for k, s in zip(answer.labels, answer.scores, strict=True) if s >= SHOWN_SCORE]
    return ", ".join(f"{name} {score:.2f}" for name, score in sure) or "nothing found"


def plain(answer: Answer) -> dict[str, Any]:
    """An answer as JSON takes it; of a mask, the share of every label."""
    if isinstance(answer, Segmentation):
        shares = np.bincount(answer.mask.ravel(), minlength=len(answer.labels)) / answer.mask.size
        return {"shares": dict(zip(answer.labels, shares.round(6).tolist(), strict=True))}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(answer).items()}
