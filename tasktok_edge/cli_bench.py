"""`tasktok-edge bench`: what bundles cost beside the server and what a user would pick instead, in one interleaved run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tasktok_edge.cli import console, errors, hush_converters, need
from tasktok_edge.errors import UsageError, VerdictError, unknown_word


def bench_command(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="bundles to measure; none: the shipped int8 model is exported")
    ] = None,
    server: Annotated[str, typer.Option("--checkpoint", help="the server model, the others' measure")] = "scenes-server",
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, npu or an engine's own name")] = "auto",
    runs: Annotated[int, typer.Option(help="rounds, each candidate a few calls a round", min=3)] = 15,
    threads: Annotated[
        list[int] | None, typer.Option(help="threads for every engine, default 1; given several times, a table each", min=1)
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="plain: also what ONNX Runtime, OpenVINO and ExecuTorch make of the server alone; compiled: torch.compile"
        ),
    ] = None,
    frames: Annotated[int, typer.Option(help="held-out frames for the accuracy beside each time; 0: none", min=0)] = 100,
    scale: Annotated[bool, typer.Option("--scaling", help="also: with frame, batch, tokens and threads")] = False,
    forms: Annotated[
        bool, typer.Option(help="instead: what the exact rewrites of the exported graph save, in PyTorch")
    ] = False,
    compare_with: Annotated[Path | None, typer.Option("--compare", help="figures of before: exit 3 for what is slower")] = None,
    out: Annotated[Path, typer.Option(help="file for the figures, .json, and beside it the picture, .png")] = Path(
        "out/bench.json"
    ),
) -> None:
    """Latency, accuracy, memory and size of bundles beside the server model, its plain exports, and doing without."""
    words = against or []
    need("train", "torch", "safetensors", "matplotlib", "scipy")
    from tasktok_edge.plain import AGAINST

    for word in words:
        if word not in AGAINST:
            raise unknown_word("peer", word, AGAINST)
    if out.is_dir() or (out != Path("out/bench.json") and not out.parent.is_dir()):
        told = "is a folder" if out.is_dir() else f"cannot be written, there is no folder {out.parent}"
        raise UsageError(f"--out {out} {told}: name a file in a folder that exists, such as bench.json")
    out.parent.mkdir(exist_ok=True)
    if words:
        need("export", "onnx", "onnxscript", "onnxruntime", "openvino", "executorch")
        hush_converters()
    from tasktok_edge.bench import compare, compare_forms, regressions, save
    from tasktok_edge.cli_validate import shipped_bundle
    from tasktok_edge.scaling import Scale, scaling
    from tasktok_edge.show import progress_of
    from tasktok_edge.show_bench import draw, show

    counts = list(dict.fromkeys(threads or [1]))
    if compare_with is not None:
        regressions(compare_with, [])  # told before the work
    scales: list[Scale] = []
    if forms:
        found = progress_of(errors, compare_forms(server, runs=runs, threads=counts))
    else:
        measured: Sequence[Path] = bundles or [shipped_bundle()]
        tools = [tool for word in dict.fromkeys(words) for tool in AGAINST[word]]
        steps = compare(measured, server=server, device=device, runs=runs, threads=counts, tools=tools, accuracy_frames=frames)
        found = progress_of(errors, steps)
        if scale:
            scales = progress_of(errors, scaling(measured, device=device, runs=runs))
    show(console, found, scales)
    save(found, out, server=server, runs=runs, scales=scales)
    picture = out.with_suffix(".png")
    drawn = f", {picture}" if draw(picture, found) else ""
    console.print(f"saved {out}{drawn}", soft_wrap=True, highlight=False)
    slower = [] if compare_with is None else regressions(compare_with, found)
    if slower:
        raise VerdictError(f"slower than in {compare_with}: {'; '.join(slower)}")
