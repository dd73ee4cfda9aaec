"""What a checkpoint holds: parts, sizes, selected tokens, cost; and of a damaged one, which tensor or file is wrong and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tasktok_edge.errors import CheckpointError
from tasktok_edge.macs import PartCost, count, size_bytes
from tasktok_edge.model.checkpoint import checkpoint_folder, load_checkpoint
from tasktok_edge.model.official.files import Parts, find_parts, is_official, read_tensors, some
from tasktok_edge.model.official.load import config_of, fill
from tasktok_edge.model.tasktok import TaskTok

REQUIRED = ("prerestorer", "tokenizer", "predictor")


@dataclass(frozen=True)
class Part:
    """A file of the checkpoint. `fault` tells what is wrong with it, `file` where it lies or what was looked for."""

    name: str
    file: str
    found: bool
    parameters: int = 0
    fault: str | None = None


@dataclass(frozen=True)
class Inspection:
    """All that can be told without running the model; `variant` is None where the parts do not make one."""

    path: str
    layout: str  # "official" or "tasktok-edge"
    pick: str | None
    parts: list[Part]
    variant: str | None = None
    image_size: int = 0
    tokens: int = 0
    selected: dict[str, list[int]] = field(default_factory=dict)
    costs: list[PartCost] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of the weights by precision

    @property
    def faults(self) -> list[str]:
        return [f"{part.file}: {part.fault}" for part in self.parts if part.fault]


def inspect_checkpoint(name: str | Path, *, pick: str | None = None) -> Inspection:
    """Look into a folder, ours or official; CheckpointError where there is nothing to look into."""
    folder = checkpoint_folder(name)
    if folder.is_dir() and not (folder / "config.json").is_file() and is_official(folder):
        return _official(find_parts(folder, pick))
    model = load_checkpoint(folder).model
    n = sum(p.numel() for p in model.parameters())
    return _described(Inspection(str(folder), "tasktok-edge", None, [Part("model", "model.safetensors", True, n)]), model)


def _official(parts: Parts) -> Inspection:
    states, faults = dict[str, Mapping[str, Tensor]](), dict[str, str]()
    for name, path in parts.found.items():
        try:
            states[name] = read_tensors(path)
        except CheckpointError as error:
            faults[name] = str(error).removeprefix(f"'{path}' ")
    model: TaskTok | None = None
    if all(name in states for name in REQUIRED):
        try:
            with torch.device("meta"):
                model = TaskTok(config_of(states, parts.folder))
        except CheckpointError as error:
            faults[_blamed(str(error))] = str(error)
    if model is not None:
        for name, wrong in fill(model, states).items():
            faults[name], model = some(wrong), model
    listed = [
        Part(name, str(path), True, sum(t.numel() for t in states.get(name, {}).values()), faults.get(name))
        for name, path in parts.found.items()
    ]
    listed += [Part(name, file, False) for name, file in parts.missing.items()]
    found = Inspection(str(parts.folder), "official", parts.pick, listed)
    return found if model is None or found.faults else _described(found, model)


def _blamed(message: str) -> str:
    """The part that a message of the config's inference is about."""
    names = {"prerestorer": "prerestorer", "predictor": "predictor", "clsnet": "clsnet", "detnet": "detnet", "segnet": "segnet"}
    return next((part for word, part in names.items() if message.startswith(f"the {word}")), "tokenizer")


def _described(found: Inspection, model: TaskTok) -> Inspection:
    config = model.config
    selected = {task: model.switch.selected(task) for task in config.tasks}
    return Inspection(
        found.path,
        found.layout,
        found.pick,
        found.parts,
        variant=config.preset,
        image_size=config.image_size,
        tokens=config.tokenizer.tokens,
        selected=selected,
        costs=count(config, selected),
        sizes={precision: size_bytes(model, precision) for precision in ("fp32", "fp16", "int8")},
    )


if __name__ == "__main__":  # python -m tasktok_edge.inspect
    from tasktok_edge.cli import verb

    verb("inspect")()
