"""The tables of `inspect`."""

from rich.console import Console
from rich.table import Table

from tasktok_edge.inspect import Inspection

SHOWN_TOKENS = 24


def print_inspection(console: Console, found: Inspection) -> None:
    """Parts; then, of a whole model, what is selected, what it costs and what it weighs."""
    picked = f", {found.pick}" if found.pick else ""
    console.print(f"{found.path}: {found.layout} layout{picked}", highlight=False, soft_wrap=True)
    parts = Table("part", "file", "parameters", "state")
    for part in found.parts:
        state = part.fault or ("" if part.found else "missing")
        parts.add_row(part.name, part.file, f"{part.parameters / 1e6:.2f} M" if part.parameters else "-", state or "whole")
    console.print(parts)
    if found.variant is None:
        console.print("no whole model: pre-restorer, tokenizer and predictor are needed", highlight=False)
        return
    console.print(
        f"{found.variant}: frames of {found.image_size}x{found.image_size}, {found.tokens} tokens",
        highlight=False,
        soft_wrap=True,
    )
    tokens = Table("task", "tokens replaced", "which")
    for task, rows in found.selected.items():
        shown = " ".join(map(str, rows[:SHOWN_TOKENS])) + (" …" if len(rows) > SHOWN_TOKENS else "")
        tokens.add_row(task, f"{len(rows)} of {found.tokens}", shown)
    console.print(tokens)
    console.print(_costs(found))
    sizes = ", ".join(f"{precision} {size / 1e6:,.1f} MB" for precision, size in found.sizes.items())
    console.print(f"weights on disk: {sizes} (matrices at that width, vectors in fp32)", highlight=False, soft_wrap=True)


def _costs(found: Inspection) -> Table:
    restoring = [c for c in found.costs if not c.name.endswith("network")]
    total = sum(c.trained for c in restoring)
    exported = sum(c.exported for c in restoring)
    costs = Table("part", "parameters", "GMACs as trained", "share", "GMACs as exported", "saved")
    costs.title = "multiply-adds of one frame and one task"

    def add(name: str, parameters: int, trained: int, cut: int, share: str) -> None:
        saved = f"{(trained - cut) / trained:.1%}" if trained else "-"
        costs.add_row(name, f"{parameters / 1e6:.2f} M", _giga(trained), share, _giga(cut), saved)

    for c in restoring:
        add(c.name, c.parameters, c.trained, c.exported, f"{c.trained / total:.1%}")
    add("restoration", sum(c.parameters for c in restoring), total, exported, "100 %")
    for c in found.costs:
        if c not in restoring:
            add(c.name, c.parameters, c.trained, c.exported, "")
    return costs


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.3f}" if macs else "depends on the frame"
