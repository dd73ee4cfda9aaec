"""Before and after, as one picture that a person reads in a minute."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # there may be no screen

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tasktok_edge.data.heldout import HeldOut
from tasktok_edge.drawing import draw_answer
from tasktok_edge.runtimes.answers import Answer

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
