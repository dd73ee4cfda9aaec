"""The tables of quantization."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from tasktok_edge.quantize.sensitivity import Sensitivity


def sensitivity_table(found: Sensitivity, top: int = 20) -> Table:
    """The `top` most sensitive layers: what each loses alone in int8, and what it weighs."""
    tasks = list(found.points)
    names = " / ".join(tasks)
    table = Table("layer", "tokens", "frames", f"answers dB, {names}", f"points lost, {names}", "int8 weight", "multiply-adds")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    together = ", ".join(f"{task} {found.points[task]:.1f} to {found.int8_points[task]:.1f}" for task in tasks)
    table.title = f"one layer in int8 at a time, {found.frames} frames; all layers: {together}"
    shown = f"the {min(top, len(found.rows))} worst of {len(found.rows)}"
    table.caption = f"{shown}; losses up to {found.noise:.2g} points count as noise, and PSNR decides"
    for row in found.ranked()[:top]:
        db = [f"{row.db[kind]:.1f} dB" if kind in row.db else "-" for kind in ("tokens", "frames")]
        table.add_row(
            row.name,
            *db,
            _cells(row.db, tasks, ".1f"),
            _cells(row.drop, tasks, "+.2f"),
            f"{row.bytes / 1e3:.1f} kB",
            f"{row.macs / 1e6:.2f} M",
        )
    return table


def _cells(values: Mapping[str, float], tasks: Sequence[str], form: str) -> str:
    # A difference of 0 has no sign.
    shown = (f"{values[task]:{form}}" if task in values else "-" for task in tasks)
    return " / ".join("0" if text in ("+0.00", "-0.00") else text for text in shown)
