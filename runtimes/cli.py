"""`tasktok-edge devices`: what could run a bundle here, and what would."""

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from tasktok_edge.errors import TaskTokEdgeError
from tasktok_edge.runtimes import Session, devices, load
from tasktok_edge.runtimes.engine import Device, Trial
from tasktok_edge.runtimes.neural_engine import expectations
from tasktok_edge.runtimes.selection import Policy, Report

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Run bundles: see which engines and devices this machine has."""


@app.command("devices")
def devices_command(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[BUNDLE]...", help="bundles of one model to try on each device that can take them"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, npu or an engine's own name")] = "auto",
    public_key: Annotated[Path | None, typer.Option(help="PEM file: open only what its owner signed")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List every engine and device, usable or not and why; with bundles, prove and time them on those that take them."""
    if not bundles:
        found = devices()
        why = [f"{d.engine} {d.native}: {d.reason}" for d in found if d.reason]
        _show([asdict(d) for d in found], _device_table(found), why, as_json=as_json)
        return
    with load(bundles, device, remember=False, public_key=public_key) as session:
        report, placed = session.report, session.placement(session.tasks[0])
        expected = _expected(session)
    by_policy = {policy: report.pick(policy) for policy in get_args(Policy)}
    if as_json:
        picks = {policy: [t.bundle, t.device.native] if t else None for policy, t in by_policy.items()}
        print(json.dumps({**report_json(report), "auto": picks, "placement": placed, "expected": expected}, indent=2))
        return
    lines = [f"{t.bundle} on {t.device.native}: {t.reason or f'runs on {t.effective_device}'}" for t in report.trials]
    for policy, t in by_policy.items():
        lines.append(f"auto takes, by policy {policy}: {f'{t.bundle} on {t.device.native}' if t else 'nothing of these'}")
    where = ", ".join(f"{count} on {name}" for name, count in placed.items())
    lines.append(f"operators of {report.bundle} for {session.tasks[0]}: {where}")
    if expected:
        told = ", ".join(f"{count} on {unit}" for unit, count in expected.items())
        lines.append(f"expected of them by public rules (tasktok-edge neural-engine): {told}")
    _show(None, _report_table(report), [*lines, *report.notes], as_json=False)


def _expected(session: Session) -> dict[str, int]:
    """Where the operators of the first task are expected, of a Core ML bundle: to be read beside its placement."""
    if session.bundle.manifest.target != "coreml":
        return {}
    task, found = session.tasks[0], Counter[str]()
    for name, expectation in expectations(session.bundle).items():
        if name in (f"restore/{task}", f"predict/{task}"):
            found.update(expectation.operators())
    return dict(found.most_common())


def report_json(report: Report) -> dict[str, Any]:
    """Turn a report into what JSON takes."""
    trials = [asdict(t) for t in report.trials]
    return {**vars(report), "parity": report.parity.model_dump(), "notes": list(report.notes), "trials": trials}


def _show(data: Any, table: Table, lines: list[str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(data, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _device_table(found: list[Device]) -> Table:
    table = Table("engine", "device", "native name", "usable", "what it is")
    for d in found:
        table.add_row(d.engine, d.kind, d.native, "yes" if d.usable else "no", d.full_name)
    return table


def _report_table(report: Report) -> Table:
    table = Table("bundle", "device", "verdict", "worst golden", "latency", "compile", "computes in")
    table.title = f"{report.bundle} on {report.engine} {report.engine_version}"
    for t in report.trials:
        table.add_row(t.bundle, f"{t.device.kind} ({t.device.native})", t.verdict, *_figures(t))
    return table


def _figures(trial: Trial) -> tuple[str, str, str, str]:
    worst = f"{min(trial.psnr_db.values()):.1f} dB" if trial.psnr_db else "-"
    latency = "-" if trial.latency_ms is None else f"{trial.latency_ms:.2f} ms"
    compiled = "-" if trial.compile_s is None else f"{trial.compile_s:.2f} s"
    return worst, latency, compiled, trial.effective_precision or "-"


def main() -> None:
    """Run the command; an error of ours is one line on stderr and its exit code."""
    try:
        app()
    except TaskTokEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
