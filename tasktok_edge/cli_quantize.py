"""`tasktok-edge quantize`: a server checkpoint in, an edge checkpoint out, and what that cost."""

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.console import Console

from tasktok_edge.errors import UsageError, unknown_word
from tasktok_edge.manifest import Level, Resize

if TYPE_CHECKING:
    from torch import Tensor

    from tasktok_edge.model.tasktok import TaskTok
    from tasktok_edge.quantize.finetune import Scope
    from tasktok_edge.quantize.judge import Arrays
    from tasktok_edge.quantize.sensitivity import Sensitivity
    from tasktok_edge.quantize.shrink import Wish
    from tasktok_edge.quantize.slim import Shares

console = Console(width=None if sys.stdout.isatty() else 150)
errors = Console(stderr=True)
MAX_PICTURES = 128


def quantize_command(
    method: Annotated[str, typer.Option(help="distill, slim, prune, levels, ptq, qat, several by commas; or sensitivity")],
    out: Annotated[Path, typer.Option(help="folder of the run and of the edge checkpoint in it")],
    checkpoint: Annotated[str, typer.Option(help="the floating-point checkpoint to shrink")] = "scenes-server",
    teacher: Annotated[str | None, typer.Option(help="whose tokens to keep to; default the checkpoint itself")] = None,
    scope: Annotated[str, typer.Option(help="pipeline, or refiner: tune and quantize that alone")] = "pipeline",
    data: Annotated[Path | None, typer.Option(help="folder of pictures to calibrate int8 on; default scenes")] = None,
    preset: Annotated[str, typer.Option(help="distill: the edge model's preset")] = "scenes-edge",
    keep: Annotated[
        list[str] | None,
        typer.Option(help="slim: share that stays, layers=, heads=, hidden=, prerestorer=, task_nets= or task_nets.TASK="),
    ] = None,
    sparsity: Annotated[float, typer.Option(help="prune: share of the refiner's weights that become zero")] = 0.5,
    level: Annotated[str, typer.Option(help="levels: exact, context or selected")] = "context",
    tokens: Annotated[float | None, typer.Option(help="levels: share of tokens that each task replaces")] = None,
    keep_fp: Annotated[
        list[str] | None,
        typer.Option("--keep-fp", help="ptq, qat: a layer or part left as it is; worst:N, the N most sensitive"),
    ] = None,
    max_drop: Annotated[float | None, typer.Option(help="ptq, qat: keep layers until no task loses more points by ptq")] = None,
    recipe: Annotated[str, typer.Option(help="scenes-edge, or tiny to try the machinery")] = "scenes-edge",
    steps: Annotated[int | None, typer.Option(help="fine-tuning steps of each method, instead of the recipe's", min=1)] = None,
    frames: Annotated[int, typer.Option(help="held-out frames of the table", min=2)] = 500,
    latency: Annotated[bool, typer.Option(help="export both models and time them on every engine here")] = True,
    cache: Annotated[Path | None, typer.Option(help="folder of training frames to share between runs")] = None,
    workers: Annotated[int, typer.Option(help="processes that render frames", min=1)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Server checkpoint in, edge checkpoint out: smaller, faster, and what it cost in accuracy."""
    from tasktok_edge.cli import hush_converters, need

    need("export", "torch", "accelerate", "safetensors", "nncf")
    hush_converters()
    from tasktok_edge.model.checkpoint import load_checkpoint
    from tasktok_edge.quantize.shrink import RECIPES, Wish, methods_of
    from tasktok_edge.scores import check_answers_scenes
    from tasktok_edge.sensitivity_picture import sensitivity_picture
    from tasktok_edge.show import progress_of
    from tasktok_edge.show_quantize import sensitivity_table
    from tasktok_edge.show_shrunk import print_verdict
    from tasktok_edge.shrunk import Verdict, shrink_and_weigh

    if recipe not in RECIPES:
        raise unknown_word("recipe", recipe, RECIPES)
    alone = method == "sensitivity"
    methods = () if alone else methods_of(method)
    loaded = load_checkpoint(checkpoint)
    taught = loaded if teacher is None else load_checkpoint(teacher)
    if methods != ("ptq",) or latency:
        check_answers_scenes(loaded.model)  # what tunes and judges are scenes
    size, resize = loaded.model.config.image_size, loaded.model.config.resize
    wish = Wish(
        methods=methods,
        scope=cast("Scope", _one_of("scope", scope, ("pipeline", "refiner"))),
        recipe=recipe,
        steps=steps,
        preset=preset,
        shares=_shares(keep or [], loaded.model.config.tasks),
        sparsity=sparsity,
        level=cast(Level, _one_of("level", level, get_args(Level))),
        tokens=tokens,
        keep_fp=tuple(keep_fp or ()),
        frames=None if data is None else _pictures(data, size, resize),
        cache=cache,
        workers=workers,
    )
    if alone:
        found_layers = _layers(loaded.model, wish, out)
        picture = out / "sensitivity.png"
        sensitivity_picture(picture, found_layers, title=f"{loaded.model.config.preset}: each layer alone in int8")
        console.print(sensitivity_table(found_layers))
        console.print(f"saved {picture}", soft_wrap=True, highlight=False)
        return
    wish = _with_worst_layers(loaded.model, wish, out)
    if max_drop is not None:
        wish = _within(loaded.model, wish, out, max_drop)
    found = progress_of(errors, shrink_and_weigh(loaded, taught, wish, out, n=frames, latency=latency))
    assert isinstance(found, Verdict)
    if as_json:
        print(json.dumps({"path": str(out / "checkpoint"), **asdict(found)}))
    else:
        print_verdict(console, found)
        console.print(f"saved {out / 'checkpoint'}", soft_wrap=True, highlight=False)


def _one_of(what: str, word: str, known: Sequence[str]) -> str:
    if word not in known:
        raise unknown_word(what, word, known)
    return word


def _shares(words: Sequence[str], known_tasks: Collection[str]) -> "Shares":
    """Read `heads=0.6 task_nets.det=1 …`; what is not named is as in the recipe, and no task apart once `task_nets` is."""
    from tasktok_edge.quantize.shrink import SHARES
    from tasktok_edge.quantize.slim import Shares

    values, known = asdict(SHARES), [f.name for f in fields(Shares) if f.name != "tasks"]
    tasks = {} if any(word.startswith("task_nets=") for word in words) else dict(SHARES.tasks)
    for word in words:
        name, _, text = word.partition("=")
        kind, _, task = name.partition(".")
        if kind not in known or (task and kind != "task_nets"):
            raise unknown_word("kind of unit", name, known)
        try:
            share = float(text)
        except ValueError:
            raise UsageError(f"--keep {word}: expected a share such as {name}=0.5") from None
        if task and task not in known_tasks:
            raise unknown_word("task", task, known_tasks)
        if task:
            tasks[task] = share
        else:
            values[kind] = share
    return Shares(**{**values, "tasks": tasks})


def _layers(model: "TaskTok", wish: "Wish", out: Path) -> "Sensitivity":
    """What each layer loses when it alone is quantised."""
    from tasktok_edge.quantize.sensitivity import Sensitivity, sensitivity
    from tasktok_edge.show import progress_of

    calibration, arrays = _frames_of(model, wish, out)
    found = progress_of(errors, sensitivity(model, calibration, arrays))
    assert isinstance(found, Sensitivity)
    return found


def _frames_of(model: "TaskTok", wish: "Wish", out: Path, *, n: int = 200) -> "tuple[Tensor, Arrays]":
    """Frames to calibrate on, and `n` labelled ones of the split `val` to judge by."""
    from tasktok_edge.quantize.judge import judging_frames
    from tasktok_edge.quantize.ptq import calibration_frames
    from tasktok_edge.show import progress_of

    out.mkdir(parents=True, exist_ok=True)
    arrays = progress_of(errors, judging_frames(out / f"val-{n}", model.config.image_size, n=n, workers=wish.workers))
    return calibration_frames(model) if wish.frames is None else wish.frames, arrays


def _with_worst_layers(model: "TaskTok", wish: "Wish", out: Path) -> "Wish":
    """Put the names of the most sensitive layers in the place of `worst:N`."""
    from tasktok_edge.quantize.sensitivity import worst

    plain = [word for word in wish.keep_fp if not word.startswith("worst:")]
    counts = [word.removeprefix("worst:") for word in wish.keep_fp if word.startswith("worst:")]
    if not counts:
        return wish
    if not counts[0].isdigit():
        raise UsageError(f"--keep-fp worst:{counts[0]}: expected a number of layers such as worst:3")
    layers = worst(_layers(model, wish, out), int(counts[0]))
    return replace(wish, keep_fp=(*plain, *layers))


def _within(model: "TaskTok", wish: "Wish", out: Path, max_drop: float) -> "Wish":
    """Keep as few layers in floating point as post-training quantization needs to stay within `max_drop` points."""
    from tasktok_edge.quantize.sensitivity import Found, search
    from tasktok_edge.show import progress_of

    if wish.methods not in (("ptq",), ("qat",)):
        raise UsageError("--max-drop searches the layers of the checkpoint given: it goes with --method ptq or qat alone")
    calibration, arrays = _frames_of(model, wish, out, n=500)  # fewer would keep layers for noise
    found = progress_of(errors, search(model, calibration, arrays, max_drop=max_drop, keep_fp=wish.keep_fp))
    assert isinstance(found, Found)
    told = ", ".join(found.keep_fp) or "none"
    errors.print(f"layers kept in floating point for at most {max_drop:g} points: {told}", soft_wrap=True, highlight=False)
    return replace(wish, keep_fp=(*wish.keep_fp, *found.keep_fp))


def _pictures(folder: Path, size: int, resize: Resize) -> "Tensor":
    """Up to 128 pictures of a folder as calibration frames (n, 3, S, S) in [0, 1], spread over all of them."""
    import cv2
    import numpy as np
    import torch

    from tasktok_edge.frames import crop_resize, windows

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".webp"))
    if not paths:
        raise UsageError(f"no picture (.png, .jpg, .bmp, .webp) below '{folder}': --data wants frames as a camera gives them")
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(len(paths), MAX_PICTURES)).astype(int)]
    squares = []
    for path in chosen:
        picture = cv2.imread(str(path))
        if picture is None:
            raise UsageError(f"'{path}' is no whole picture: remove it from --data")
        frame = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8)
        squares.append(crop_resize(frame, windows(*frame.shape[:2])[0], size, resize))
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
