"""Before and after, as one picture that a person reads in a minute."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # there may be no screen

import cv2
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tasktok_edge.data.heldout import HeldOut
from tasktok_edge.metrics import SURE_SCORE
from tasktok_edge.runtimes.answers import Answer, Classification, Detections, Segmentation

Image = NDArray[np.uint8]


def before_after(
    path: Path,
    held: Sequence[HeldOut],
    columns: Mapping[str, Sequence[tuple[Image, Answer]]],
    *,
    title: str,
    selected: Mapping[str, tuple[int, Sequence[int]]],
) -> None:
    """Write a picture: a row a frame; degraded, then each column's restored frame with its answer drawn in, then clean.

    `columns` maps a heading to (restored frame, answer) for every frame of `held`. `selected` maps a task to (number of tokens,
    selected tokens), drawn below as the token map.
    """
    n = len(columns) + 2
    figure, axes = plt.subplots(
        len(held) + 1, n, figsize=(2.4 * n, 2.4 * len(held) + 1.4), height_ratios=[1.0] * len(held) + [0.35], squeeze=False
    )
    for row, scene in zip(axes[:-1], held, strict=True):
        _show(row[0], scene.degraded, "degraded")
        _show(row[-1], scene.truth.image, "clean")
    for i, (heading, cells) in enumerate(columns.items(), 1):
        for row, (restored, answer) in zip(axes[:-1], cells, strict=True):
            drawn, said = draw_answer(restored, answer)
            _show(row[i], drawn, f"{heading}\n{said}" if said else heading)
    for axis in axes[-1]:
        axis.axis("off")
    token_map(figure.add_subplot(axes[0, 0].get_gridspec()[-1, :]), selected)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


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
        if confidence < SURE_SCORE:
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


def _show(axis: Axes, image: Image, title: str) -> None:
    axis.imshow(image)
    axis.set_title(title, fontsize=8)
    axis.axis("off")


def token_map(axis: Axes, selected: Mapping[str, tuple[int, Sequence[int]]]) -> None:
    """Draw which tokens each task replaces; `selected` is task -> (number of tokens, those that are replaced)."""
    n = max(count for count, _ in selected.values())
    grid = np.zeros((len(selected), n))
    for i, (_, tokens) in enumerate(selected.values()):
        grid[i, list(tokens)] = 1
    axis.imshow(grid, cmap="Blues", aspect="auto", vmin=0, vmax=1.3)
    axis.set_yticks(range(len(selected)), [f"{task}: {len(tokens)} of {count}" for task, (count, tokens) in selected.items()])
    axis.set_xticks(np.arange(-0.5, n), minor=True)
    axis.set_yticks(np.arange(-0.5, len(selected)), minor=True)
    axis.grid(which="minor", color="white")
    axis.tick_params(labelsize=7)
    axis.set_title("tokens that are replaced, by task", fontsize=8)
