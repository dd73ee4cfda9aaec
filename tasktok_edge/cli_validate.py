"""`tasktok-edge validate`: the server and bundles on the same frames, a verdict, and a report to read."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from tasktok_edge.cli import console, errors, hush_converters, need
from tasktok_edge.errors import UsageError, VerdictError


def validate_command(
    bundle: Annotated[
        list[Path] | None, typer.Option(help="a bundle; may be given several times; none: the shipped int8 model is exported")
    ] = None,
    server: Annotated[str, typer.Option("--checkpoint", help="the server model to compare with")] = "scenes-server",
    recorded: Annotated[
        list[Path] | None, typer.Option(help="what run --record wrote on a device, in the place of a bundle; several times")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="scenes (default), VOC2012's or ImageNet's tree, pairs in gt and lq, pictures, or a video"),
    ] = None,
    paired: Annotated[Path | None, typer.Option(help="stored pairs (gt, lq) of the tree that --data names")] = None,
    task: Annotated[list[str] | None, typer.Option(help="keep to this task; may be given several times")] = None,
    frames: Annotated[int, typer.Option(help="how many, of each task, evenly spread", min=2)] = 500,
    degradation: Annotated[
        list[str] | None,
        typer.Option(help="mix-a, mix-b, noise, blur, rain, haze, snow, low-light, or all; may be given several times"),
    ] = None,
    severity: Annotated[list[int] | None, typer.Option(help="1 to 5; may be given several times")] = None,
    seed: Annotated[int, typer.Option(help="of the degradation of --data")] = 231,
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, npu or an engine's own name")] = "auto",
    threads: Annotated[int, typer.Option(help="for every engine", min=1)] = 1,
    tokens: Annotated[int | None, typer.Option(help="a budget that the bundles were built with")] = None,
    same_as: Annotated[
        str | None,
        typer.Option(help="the checkpoint whose answers count as the same, such as the bundle's own; default: the server"),
    ] = None,
    max_drop: Annotated[float, typer.Option(help="points that a task may lose against the server", min=0.01)] = 1.0,
    min_psnr: Annotated[float | None, typer.Option(help="dB that restored frames must be near the server's")] = None,
    out: Annotated[Path, typer.Option(help="folder for report.html, report.json, and what was seen of each frame")] = Path(
        "out/validate"
    ),
) -> None:
    """Judge bundles against the server model on the same frames: pass, fail or not enough frames; exit 0 or 3."""
    need("train", "torch", "safetensors", "pycocotools", "torchmetrics", "scipy", "jinja2", "matplotlib")
    from tasktok_edge.data.sources import degradations
    from tasktok_edge.page import write_page
    from tasktok_edge.shards import share
    from tasktok_edge.show import accuracy_table, groups_table, progress_of, verdict_table
    from tasktok_edge.validate import Validation, Wish, validate

    degraded = degradations(degradation or (["mix-b"] if severity else []), severity or [3])
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: name a folder")
    if not bundle and not recorded and share().processes > 1:
        raise UsageError("several processes need --bundle: one of them would still be exporting")
    wish = Wish(
        bundles=tuple(bundle or ([] if recorded else [shipped_bundle()])),
        out=out,
        recorded=tuple(recorded or ()),
        server=server,
        data=data,
        paired=paired,
        n=frames,
        degraded=degraded,
        seed=seed,
        tasks=tuple(task or ()),
        device=device,
        threads=threads,
        tokens=tokens,
        same_as=same_as,
        max_drop=max_drop / 100,
        min_psnr_db=min_psnr,
    )
    with ExitStack() as stack:
        found = progress_of(errors, validate(wish, stack))
        assert isinstance(found, Validation)
        report = found.report
        if report is None:  # another process tells
            return
        with errors.status("report"):
            (out / "report.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
            write_page(out / "report.html", found)
    if any(column.metrics for column in report.columns):
        console.print(accuracy_table(report))
    if report.groups:
        console.print(groups_table(report))
    console.print(verdict_table(report))
    for told in (*report.notes, f"on {report.machine}", f"saved {out / 'report.html'}, {out / 'report.json'}"):
        console.print(told, soft_wrap=True, highlight=False)
    if report.outcome != "pass":
        reasons = "; ".join(f"{b.name}: {', '.join(b.reasons)}" for b in report.bundles if b.outcome != "pass")
        raise VerdictError(f"{report.outcome}: {reasons}")
    console.print("pass")


def shipped_bundle(out: Path = Path("out")) -> Path:
    """The shipped int8 model for ONNX Runtime or OpenVINO, exported below `out` where it is not there yet."""
    from importlib.util import find_spec

    from tasktok_edge.export import Target
    from tasktok_edge.model.checkpoint import default_for, load_checkpoint
    from tasktok_edge.parity import export_verified
    from tasktok_edge.show import saying

    target: Target = "onnx" if find_spec("onnxruntime") else "openvino"
    checkpoint = load_checkpoint(default_for("int8"))
    config = checkpoint.model.config
    path = out / f"{config.preset}-{target}-int8"
    if not path.exists():
        need("export", "onnx", "onnxscript", "onnxruntime")
        hush_converters()
        with saying(errors, path.name) as say:
            export_verified(checkpoint, target, path, tasks=tuple(config.tasks), precision="int8", say=say)
    return path
