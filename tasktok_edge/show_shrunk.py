"""The tables that shrinking ends with."""

from rich.console import Console
from rich.table import Table

from tasktok_edge.machine import machine
from tasktok_edge.scores import won_back
from tasktok_edge.shrunk import Row, Verdict


def print_verdict(console: Console, found: Verdict, *, threads: int = 1) -> None:
    """Print accuracy, size and multiply-adds of every model, then the engines' latency of the last beside the first."""
    console.print(_accuracy(found))
    if found.engines:
        console.print(_engines(found, threads=threads))


def _accuracy(found: Verdict) -> Table:
    table = Table("model", *found.tasks, "checkpoint", "parameters", f"multiply-adds, {' / '.join(found.tasks)}")
    table.title = f"{found.n} held-out degraded frames; change in points against {found.rows[0].name}"
    for scores in (found.clean, found.degraded):
        table.add_row(f"{scores.name}, no restoration", *(f"{100 * scores.values[t]:.1f}" for t in found.tasks), "", "", "")
    for row in found.rows:
        table.add_row(row.name, *_points(found, row), f"{row.checkpoint_bytes / 1e6:.2f} MB", f"{row.parameters:,}", _macs(row))
    return table


def _points(found: Verdict, row: Row) -> list[str]:
    first, clean, degraded = found.rows[0].scores.values, found.clean.values, found.degraded.values
    cells = []
    for task in found.tasks:
        value = row.scores.values[task]
        back = won_back(clean[task], degraded[task], value)
        change = "" if row is found.rows[0] else f"{100 * (value - first[task]):+.1f}, "
        cells.append(f"{100 * value:.1f} ({change}won back {back:.0%})")
    return cells


def _macs(row: Row) -> str:
    return " / ".join(f"{cost / 1e6:.0f} M" for cost in row.macs.values())


def _engines(found: Verdict, *, threads: int) -> Table:
    table = Table("engine", "bundle before", "after", "ms before", "after", "times faster, 10th to 90th percentile")
    table.title = f"predict/{found.tasks[0]}, frame in, answer out; one bundle a model, of that task alone"
    table.caption = f"medians, interleaved; {machine(threads)}"
    for e in found.engines:
        sizes = f"{e.bytes_before / 1e6:.2f} MB", f"{e.bytes_after / 1e6:.2f} MB ({e.bytes_before / e.bytes_after:.1f}x)"
        times = f"{e.before.p50_ms:.2f}", f"{e.after.p50_ms:.2f}"
        low, high = 1 / e.after.ratio_high, 1 / e.after.ratio_low
        table.add_row(e.target, *sizes, *times, f"{1 / e.after.ratio:.1f} ({low:.1f} to {high:.1f})")
    return table
