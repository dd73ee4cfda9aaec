"""report.html: one file that a person reads in two minutes, without a network; plots and pictures are inside."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")  # there may be no screen

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tasktok_edge.contestants import Contestant
from tasktok_edge.data.sources import Item
from tasktok_edge.drawing import draw_answer
from tasktok_edge.picture import token_map
from tasktok_edge.report import Bad, Judged, Report
from tasktok_edge.runtimes.answers import Answer
from tasktok_edge.validate import Validation

GAIN = 4  # of differences, so that one level of 255 is seen
TYPICAL = 2  # frames of each task that are shown whatever came of them
WIDTH, QUALITY = 256, 92  # pixels of a picture in the page, and JPEG's quality
COLOURS = {"pass": "#1a7f37", "not enough frames": "#9a6700", "fail": "#cf222e"}
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """One frame of the page: what is said of it, and pictures with their headings."""

    title: str
    cells: tuple[tuple[str, str], ...]  # heading, data URL


def write_page(file: Path, found: Validation) -> None:
    """Write the page of a validation whose sessions are still open: a few frames are answered again for their pictures."""
    report = found.report
    assert report is not None
    template = (files("tasktok_edge") / "assets" / "report.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(template)
    text = page.render(
        report=report,
        colours=COLOURS,
        accuracy=_url(_accuracy(report)) if any(c.metrics for c in report.columns) else None,
        differences=_url(_differences(report)) if any(b.tasks for b in report.bundles) else None,
        groups=_url(_groups(report)) if report.groups else None,
        bundles=[(bundle, _tokens(found, bundle), _worst(found, bundle), _typical(found, bundle)) for bundle in report.bundles],
    )
    file.write_text(text, encoding="utf-8")


def _url(figure: Figure) -> str:
    """A plot as an SVG of its own, its text as text."""
    out = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tasktok-edge"}):
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return f"data:image/svg+xml;base64,{base64.b64encode(out.getvalue().encode()).decode()}"


def _picture(picture: Image) -> str:
    """A picture as JPEG: PNGs of noise would make a page of 10 MB."""
    height, width = picture.shape[:2]
    if width != WIDTH:
        size = (WIDTH, round(height * WIDTH / width))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def _accuracy(report: Report) -> Figure:
    """Bars of every model, task by task."""
    columns = [c for c in report.columns if c.metrics]
    figure, axis = plt.subplots(figsize=(7.5, 2.8))
    tasks, width = list(report.metrics), 0.8 / max(len(columns), 1)
    for i, column in enumerate(columns):
        at = [k + (i - (len(columns) - 1) / 2) * width for k, task in enumerate(tasks) if task in column.metrics]
        values = [100 * column.metrics[task] for task in tasks if task in column.metrics]
        bars = axis.bar(at, values, width * 0.92, label=column.name)
        axis.bar_label(bars, fmt="%.1f", fontsize=7)
    axis.set_xticks(range(len(tasks)), [f"{task} {report.metrics[task]}" for task in tasks])
    axis.set_ylabel("points")
    axis.set_ylim(0, 110)
    axis.legend(fontsize=7, ncols=min(len(columns), 3), loc="upper center", bbox_to_anchor=(0.5, 1.22), frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _differences(report: Report) -> Figure:
    """Each difference with its interval, and the drop that is allowed."""
    rows = [(bundle.name, one) for bundle in report.bundles for one in bundle.tasks]
    figure, axis = plt.subplots(figsize=(7.5, 0.7 + 0.38 * len(rows)))
    for i, (_, one) in enumerate(rows):
        colour = COLOURS[one.outcome]
        axis.plot([100 * one.low, 100 * one.high], [i, i], color=colour, linewidth=3, solid_capstyle="butt")
        axis.plot([100 * one.difference], [i], "o", color=colour)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.axvline(-100 * report.max_drop, color="#cf222e", linewidth=1, linestyle="--")
    axis.set_yticks(range(len(rows)), [f"{name}, {one.task}" for name, one in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(f"device minus server, points; dashed: the allowed drop of {100 * report.max_drop:g}")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _groups(report: Report) -> Figure:
    """Server and bundles by degradation and severity."""
    names, tasks = ["server", *(b.name for b in report.bundles)], list(report.metrics)
    figure, axes = plt.subplots(1, len(tasks), figsize=(3.4 * len(tasks), 0.8 + 0.24 * len(report.groups)), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for name in names:
            at = [i for i, g in enumerate(report.groups) if task in g.metrics.get(name, {})]
            axis.plot([100 * report.groups[i].metrics[name][task] for i in at], at, "o", label=name, markersize=4)
        axis.set_yticks(range(len(report.groups)), [g.name for g in report.groups] if axis is axes[0][0] else [], fontsize=7)
        axis.set_ylim(len(report.groups) - 0.5, -0.5)
        axis.set_xlabel(f"{task} {report.metrics[task]}, points", fontsize=8)
        axis.grid(axis="y", color="#eee")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def _tokens(found: Validation, bundle: Judged) -> str | None:
    selected = _contestant(found, bundle.name).selected
    if not selected:
        return None
    figure, axis = plt.subplots(figsize=(7.5, 0.5 + 0.3 * len(selected)))
    token_map(axis, selected)
    return _url(figure)


def _contestant(found: Validation, name: str) -> Contestant:
    return next(c for c in found.contestants if c.name == name)


def _worst(found: Validation, bundle: Judged) -> list[Row]:
    return [_row(found, bundle, bad.task, bad.index, _said(bad)) for bad in bundle.worst]


def _typical(found: Validation, bundle: Judged) -> list[Row]:
    shown = []
    for task in bundle.restored_to_server_db:
        those = [s for s in found.seen if task in s["tasks"]]
        shown += [_row(found, bundle, task, s["i"], f"{task}, {s['name']}, {s['group']}") for s in those[:TYPICAL]]
    return shown


def _said(bad: Bad) -> str:
    told = f"{bad.task}, {bad.frame}"
    if bad.server is not None and bad.device is not None:
        told += f": server {100 * bad.server:.0f}, device {100 * bad.device:.0f} points on this frame alone"
    return told if bad.psnr_to_server_db is None else f"{told}; restored {bad.psnr_to_server_db:.1f} dB from the server's"


def _row(found: Validation, bundle: Judged, task: str, index: int, title: str) -> Row:
    assert found.source is not None
    (item,) = found.source.items([index])
    (device, ours), (server, theirs) = (
        _contestant(found, name).answer(item, [task]).get(task, (None, None)) for name in (bundle.name, "server")
    )
    cells = [("degraded", item.frame), *_drawn("server", server, theirs), *_drawn("device", device, ours)]
    if device is not None and server is not None:
        away = np.abs(device.astype(np.int16) - server.astype(np.int16))
        cells.append((f"difference x{GAIN}", np.minimum(away * GAIN, 255).astype(np.uint8)))
    cells += _truth(item)
    return Row(title, tuple((heading, _picture(picture)) for heading, picture in cells))


def _drawn(name: str, frame: Image | None, answer: Answer | None) -> Sequence[tuple[str, Image]]:
    if frame is None:
        return []
    if answer is None:
        return [(name, frame)]
    drawn, said = draw_answer(frame, answer)
    return [(f"{name}: {said}" if said else name, drawn)]


def _truth(item: Item) -> Sequence[tuple[str, Image]]:
    return [] if item.clean is None else [("clean", item.clean)]
