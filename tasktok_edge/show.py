"""What people see: progress, and the tables that commands end with."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from tasktok_edge.demo import Outcome
from tasktok_edge.machine import machine
from tasktok_edge.manifest import Parity
from tasktok_edge.parity import Exported, least_agreement
from tasktok_edge.report import Report
from tasktok_edge.scores import won_back

LOG_EVERY_S = 20
NAMED = {
    "clean": "clean frames, no restoration",
    "degraded": "degraded frames, no restoration",
    "server": "server model, PyTorch",
}


def progress_of(console: Console, steps: Iterator[Any]) -> Any:
    """Show what a generator yields (it says what it does, and how far it is) and give the last thing, its result."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    if not console.is_terminal:
        return _logged(console, steps)
    last: Any = None
    with Progress(*columns, console=console) as bars:
        bar_of: dict[str, Any] = {}
        for last in steps:
            what, done, total, losses = _progress(last)
            if what is None:
                continue
            if what not in bar_of:
                for other in bar_of.values():
                    bars.stop_task(other)
                bar_of[what] = bars.add_task(what, total=total or None)
            told = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            bars.update(bar_of[what], completed=done, description=f"{what}  {told}" if told else what)
    return last


@contextmanager
def saying(console: Console, name: str) -> Iterator[Callable[[str], None]]:
    """Give a function that shows what is being done, and since when; in a log file, a line for each."""
    if not console.is_terminal:
        yield lambda what: console.print(f"{name}: {what}", highlight=False, soft_wrap=True)
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as bars:
        task = bars.add_task(name)
        yield lambda what: bars.update(task, description=f"{name}: {what}")


def _logged(console: Console, steps: Iterator[Any]) -> Any:
    """The same for a log file: a line now and then, and one when a piece of work is done."""
    last, told_at = None, 0.0
    for last in steps:
        what, done, total, losses = _progress(last)
        if what is not None and (done == total or time.monotonic() - told_at > LOG_EVERY_S):
            told_at = time.monotonic()
            told = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            console.print(f"{what} {done}/{total}  {told}" if total else what, highlight=False, soft_wrap=True)
    return last


def _progress(step: Any) -> tuple[str | None, int, int, dict[str, float]]:
    if hasattr(step, "what"):
        return step.what, step.done, step.total, {}
    if hasattr(step, "stage"):
        return step.stage, step.step, step.steps, step.losses
    return None, 0, 0, {}


def export_table(exported: list[Exported]) -> Table:
    """Target, precision, size, functions, parity and where it was measured."""
    table = Table("bundle", "size", "built in", "peak memory", "functions", "parity", "same answers", "measured on", "verdict")
    table.columns[0].no_wrap = True
    for e in exported:
        manifest, parity = e.manifest, e.manifest.parity
        worst = _worst(parity)
        same = f"{min(parity.agreement.values()):.1%} of {parity.n_frames}" if parity.agreement else "-"
        where = f"{parity.device}, {parity.effective_precision}" if parity.device else "-"
        verdict = parity.status if parity.status != "not_run" else f"unverified: {parity.reason}"
        cost = f"{e.seconds:.0f} s", f"{e.peak_bytes / 2**30:.1f} GiB"
        table.add_row(manifest.name, _size(e.bytes), *cost, str(len(manifest.functions)), worst, same, where, verdict)
    return table


def accuracy_table(found: Report) -> Table:
    """Every model on the same frames, with the share of what degradation took that it wins back."""
    table = Table("model", *(f"{task} {metric}" for task, metric in found.metrics.items()))
    counts = set(found.frames.values())
    told = f"{counts.pop()} frames" if len(counts) == 1 else ", ".join(f"{n} frames for {t}" for t, n in found.frames.items())
    table.title = f"{found.data}: {told}"
    by_name = {column.name: column.metrics for column in found.columns}
    clean, degraded = by_name.get("clean", {}), by_name.get("degraded", {})
    devices = {bundle.name for bundle in found.bundles}
    for column in found.columns:
        told = NAMED.get(column.name) or (column.name if column.name in devices else f"{column.name}, PyTorch")
        cells = []
        for task in found.metrics:
            value = column.metrics.get(task)
            if value is None:
                cells.append("-")
                continue
            share = task in clean and column.name not in ("clean", "degraded")
            back = f"  (won back {won_back(clean[task], degraded[task], value):.0%})" if share else ""
            cells.append(f"{100 * value:.1f}{back}")
        table.add_row(told, *cells)
    return table


def verdict_table(found: Report) -> Table:
    """Each bundle beside the server: the difference with its interval, same answers, restored frames, the outcome."""
    table = Table(
        "bundle", "task", "server", "device", "difference, 95 %", "same answers", "restored, to the server", "verdict"
    )
    table.title = f"a drop of {100 * found.max_drop:g} points is allowed"
    for bundle in found.bundles:
        for one in bundle.tasks:
            away = "-" if one.psnr_to_server_db is None else f"{one.psnr_to_server_db:.1f} dB"
            interval = f"{100 * one.difference:+.2f} ({100 * one.low:+.2f} to {100 * one.high:+.2f})"
            more = f", about {one.frames_needed} needed" if one.outcome == "not enough frames" else ""
            table.add_row(
                bundle.name,
                f"{one.task} {one.metric}",
                f"{100 * one.server:.2f}",
                f"{100 * one.device:.2f}",
                interval,
                f"{one.agreement:.1%}",
                away,
                one.outcome + more,
            )
        answered = {one.task for one in bundle.tasks}
        for task, near in bundle.restored_to_server_db.items():
            if task in answered:
                continue
            low = found.min_psnr_db is not None and near < found.min_psnr_db
            table.add_row(bundle.name, task, "-", "-", "restored only", "-", f"{near:.1f} dB", "fail" if low else "pass")
    return table


def groups_table(found: Report) -> Table:
    """The same metrics by degradation and severity: server, then device."""
    columns = ["server", *(bundle.name for bundle in found.bundles)]
    table = Table("degradation", "frames", *(f"{task} {', '.join(columns)}" for task in found.metrics))
    for group in found.groups:
        cells = []
        for task in found.metrics:
            values = [group.metrics.get(name, {}).get(task) for name in columns]
            cells.append(" / ".join("-" if v is None else f"{100 * v:.1f}" for v in values))
        table.add_row(group.name, str(group.frames), *cells)
    return table


def print_outcome(console: Console, outcome: Outcome, *, threads: int) -> list[str]:
    """Print the demo's tables and picture path; gives what fell short of parity, empty when all is well."""
    report = outcome.report
    agreement = {bundle.name: {one.task: one.agreement for one in bundle.tasks} for bundle in report.bundles}
    console.print(accuracy_table(report))
    table = Table(
        "bundle",
        "size",
        "functions",
        "parity",
        "same answers",
        *(f"{t} ms (x server)" for t in report.metrics),
    )
    table.title = "artifacts: parity and same answers against the same model in PyTorch; latency frame in, answer out"
    table.columns[0].no_wrap = True
    failed = []
    for e in outcome.exported:
        name, parity = e.manifest.name, e.manifest.parity
        cells = []
        for task in report.metrics:
            latency = outcome.latency[task].get(name)
            cells.append(f"{latency.p50_ms:.2f} ({1 / latency.ratio:.1f}x faster)" if latency else "-")
        same = agreement.get(name, {})
        worst = _worst(parity)
        agreed = f"{min(same.values()):.1%}" if same else "-"
        table.add_row(name, _size(e.bytes), str(len(e.manifest.functions)), worst, agreed, *cells)
        if parity.status == "failed":
            failed.append(f"{name}: {parity.reason}")
        least = least_agreement(e.manifest)
        if same and min(same.values()) < least:
            failed.append(f"{name}: same answers on {min(same.values()):.1%} of frames, {least:.1%} asked")
    server = {task: figures["scenes-server"].p50_ms for task, figures in outcome.latency.items()}
    table.add_row("scenes-server, PyTorch", "-", "-", "-", "-", *(f"{server[t]:.2f}" for t in report.metrics))
    console.print(table)
    console.print(f"medians, interleaved, on {machine(threads)}", highlight=False)
    for e in outcome.exported:
        if e.manifest.parity.status == "not_run":
            console.print(f"not run here: {e.manifest.name}: {e.manifest.parity.reason}", highlight=False)
    chosen = ", ".join(f"{task} {len(s)}/{n}" for task, (n, s) in outcome.selected.items())
    console.print(f"tokens replaced: {chosen}", highlight=False)
    console.print(f"picture: {outcome.picture}", soft_wrap=True, highlight=False)
    return failed


def _worst(parity: Parity) -> str:
    """The worst PSNR of restored frames and of raw answers."""
    if not parity.psnr_db:
        return "not run here"
    kinds = {kind: [v for name, v in parity.psnr_db.items() if name.startswith(kind)] for kind in ("restore", "predict")}
    answers = f", answers {min(kinds['predict']):.1f} dB" if kinds["predict"] else ""
    return f"{min(kinds['restore']):.1f} dB{answers}"


def _size(n: int) -> str:
    return f"{n / 1e6:.2f} MB"
