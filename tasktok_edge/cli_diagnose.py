"""`tasktok-edge diagnose BUNDLE`: the first operator of a Core ML program that is not what PyTorch computes."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tasktok_edge.cli import console, errors, hush_converters, need
from tasktok_edge.errors import VerdictError

if TYPE_CHECKING:
    from tasktok_edge.diagnose import Diagnosis, Step

BEFORE, BEHIND = 4, 2  # operators that are shown around the first that departs


def diagnose_command(
    bundle: Annotated[Path, typer.Argument(help="a bundle for Core ML: a folder, or a .ttk file")],
    function: Annotated[list[str] | None, typer.Option(help="such as restore/seg; several times; default all")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="what the bundle was made of; default the shipped model")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, with every operator")] = False,
) -> None:
    """Find the first operator of a Core ML program that departs from PyTorch, overflows or makes NaN."""
    need("export", "torch", "safetensors", "coremltools")
    hush_converters()
    from tasktok_edge.bundle import read_bundle
    from tasktok_edge.diagnose import diagnose
    from tasktok_edge.model.checkpoint import default_for, load_checkpoint
    from tasktok_edge.quantize.ptq import at_precision

    with read_bundle(bundle) as read:
        precision = read.manifest.precision
    loaded = load_checkpoint(checkpoint or default_for(precision))
    say = partial(errors.print, soft_wrap=True, highlight=False)
    model = at_precision(loaded.model, precision, say)
    with errors.status("evaluating"):
        found = diagnose(bundle, loaded, model, function or ())
    if as_json:
        print(json.dumps([{"function": d.function, "notes": d.notes, "steps": [asdict(s) for s in d.steps]} for d in found]))
    else:
        _show(bundle, found)
    wrong = [d for d in found if d.first is not None]
    if wrong:
        told = "; ".join(f"{d.function} from {d.first.operator} {d.first.name} on" for d in wrong if d.first is not None)
        raise VerdictError(f"{bundle} departs from PyTorch: {told}")


def _show(bundle: Path, found: "Sequence[Diagnosis]") -> None:
    table = Table("function", "operators", "compared", "worst of these", "first that departs", title=str(bundle))
    for d in found:
        right = [s.psnr_db for s in d.compared if s.psnr_db is not None]
        first = "none" if d.first is None else f"{d.first.operator} {d.first.name}"
        table.add_row(d.function, str(len(d.steps)), str(len(right)), f"{min(right):.1f} dB" if right else "-", first)
    console.print(table)
    for note in dict.fromkeys(note for d in found for note in d.notes):
        console.print(note, highlight=False, soft_wrap=True)
    for d in found:
        if d.first is not None:
            steps = d.steps[max(0, d.first.index - BEFORE) : d.first.index + BEHIND + 1]
            around = Table("operator", "makes", "type", "shape", "largest", "PSNR with PyTorch", title=d.function)
            for s in steps:
                around.add_row(*_cells(s), style="bold" if s is d.first else None)
            console.print(around)


def _cells(step: "Step") -> tuple[str, ...]:
    figure = "-" if step.psnr_db is None else f"{step.psnr_db:.1f} dB"
    shape = "x".join(map(str, step.shape))
    return step.operator, step.name, step.dtype, shape, f"{step.largest:.4g}", figure + (", departs" if step.departs else "")
