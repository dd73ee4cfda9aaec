"""`tasktok-edge neural-engine BUNDLE`: where a Core ML program's operators are expected to run, and which break the chain."""

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tasktok_edge.bundle import read_bundle
from tasktok_edge.runtimes.neural_engine import Expectation, expectations

UNITS = ("Neural Engine", "unsure", "GPU", "CPU")


def neural_engine_command(
    bundle: Annotated[Path, typer.Argument(help="a bundle for Core ML: a folder, or a .ttk file")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, with every operator and rule")] = False,
) -> None:
    """Expect, by public rules, which operators run on the Neural Engine; on a Mac `devices` has the compute plan's truth."""
    with read_bundle(bundle) as read:
        found = expectations(read)
    if as_json:
        print(json.dumps([{**asdict(one), "function": name} for name, one in found.items()]))
        return
    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table("function", *(f"{unit}, operators / multiply-adds" for unit in UNITS), "stretches end at")
    table.title = f"{bundle}: expected, not measured"
    for name, one in found.items():
        table.add_row(name, *_shares(one), _breaks(one))
    console.print(table)
    rules = Counter(rule for one in found.values() for p in one.placed for rule in p.rules)
    for (what, source), count in rules.most_common():
        console.print(f"{count} operators: {what} ({source})", highlight=False, soft_wrap=True)


def _shares(one: Expectation) -> list[str]:
    operators, macs = one.operators(), one.macs()
    n, total = len(one.placed), sum(macs.values()) or 1
    return [f"{operators[u]} ({operators[u] / n:.0%}) / {macs.get(u, 0) / total:.0%}" if u in operators else "-" for u in UNITS]


def _breaks(one: Expectation) -> str:
    kinds = Counter(p.operator for p in one.breaks)
    return ", ".join(f"{name} x{count}" if count > 1 else name for name, count in kinds.most_common()) or "-"
