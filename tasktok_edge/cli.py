"""The command line: `tasktok-edge VERB`, each also as `python -m tasktok_edge.VERB`. Printing belongs here alone."""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tasktok_edge import __version__
from tasktok_edge.errors import PackageError, TaskTokEdgeError, UsageError, VerdictError, unknown_word
from tasktok_edge.manifest import Precision

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
# A pipe has no width, and a table cut to 80 columns is of no use in a log.
console = Console(width=None if sys.stdout.isatty() else 150)
errors = Console(stderr=True)

PRECISIONS: dict[str, Precision] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8"}
# typer carries its own click and names only leaves of its errors in public: this is their base.
CLICK_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
CheckpointOption = Annotated[
    str | None, typer.Option("--checkpoint", help="a folder, or a shipped one; default scenes-edge, for int8 scenes-edge-int8")
]


def _version(asked: bool) -> None:
    if asked:
        print(f"tasktok-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """Task-driven image restoration (TaskTok) on the edge: train, shrink, export, run and verify."""


@app.command()
def export(
    target: Annotated[str, typer.Option(help="executorch, coreml, openvino, onnx, or all")],
    checkpoint: CheckpointOption = None,
    task: Annotated[list[str] | None, typer.Option(help="keep to this task; may be given several times")] = None,
    task_net: Annotated[
        list[str] | None, typer.Option("--task-net", help="your own network: TASK=FILE.onnx or TASK=package.module:callable")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8")] = "fp32",
    tokens: Annotated[
        list[int] | None,
        typer.Option(help="a budget to choose at load time: so many tokens replaced; may be given several times"),
    ] = None,
    deployment_target: Annotated[
        str | None, typer.Option(help="of Core ML: iOS16, iOS17, iOS18 (default) or iOS26; macOS of the same year")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder that the bundles are written into")] = Path("out"),
    overwrite: Annotated[bool, typer.Option(help="replace a bundle of the same name")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Write a bundle from a checkpoint, and measure it against the PyTorch model."""
    from tasktok_edge.export import targets

    chosen = _precision(precision)
    wanted = targets(target)
    need("export", "torch", "safetensors", "pycocotools", "torchmetrics")
    hush_converters()
    options = _coreml_options(deployment_target, wanted, chosen)
    from tasktok_edge.export.limits import check_fits
    from tasktok_edge.model.checkpoint import default_for, load_checkpoint
    from tasktok_edge.model.own_net import use_task_nets
    from tasktok_edge.parity import export_verified
    from tasktok_edge.quantize.ptq import at_precision
    from tasktok_edge.show import export_table, saying

    loaded = load_checkpoint(checkpoint or default_for(chosen))
    loaded = replace(loaded, model=use_task_nets(loaded.model, task_net or []))
    config = loaded.model.config
    for word in task or ():
        if word not in config.tasks:
            raise unknown_word("task", word, config.tasks)
    tasks = tuple(t for t in config.tasks if not task or t in task)
    paths = {t: out / f"{config.preset}-{t}-{precision}" for t in wanted}
    existing = [str(path) for path in paths.values() if path.exists()]
    if existing and not overwrite:
        raise UsageError(f"{', '.join(existing)} exists: choose another --out, or add --overwrite")
    weights = sum(p.numel() * 4 for p in loaded.model.parameters())
    check_fits(wanted, chosen, weights, out)
    loaded = replace(loaded, model=at_precision(loaded.model, chosen, partial(errors.print, soft_wrap=True, highlight=False)))
    done = []
    for name, path in paths.items():
        with saying(errors, name) as say:
            done.append(
                export_verified(
                    loaded,
                    name,
                    path,
                    tasks=tasks,
                    precision=chosen,
                    budgets=tuple(sorted(set(tokens or ()))),
                    options=options if name == "coreml" else None,
                    overwrite=overwrite,
                    say=say,
                )
            )
    if as_json:
        print(json.dumps([{"path": str(d.path), **json.loads(d.manifest.model_dump_json(exclude={"files"}))} for d in done]))
    else:
        console.print(export_table(done))
        for d in done:
            console.print(f"saved {d.path}", soft_wrap=True, highlight=False)
    failed = [d for d in done if d.manifest.parity.status == "failed"]
    if failed:
        told = "; ".join(f"{d.path} ({d.manifest.parity.reason})" for d in failed)
        raise VerdictError(f"parity failed, kept and marked unverified: {told}")


def _coreml_options(deployment_target: str | None, wanted: Sequence[str], precision: Precision) -> dict[str, str]:
    if deployment_target is None:
        return {}
    if "coreml" not in wanted:
        raise UsageError(f"--deployment-target {deployment_target} is for --target coreml")
    need("export", "coremltools")
    from tasktok_edge.export.coreml import check_target

    check_target(deployment_target, precision)
    return {"deployment_target": deployment_target}


@app.command()
def demo(
    checkpoint: CheckpointOption = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8")] = "fp32",
    out: Annotated[Path, typer.Option(help="folder for bundles and picture")] = Path("out"),
    frames: Annotated[int, typer.Option(help="held-out frames", min=8)] = 500,
    runs: Annotated[int, typer.Option(help="rounds of the latency measurement", min=3)] = 50,
    threads: Annotated[int, typer.Option(help="threads for every engine", min=1)] = 1,
) -> None:
    """Export the shipped model for every target, run what runs here on held-out degraded frames, show table and picture."""
    chosen = _precision(precision)
    need("export", "torch", "safetensors", "pycocotools", "torchmetrics", "matplotlib")
    hush_converters()
    from tasktok_edge.demo import Outcome, run_demo
    from tasktok_edge.show import print_outcome, progress_of

    outcome = progress_of(errors, run_demo(out, checkpoint=checkpoint, precision=chosen, n=frames, runs=runs, threads=threads))
    assert isinstance(outcome, Outcome)
    failed = print_outcome(console, outcome, threads=threads)
    if failed:
        raise VerdictError(f"below what was asked: {'; '.join(failed)}")


@app.command()
def scenes(
    out: Annotated[Path, typer.Option(help="the picture to write (.png)")] = Path("out/scenes.png"),
    index: Annotated[int, typer.Option(help="which scene of the validation split", min=0)] = 0,
    frames: Annotated[
        int | None, typer.Option(help="in the place of a picture: so many held-out degraded frames, PNGs in the folder --out")
    ] = None,
    degradation: Annotated[list[str] | None, typer.Option(help="of these frames, as validate takes it; default mix-b")] = None,
    severity: Annotated[list[int] | None, typer.Option(help="1 to 5; may be given several times")] = None,
) -> None:
    """Draw a contact sheet: one scene, its labels, a clip, and every degradation; or write the frames that validate uses."""
    from tasktok_edge.data.contact_sheet import contact_sheet

    if frames is not None:
        need("train", "torch")
        from tasktok_edge.data.sources import Scenes, degradations, write_frames

        write_frames(out, Scenes(frames, degradations(degradation or ["mix-b"], severity or [3])))
        console.print(f"saved {frames} frames in {out}", soft_wrap=True, highlight=False)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(out, index=index)
    console.print(f"saved {out}", soft_wrap=True, highlight=False)


def _precision(word: str) -> Precision:
    if word not in PRECISIONS:
        raise unknown_word("precision", word, PRECISIONS)
    return PRECISIONS[word]


def hush_converters() -> None:
    """Keep the converters' talk about themselves (untested versions, absent optional parts) out of our output."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    hushed = (
        "coremltools",
        "torch",
        "torch.utils._pytree",
        "torch.onnx",
        "torch.onnx._internal.exporter._registration",
        "torchao",
        "root",
    )
    for name in hushed:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is first imported; coremltools draws four bars a function


def need(extra: str, *modules: str) -> None:
    """Refuse before any work when a package of an extra is missing."""
    from importlib.util import find_spec

    missing = [m for m in modules if find_spec(m) is None]
    if missing:
        raise PackageError(f'this needs {", ".join(missing)}, not installed: pip install "tasktok-edge[{extra}]"')


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an error of ours is one line on stderr and its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a killed export cleans up as an interrupted one does
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run a command and give its exit code: 0 done, 2 wrong use, 3 verdict failed, 4, 5, 130."""
    from tasktok_edge.apps.camera import camera_command
    from tasktok_edge.apps.restore import restore_command
    from tasktok_edge.cli_bench import bench_command
    from tasktok_edge.cli_checkpoints import convert_command, inspect_command
    from tasktok_edge.cli_diagnose import diagnose_command
    from tasktok_edge.cli_quantize import quantize_command
    from tasktok_edge.cli_sign import keys_command, sign_command
    from tasktok_edge.cli_train import greedy_command, train_command
    from tasktok_edge.cli_validate import validate_command
    from tasktok_edge.runtimes.cli import devices_command
    from tasktok_edge.runtimes.cli_neural_engine import neural_engine_command

    commands: dict[str, Callable[..., None]] = {
        "inspect": inspect_command,
        "convert": convert_command,
        "train": train_command,
        "greedy": greedy_command,
        "quantize": quantize_command,
        "validate": validate_command,
        "bench": bench_command,
        "diagnose": diagnose_command,
        "neural-engine": neural_engine_command,
        "devices": devices_command,
        "run": restore_command,
        "camera": camera_command,
        "keys": keys_command,
        "sign": sign_command,
    }
    for name, command in commands.items():
        if not any(known.callback is command for known in app.registered_commands):
            app.command(name)(command)
    known = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback is not None]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        return _fail(unknown_word("command", arguments[0], known))
    try:
        left_with = app(arguments, prog_name="tasktok-edge", standalone_mode=False)
    except TaskTokEdgeError as error:
        return _fail(error)
    except (KeyboardInterrupt, typer.Abort):
        errors.print("interrupted: nothing half-written was kept")
        return 130
    except CLICK_ERROR as error:
        return _fail(UsageError(error.format_message()))
    return left_with if isinstance(left_with, int) else 0


def _fail(error: TaskTokEdgeError) -> int:
    errors.print(f"error: {error}", soft_wrap=True, highlight=False, markup=False)
    return error.exit_code


def verb(name: str) -> Callable[[], None]:
    """Give the main function of `python -m tasktok_edge.<name>`."""
    return lambda: main([name, *sys.argv[1:]])
