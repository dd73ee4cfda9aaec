"""What int8 loses layer by layer, as one tall picture: noise on the left, points on the right, longer is worse."""

from itertools import cycle, groupby
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # there may be no screen

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tasktok_edge.quantize.judge import PSNR_LIMIT_DB
from tasktok_edge.quantize.sensitivity import LayerLoss, Sensitivity

PARTS = ("pre-restorer", "encoder", "refiner", "decoder")  # in the order of the data, before the task networks
MARKED = 10  # of the most sensitive layers are numbered
MARGIN_DB = 4.0
GREY = "#5f6368"


def sensitivity_picture(path: Path, found: Sensitivity, *, title: str) -> None:
    """Write a picture with a bar a layer, by part; on the left the PSNR of the raw answers, on the right the points lost."""
    rows = sorted(found.rows, key=lambda row: PARTS.index(row.part) if row.part in PARTS else len(PARTS))
    groups = {part: list(layers) for part, layers in groupby(rows, key=lambda row: row.part)}
    places: dict[str, float] = {}
    y = 0.0
    figure, axes = plt.subplots(
        1,
        2,
        figsize=(10.5, 1.9 + 0.165 * (len(rows) + 2 * len(groups))),
        sharey=True,
        width_ratios=[1.25, 1],
        layout="constrained",
    )
    colours = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for colour, (part, layers) in zip(cycle(colours), groups.items(), strict=False):
        y += 1.6
        axes[0].annotate(
            part, (0, y - 0.9), xycoords=("axes fraction", "data"), xytext=(-4, 0), textcoords="offset points", ha="right",
            va="center", color=colour, weight="bold", fontsize=9,
        )  # fmt: skip
        for row in layers:
            places[row.name] = y
            axes[0].barh(y, PSNR_LIMIT_DB - row.worst_db, left=row.worst_db, color=colour, height=0.72)
            axes[1].barh(y, row.worst_drop, color=colour, height=0.72)
            y += 1
    axes[0].set_yticks(list(places.values()), [short_name(row) for row in rows], fontsize=7)
    axes[0].set_ylim(y + 0.2, 0)
    _decibels(axes[0], found, places)
    _points(axes[1], found, places)
    for axis in axes:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color="#dadce0", linewidth=0.6)
        axis.set_axisbelow(True)
    together = ", ".join(f"{task} {points:.1f} → {found.int8_points[task]:.1f}" for task, points in found.points.items())
    figure.suptitle(f"{title}\n{found.frames} frames; all layers in int8: {together}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def short_name(row: LayerLoss) -> str:
    """Name a layer within its part.

    >>> short_name(LayerLoss("tokenizer.encoder.transformer.blocks.0.attn.qkv", {}, {}, bytes=0, macs=0))
    'blocks.0.attn.qkv'
    """
    inside = row.name.split(".")[2 if row.name.startswith(("tokenizer.", "task_nets.")) else 1 :]
    return ".".join(word for word in inside if word not in ("transformer", "backbone"))


def _decibels(axis: Axes, found: Sensitivity, places: dict[str, float]) -> None:
    """The axis runs down: what loses more has the longer bar. The worst are numbered."""
    lowest = min(row.worst_db for row in found.rows)
    axis.set_xlim(PSNR_LIMIT_DB, lowest - MARGIN_DB)
    rank = {row.name: i for i, row in enumerate(found.ranked()[:MARKED], 1)}
    for row in found.rows:
        weight = "bold" if row.name in rank else "normal"
        told = f"{row.worst_db:.0f}" + (f"  #{rank[row.name]}" if row.name in rank else "")
        axis.annotate(
            told, (row.worst_db, places[row.name]), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6.5,
            color="black" if row.name in rank else GREY, weight=weight,
        )  # fmt: skip
    axis.set_xlabel("PSNR of the raw answers of the task that suffers most, dB (longer: worse)", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)


def _points(axis: Axes, found: Sensitivity, places: dict[str, float]) -> None:
    """The drop of the task that loses most, named where it is more than a tenth of a point; noise is shaded."""
    axis.axvspan(-found.noise, found.noise, color="#f1f3f4", zorder=0)
    axis.axvline(0, color=GREY, linewidth=0.8)
    for row in found.rows:
        if abs(row.worst_drop) >= 0.1:
            task = max(row.drop, key=lambda name: row.drop[name])
            axis.annotate(
                task, (max(row.worst_drop, 0.0), places[row.name]), xytext=(3, 0), textcoords="offset points", va="center",
                fontsize=6.5, color=GREY,
            )  # fmt: skip
    low, high = min(row.worst_drop for row in found.rows), max(row.worst_drop for row in found.rows)
    axis.set_xlim(min(low * 1.1, -1.1 * found.noise), max(high * 1.15, 1.2 * found.noise))
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.set_xlabel("points lost by the task that loses most (shaded: noise)", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
