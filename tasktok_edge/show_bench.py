"""What bench shows: tables of times, costs, parts and scaling, and accuracy per millisecond as a picture."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from tasktok_edge.bench import Comparison
from tasktok_edge.machine import machine
from tasktok_edge.scaling import Scale
from tasktok_edge.timing import Latency, Ratio

QUIET_SHARE = 0.9  # of a core: with less, a latency is how the system shares out time


def show(console: Console, found: Sequence[Comparison], scales: Sequence[Scale]) -> None:
    """Print every table."""
    for one in found:
        console.print(latency_table(one))
        if one.overhead:
            console.print(costs_table(one))
        if one.parts:
            console.print(parts_table(one))
    if scales:
        console.print(scaling_table(scales))


def latency_table(found: Comparison) -> Table:
    """Times and ratios by task and candidate, what each ran on, how accurate it is, and how near the machine's products."""
    peers = bool(found.agreement_db)
    beside = ["x the first", *(["x the best plain"] if peers else [])]
    metric = ["metric"] if found.accuracy else []
    share = ["of the peak"] if found.peak_macs else []
    headings = ("task", "candidate", "on", "p50 / p90 / p99 ms", "frames/s", *beside, *metric, *share)
    table = Table(*(Column(name, no_wrap=True) for name in headings))
    table.columns[1].no_wrap, table.columns[1].overflow = False, "fold"  # a checkpoint's path may be long
    table.caption = f"frame in, answer (or restored frame) out; interleaved; {machine(found.threads)}"
    if peers:
        kept = [db for by_name in found.agreement_db.values() for db in by_name.values()]
        table.caption += f"\nplain exports answer a held-out frame as the first does, to {min(kept):.0f} dB or better"
    if found.accuracy:
        table.caption += f"\nmetric: the task's own, points, {found.accuracy_frames} held-out frames under Mix-B"
    if found.peak_macs:
        peaks = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in found.peak_macs.items())
        table.caption += f"\nof the peak: multiply-adds a second, of a square product's ({peaks} G/s)"
    if found.core_share is not None and found.core_share < QUIET_SHARE:
        table.caption += f"\nno fair figures: other programs left these calls {found.core_share:.0%} of a core; run it alone"
    for task, figures in found.latency.items():
        table.add_section()
        for one in figures:
            table.add_row(task, one.name, found.runs_on.get(one.name, "-"), *_cells(found, task, one))
    return table


def _cells(found: Comparison, task: str, one: Latency) -> list[str]:
    ratios = [Ratio(one.ratio, one.ratio_low, one.ratio_high), *([one.to_peer] if one.to_peer else [])]
    told = [f"{r.median:.2f} ({r.low:.2f} to {r.high:.2f})" for r in ratios]
    if one.noisy:
        told[0] += ", too noisy to tell"
    cells = [f"{one.p50_ms:.2f} / {one.p90_ms:.2f} / {one.p99_ms:.2f}", f"{1e3 / one.p50_ms:.0f}", *told]
    if found.accuracy:
        value = found.accuracy.get(task, {}).get(one.name)
        cells.append("-" if value is None else f"{100 * value:.1f}")
    if found.peak_macs:
        macs = found.macs.get(task, {}).get(one.name)
        peak = found.peak_macs.get(found.runs_on.get(one.name, "").rpartition(" ")[2])
        cells.append("-" if macs is None or peak is None else f"{macs / one.p50_ms * 1e3 / peak:.0%}")
    return cells


def costs_table(found: Comparison) -> Table:
    """What the shim adds to a call, what a second task costs, how long a start takes, memory, size and energy."""
    headings = ("bundle", "size", "peak memory", "energy", "first / second start", "the shim adds", "two tasks in one call")
    table = Table(*headings)
    table.caption = (
        "restore for the first task; two tasks: times the first alone; start: from load to the first answer; memory: a\n"
    )
    table.caption += (
        "process that loads, proves and answers, Python included; energy of one answer, - where no counter may be read"
    )
    starts = {start.bundle: start for start in found.starts}
    costs = {cost.bundle: cost for cost in found.costs}
    for o in found.overhead:
        start, cost = starts.get(o.bundle), costs.get(o.bundle)
        table.add_row(
            o.bundle,
            "-" if cost is None else f"{cost.bytes / 1e6:.2f} MB",
            "-" if cost is None else f"{cost.peak_memory_bytes / 2**20:.0f} MiB",
            "-" if cost is None or cost.energy_j is None else f"{1e3 * cost.energy_j:.1f} mJ",
            "-" if start is None else f"{start.first_s:.2f} / {start.second_s:.2f} s",
            f"{o.shim_us:.0f} µs on {o.engine_us:.0f}, {o.shim_us / o.engine_us:.1%}",
            "-" if o.two_tasks is None else f"{o.two_tasks:.2f} x",
        )
    return table


def parts_table(found: Comparison) -> Table:
    """The server's parts in PyTorch: where its time goes, and how near each comes to the machine's products."""
    table = Table("part of the server", "p50 ms", "of the whole", "M multiply-adds", "of the peak")
    table.caption = "PyTorch, fp32, for the first task; each part by itself"
    peak = found.peak_macs.get("fp32")
    for one in found.parts:
        macs = found.part_macs.get(one.name)
        near = "-" if macs is None or peak is None else f"{macs / one.p50_ms * 1e3 / peak:.0%}"
        cells = ("-" if macs is None else f"{macs / 1e6:.1f}", near)
        table.add_row(one.name, f"{one.p50_ms:.2f}", f"{one.ratio:.0%}", *cells)
    return table


def scaling_table(scales: Sequence[Scale]) -> Table:
    """How latency grows with frame, batch, tokens and threads."""
    table = Table("bundle", "task", "what", "value", "p50 ms", "x the plain call")
    table.caption = "restore; the plain call is of one frame of the function's size with one thread"
    for one in scales:
        told = f"{one.ratio:.2f}" + (", too noisy to tell" if one.noisy else "")
        table.add_row(one.bundle, one.task, one.what, one.value, f"{one.p50_ms:.2f}", told)
    return table


def draw(file: Path, found: Sequence[Comparison]) -> bool:
    """Draw accuracy over milliseconds of every candidate, a panel a task; False where no accuracy was measured."""
    first = next((one for one in found if one.accuracy), None)
    if first is None:
        return False
    import matplotlib

    matplotlib.use("Agg")  # there may be no screen
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    figure, axes = plt.subplots(1, len(first.latency), figsize=(4 * len(first.latency), 4.2), squeeze=False)
    names = list(dict.fromkeys(one.name for figures in first.latency.values() for one in figures))
    for axis, (task, figures) in zip(axes[0], first.latency.items(), strict=True):
        for one in figures:
            value = first.accuracy.get(task, {}).get(one.name)
            if value is not None:
                axis.plot([one.p50_ms], [100 * value], "o", markersize=9, color=f"C{names.index(one.name)}", label=one.name)
        axis.set_xscale("log")
        axis.margins(0.15)
        axis.set_title(task)
        axis.set_xlabel("ms, frame in, answer out")
        for part in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            part(ticker.LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        axis.grid(color="#eee")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel(f"points, {first.accuracy_frames} frames under Mix-B")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(machine(first.threads), fontsize=8)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return True
