"""Commands that train: train, greedy. Both also run under `accelerate launch -m tasktok_edge.VERB` on several processes."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tasktok_edge.errors import TaskTokEdgeError, UsageError, unknown_word

if TYPE_CHECKING:
    from tasktok_edge.train.joint_run import JointRun

console = Console(width=None if sys.stdout.isatty() else 150)
errors = Console(stderr=True)
ImageNet = Annotated[
    Path | None, typer.Option("--data-imagenet", help="folder with train/ and val/, in each one folder a class")
]
Voc = Annotated[Path | None, typer.Option("--data-voc", help="folder of VOC2012, or of its VOCdevkit")]
Degradation = Annotated[str, typer.Option(help="mix-a or mix-b")]
Workers = Annotated[int, typer.Option(help="processes that read or render pictures", min=0)]
RecipeName = Annotated[
    str, typer.Option(help="scenes-server, or tiny to try it; on the official data tasktok-64, tasktok-256, or tasktok-mini")
]
Out = Annotated[Path | None, typer.Option(help="folder of the run, default runs/RECIPE; a stopped run goes on from there")]
Paired = Annotated[
    list[str] | None, typer.Option(help="tasktok: stored validation pairs, TASK=DIR, or a folder with cls/, det/ and seg/")
]
Rounds = Annotated[int | None, typer.Option(help="search so many tokens of each task, the rest follows by score", min=1)]
Budget = Annotated[float | None, typer.Option(help="stop after so long; one round of each task is always searched", min=0)]


def train_command(
    recipe: RecipeName = "scenes-server",
    out: Out = None,
    init: Annotated[Path | None, typer.Option(help="tasktok: folder of tokenizer, pre-restorer, clean task networks")] = None,
    orders: Annotated[Path | None, typer.Option(help="tasktok: token orders, as `greedy` writes them")] = None,
    data_imagenet: ImageNet = None,
    data_voc: Voc = None,
    degradation: Degradation = "mix-b",
    paired: Paired = None,
    steps: Annotated[int | None, typer.Option(help="tasktok: other than the recipe's; schedules shrink with it", min=1)] = None,
    checkpoint_out: Annotated[Path | None, typer.Option("--checkpoint-out", help="scenes: default OUT/checkpoint")] = None,
    workers: Workers = 2,
) -> None:
    """Train the server model from nothing, or TaskTok as published; on one process or several."""
    from tasktok_edge.cli import need

    need("train", "torch", "accelerate", "safetensors", "pycocotools", "torchmetrics")
    from tasktok_edge.train.joint_recipe import JOINT_RECIPES
    from tasktok_edge.train.recipe import RECIPES

    if recipe not in RECIPES and recipe not in JOINT_RECIPES:
        raise unknown_word("recipe", recipe, [*RECIPES, *JOINT_RECIPES])
    folder = out or Path("runs") / recipe
    if recipe in RECIPES:
        given: dict[str, object] = {
            "--init": init,
            "--orders": orders,
            "--data-imagenet": data_imagenet,
            "--data-voc": data_voc,
        }
        given |= {"--paired": paired, "--steps": steps, "--degradation": degradation if degradation != "mix-b" else None}
        extra = [option for option, value in given.items() if value]
        if extra:
            own = ", ".join(JOINT_RECIPES)
            raise UsageError(f"recipe {recipe} draws its own data: leave out {', '.join(extra)}, or choose {own}")
        _train_scenes(recipe, folder, checkpoint_out, max(workers, 1))
        return
    if checkpoint_out is not None:
        raise UsageError(f"recipe {recipe} writes OUT/checkpoint and OUT/best: leave out --checkpoint-out, and give --out")
    with _one_voice():
        from tasktok_edge.train.setup import set_up_run

        plan = JOINT_RECIPES[recipe] if steps is None else JOINT_RECIPES[recipe].model_copy(update={"steps": steps})
        run = set_up_run(
            plan, folder, init=init, imagenet=data_imagenet, voc=data_voc, orders=orders, degradation=degradation,
            pairs=paired or [], workers=workers,
        )  # fmt: skip
    _train_joint(run)


def _train_scenes(name: str, folder: Path, checkpoint_out: Path | None, workers: int) -> None:
    from tasktok_edge.model.checkpoint import save_checkpoint
    from tasktok_edge.show import progress_of
    from tasktok_edge.train.recipe import recipe as find
    from tasktok_edge.train.stages import STAGES, Run, start

    plan = find(name)
    run = progress_of(errors, start(plan, folder, workers=workers))
    assert isinstance(run, Run)
    for stage in STAGES:
        progress_of(errors, stage(run))
    if run.accelerator.is_main_process:
        target = checkpoint_out or folder / "checkpoint"
        save_checkpoint(target, run.model, oracles=run.oracles, facts={"recipe": plan.model_dump()})
        _print_selected(run.model)
        console.print(f"saved {target}", soft_wrap=True, highlight=False)


def _train_joint(run: "JointRun") -> None:
    from tasktok_edge.train.joint_run import train

    _watch(train(run), shown=run.accelerator.is_main_process)
    if run.accelerator.is_main_process:
        _print_selected(run.model)
        if run.best is not None:
            told = ", ".join(f"{name} {100 * value:.1f}" for name, value in run.best.items() if name != "step")
            best = f"best at step {run.best['step']:.0f}: {told}; {run.folder / 'best'}"
            console.print(best, highlight=False, soft_wrap=True)
        console.print(f"saved {run.folder / 'checkpoint'}", soft_wrap=True, highlight=False)
    run.accelerator.end_training()


def greedy_command(
    out: Annotated[Path, typer.Option(help="file of the orders to write, .pt; beside it the same for people, .json")],
    init: Annotated[str, typer.Option(help="as for train; or a model of the scenes, which needs no data")] = "scenes-server",
    data_imagenet: ImageNet = None,
    data_voc: Voc = None,
    degradation: Degradation = "mix-b",
    frames: Annotated[int, typer.Option(help="training images of each task", min=1)] = 300,
    seed: Annotated[int, typer.Option(help="of which images, and how they are degraded")] = 123,
    rounds: Rounds = None,
    budget_minutes: Budget = None,
    overwrite: Annotated[bool, typer.Option(help="replace a file of the same name")] = False,
    workers: Workers = 2,
) -> None:
    """Find in which order tokens matter to each task: what the switches start from."""
    from tasktok_edge.cli import need

    need("train", "torch", "accelerate", "safetensors", "pycocotools", "torchmetrics")
    with _one_voice():
        from tasktok_edge.train.machine import world_size
        from tasktok_edge.train.setup import set_up_search

        if frames < world_size():
            raise UsageError(f"--frames {frames} cannot be shared by {world_size()} processes: give at least as many")
        data = {"--data-imagenet": data_imagenet, "--data-voc": data_voc}
        model, oracles, datasets = set_up_search(
            init, data, out, degradation=degradation, seed=seed, overwrite=overwrite
        )  # fmt: skip
    from tasktok_edge.train.greedy_frames import Orders, find_orders, official_frames, scene_frames
    from tasktok_edge.train.machine import accelerator_for
    from tasktok_edge.train.orders import write_orders

    accelerator = accelerator_for("no", "no")  # a metric of fp16 would order by rounding
    batches: dict[str, Any]
    if datasets:
        batches = {task: official_frames(d, task, n=frames, seed=seed, accelerator=accelerator) for task, d in datasets.items()}
    else:
        drawing = scene_frames(
            out.parent / f".{out.stem}-frames", n=frames, size=model.config.image_size, degradation=degradation,
            accelerator=accelerator, workers=max(workers, 1),
        )  # fmt: skip
        batches = dict.fromkeys(model.config.tasks, _watch(drawing, shown=accelerator.is_main_process))
    searching = find_orders(
        model.to(accelerator.device), oracles.to(accelerator.device), batches, accelerator=accelerator, rounds=rounds,
        budget_s=None if budget_minutes is None else 60 * budget_minutes,
    )  # fmt: skip
    orders = _watch(searching, shown=accelerator.is_main_process)
    assert isinstance(orders, Orders)
    if accelerator.is_main_process:
        told = {"init": init, "frames": frames, "seed": seed, "degradation": degradation}
        story = write_orders(out, orders.found, facts=told)
        for task, order in orders.found.items():
            console.print(f"{task}: {order.rounds} of {len(order.tokens)} rounds searched", highlight=False)
        console.print(f"saved {out} and {story}", soft_wrap=True, highlight=False)
    accelerator.end_training()


def _print_selected(model: Any) -> None:
    selected = {task: len(model.switch.selected(task)) for task in model.config.tasks}
    console.print(f"tokens selected: {selected} of {model.config.tokenizer.tokens}", highlight=False)


def _watch(steps: Iterator[Any], *, shown: bool) -> Any:
    """Run a generator for its last value; only the main process shows its progress."""
    from tasktok_edge.show import progress_of

    return progress_of(errors, steps) if shown else list(steps)[-1]


@contextmanager
def _one_voice() -> Iterator[None]:
    """Of several processes that find the same fault, the first alone tells it; all end with its exit code."""
    try:
        yield
    except TaskTokEdgeError as error:
        if os.environ.get("RANK", "0") != "0":
            raise typer.Exit(error.exit_code) from None
        raise
