"""Commands that look at checkpoints and bring them in: inspect, convert."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tasktok_edge.errors import CheckpointError

Folder = Annotated[Path, typer.Argument(help="a folder of official .pt files, or a checkpoint of ours")]
Pick = Annotated[str | None, typer.Option(help="of official files: last, best_cls, best_det, best_seg, or a step as 0140000")]
console = Console(width=None if sys.stdout.isatty() else 150)


def inspect_command(
    folder: Folder, pick: Pick = None, as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False
) -> None:
    """Tell what a checkpoint holds: variant, parts, selected tokens, multiply-adds, sizes; or what is wrong with it."""
    from tasktok_edge.cli import need

    need("train", "torch", "safetensors")
    from tasktok_edge.inspect import inspect_checkpoint
    from tasktok_edge.show_checkpoint import print_inspection

    found = inspect_checkpoint(folder, pick=pick)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print_inspection(console, found)
    if found.faults:
        raise CheckpointError("; ".join(found.faults))


def convert_command(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="folder of the checkpoint to write")],
    pick: Pick = None,
    overwrite: Annotated[bool, typer.Option(help="replace a checkpoint of the same name")] = False,
) -> None:
    """Write official files as one safetensors checkpoint, every bit as it was, with the hashes of its sources."""
    from tasktok_edge.cli import need

    need("train", "torch", "safetensors")
    from tasktok_edge.convert import convert

    made = convert(folder, out, pick=pick, overwrite=overwrite)
    console.print(f"{made.model.config.preset}, sha256 {made.sha256}", highlight=False, soft_wrap=True)
    console.print(f"saved {out}", highlight=False, soft_wrap=True)
