"""What was asked of `train` and `greedy`, checked before any work: everything that is wrong is told in one error."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import nn

from tasktok_edge.data.official import TASKS, Task, TaskDataset, Training, open_dataset
from tasktok_edge.errors import UsageError, unknown_word
from tasktok_edge.model.checkpoint import SHIPPED, checkpoint_folder, load_checkpoint, load_oracles, read_config
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.train.joint_data import JointData, open_data, parse_pairs, sizes_of
from tasktok_edge.train.joint_recipe import JointRecipe
from tasktok_edge.train.joint_run import STATE, JointRun, begin, check_processes
from tasktok_edge.train.machine import world_size
from tasktok_edge.train.orders import read_orders
from tasktok_edge.train.start import Start, load_start

MIXES = ("mix-a", "mix-b")
Found = TypeVar("Found")


class Faults(list[str]):
    """What is wrong so far."""

    def attempt(self, work: Callable[[], Found]) -> Found | None:
        """Do a piece of checking; its fault is kept, to be told with the others."""
        try:
            return work()
        except UsageError as fault:
            self.append(str(fault))
            return None

    def folder(self, option: str, path: Path | None) -> Path | None:
        """Give the path where it is a folder."""
        if path is not None and path.is_dir():
            return path
        self.append(f"{option} is missing" if path is None else f"{option} {path} is no folder")
        return None

    def error(self) -> UsageError:
        return UsageError("; ".join(dict.fromkeys(self)))


def set_up_run(
    recipe: JointRecipe,
    folder: Path,
    *,
    init: Path | None,
    imagenet: Path | None,
    voc: Path | None,
    orders: Path | None,
    degradation: str,
    pairs: Sequence[str],
    workers: int,
) -> JointRun:
    """Check all that was given and set the run up, or pick up the one in `folder`."""
    faults = Faults()
    given = {"init": str(init), "imagenet": str(imagenet), "voc": str(voc), "degradation": degradation, "pairs": list(pairs)}
    init, imagenet, voc = (
        faults.folder(option, path) for option, path in (("--init", init), ("--data-imagenet", imagenet), ("--data-voc", voc))
    )
    paired = faults.attempt(lambda: parse_pairs(pairs)) or {}
    for path in paired.values():
        faults.folder("--paired", path)
    faults.attempt(lambda: check_mix(degradation))
    faults.attempt(lambda: check_processes(recipe, world_size()))
    start = faults.attempt(lambda: load_start(init)) if init else None
    order = _orders(recipe, start, orders, faults, resumes=(folder / STATE).is_file())
    data: JointData | None = None
    if start is not None and imagenet and voc:
        opening = partial(open_data, imagenet, voc, config=start.model.config, seed=recipe.seed)
        data = faults.attempt(lambda: opening(degradation=degradation, paired=paired))
    if faults or start is None or data is None:
        raise faults.error()
    facts = {"given": given, "files": start.sources, "orders": order}
    return begin(recipe, folder, start, data, orders=order, facts=facts, workers=workers)


def _orders(
    recipe: JointRecipe, start: Start | None, path: Path | None, faults: Faults, *, resumes: bool
) -> dict[str, list[int]] | None:
    """The orders that the switches of a new run start from; of a resumed one they are not read."""
    if start is None:
        return None
    config = start.model.config
    if recipe.tokens not in (None, config.tokenizer.tokens):
        faults.append(f"the recipe is for {recipe.tokens} tokens, the tokenizer of --init has {config.tokenizer.tokens}")
    if resumes:
        return None
    if path is None:
        if start.switches_are_fresh:
            faults.append("--orders is missing: the switches start from them; `tasktok-edge greedy` makes the file")
        return None
    if not start.switches_are_fresh:
        # Upstream lets the order overwrite what was trained; which of the two is meant, only the user knows.
        faults.append("--init holds trained switches, --orders would overwrite them: leave --orders out, or the predictor")
    return faults.attempt(lambda: read_orders(path, tasks=tuple(config.tasks), tokens=config.tokenizer.tokens))


def set_up_search(
    init: str, data: Mapping[str, Path | None], out: Path, *, degradation: str, seed: int, overwrite: bool
) -> tuple[TaskTok, nn.ModuleDict, dict[Task, TaskDataset]]:
    """Model, networks of clean images, and a data set for each task; none for a model of the scenes, which are drawn."""
    faults = Faults()
    if out.suffix != ".pt":
        faults.append(f"--out {out} must end in .pt")
    if out.exists() and not overwrite:
        faults.append(f"{out} exists: choose another --out, or add --overwrite")
    faults.attempt(lambda: check_mix(degradation))
    scenes = faults.attempt(lambda: _is_of_scenes(init))
    if scenes:
        model, oracles = faults.attempt(lambda: _scenes(init, data)) or (None, None)
        if faults or model is None or oracles is None:
            raise faults.error()
        return model, oracles, {}
    roots = {option: faults.folder(option, path) for option, path in data.items()}
    start = faults.attempt(lambda: load_start(init)) if scenes is not None else None
    datasets: dict[Task, TaskDataset] = {}
    if start is not None and not faults:
        for task in TASKS:
            root = roots["--data-imagenet" if task == "cls" else "--data-voc"]
            assert root is not None
            source, sizes = Training(seed, degradation), sizes_of(start.model.config)
            opened = faults.attempt(partial(open_dataset, task, root, source, sizes=sizes))
            datasets |= {task: opened} if opened is not None else {}
    if faults or start is None:
        raise faults.error()
    return start.model, start.oracles, datasets


def _is_of_scenes(init: str) -> bool:
    folder = checkpoint_folder(init)
    return (folder / "config.json").is_file() and all(t.net == "scenes" for t in read_config(folder).tasks.values())


def _scenes(init: str, data: Mapping[str, Path | None]) -> tuple[TaskTok, nn.ModuleDict]:
    extra = [option for option, path in data.items() if path is not None]
    if extra:
        raise UsageError(f"{init} is a model of the scenes, which are drawn: leave out {' and '.join(extra)}")
    if init not in SHIPPED and not (checkpoint_folder(init) / "oracles.safetensors").is_file():
        raise UsageError(f"'{init}' lacks oracles.safetensors, the networks of clean frames: `tasktok-edge train` writes it")
    return load_checkpoint(init).model, load_oracles(init)


def check_mix(name: str) -> None:
    """UsageError for a degradation that TaskTok is not trained with."""
    if name not in MIXES:
        raise unknown_word("degradation", name, MIXES)
