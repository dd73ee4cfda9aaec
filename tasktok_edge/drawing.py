"""Answers drawn over frames, for people."""

import cv2
import numpy as np
from numpy.typing import NDArray

from tasktok_edge.runtimes.answers import SHOWN_SCORE, Answer, Classification, Detections, Segmentation

Image = NDArray[np.uint8]


def draw_answer(frame: Image, answer: Answer) -> tuple[Image, str]:
    """Draw mask or boxes over a copy of the frame; a label comes back as words."""
    drawn = frame.copy()
    if isinstance(answer, Classification):
        return drawn, f"{answer.label} {answer.scores[answer.index]:.0%}"
    if isinstance(answer, Segmentation):
        colours = _colours(len(answer.labels))
        colours[0] = 0
        tint = colours[answer.mask]
        solid = answer.mask > 0
        drawn[solid] = (0.5 * drawn[solid] + 0.5 * tint[solid]).astype(np.uint8)
        return drawn, ""
    return _draw_boxes(drawn, answer), ""


def _draw_boxes(frame: Image, found: Detections) -> Image:
    colours = _colours(len(found.names) + 1)
    for box, label, confidence in zip(found.boxes, found.labels, found.scores, strict=True):
        if confidence < SHOWN_SCORE:
            continue
        x0, y0, x1, y1 = (round(float(v)) for v in box)
        colour = [int(c) for c in colours[label + 1]]
        cv2.rectangle(frame, (x0, y0), (x1, y1), colour, 2)
        text = f"{found.names[label]} {confidence:.2f}"
        cv2.putText(frame, text, (x0 + 2, max(y0 - 4, 10)), cv2.FONT_HERSHEY_SIMPLEX, 0.38, colour, 1, cv2.LINE_AA)
    return frame


def _colours(n: int) -> Image:
    hues = (np.arange(n) * 179 // max(n, 1)).astype(np.uint8)
    hsv = np.stack([hues, np.full(n, 210, np.uint8), np.full(n, 255, np.uint8)], 1)[None]
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0], np.uint8)
