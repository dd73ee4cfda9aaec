"""Checkpoints: a folder of model.safetensors and config.json. Nothing in it is code."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tasktok_edge.errors import CheckpointError
from tasktok_edge.model.config import TaskTokConfig
from tasktok_edge.model.int8 import int8_layers
from tasktok_edge.model.official.files import find_parts, is_official
from tasktok_edge.model.official.load import load_official, source_hashes
from tasktok_edge.model.states import assign, fit_faults, value_faults
from tasktok_edge.model.task_nets import build_task_net
from tasktok_edge.model.tasktok import TaskTok

SHIPPED = ("scenes-server", "scenes-edge", "scenes-edge-int8")
DEFAULT = "scenes-edge"
DEFAULT_INT8 = "scenes-edge-int8"
_WEIGHTS, _CONFIG, _ORACLES = "model.safetensors", "config.json", "oracles.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A model in evaluation mode, where it came from, and the SHA-256 of its weights; of official files, of each by part."""

    model: TaskTok
    path: Path
    sha256: str
    sources: Mapping[str, str] = field(default_factory=dict)


def checkpoint_folder(name: str | Path | None) -> Path:
    """Where a checkpoint lies: a folder, the name of a shipped one, or None for the shipped `scenes-edge`."""
    text = str(name) if name is not None else DEFAULT
    if text in SHIPPED:
        return Path(str(files("tasktok_edge") / "assets" / text))
    return Path(text)


def default_for(precision: str) -> str:
    """The shipped edge model that an export at `precision` is made of."""
    return DEFAULT_INT8 if precision == "int8" else DEFAULT


def load_checkpoint(name: str | Path | None = None, *, pick: str | None = None) -> Checkpoint:
    """Build the model that a checkpoint describes and fill it, in fp32 on the CPU; CheckpointError says what is wrong.

    A folder is ours, or one of official `.pt` files; `pick` chooses among several training states of an official one.
    """
    folder = checkpoint_folder(name)
    if not folder.is_dir():
        raise CheckpointError(
            f"no checkpoint at '{folder}': expected a folder with {_WEIGHTS} and {_CONFIG}, one of official TaskTok .pt files, "
            f"or one of {', '.join(SHIPPED)}"
        )
    if not (folder / _CONFIG).is_file() and is_official(folder):
        parts = find_parts(folder, pick)
        model, sources = load_official(parts), source_hashes(parts)
        digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()
        return Checkpoint(model, folder, digest, sources)
    missing = [part for part in (_WEIGHTS, _CONFIG) if not (folder / part).is_file()]
    if missing:
        raise CheckpointError(f"the checkpoint '{folder}' lacks {' and '.join(missing)}")
    with torch.device("meta"):  # shapes alone: the file's tensors take their places
        model = TaskTok(read_config(folder))
    _fill(model, folder / _WEIGHTS)
    with (folder / _WEIGHTS).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Checkpoint(model.eval().requires_grad_(False), folder, digest)


def read_config(folder: Path) -> TaskTokConfig:
    """Read the config.json of a checkpoint of ours."""
    try:
        return TaskTokConfig.model_validate_json((folder / _CONFIG).read_bytes())
    except ValidationError as fault:
        lines = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in fault.errors())
        raise CheckpointError(f"'{folder / _CONFIG}' is no TaskTok config: {lines}") from None


def load_oracles(name: str | Path | None = None) -> nn.ModuleDict:
    """The task networks as trained on clean frames alone, for the columns `clean` and `degraded`."""
    folder = checkpoint_folder(name)
    path = (folder if has_oracles(folder) else checkpoint_folder(SHIPPED[0])) / _ORACLES  # an edge model: its server's
    config = read_config(path.parent)
    nets = nn.ModuleDict({task: build_task_net(part, image_size=config.image_size) for task, part in config.tasks.items()})
    _fill(nets, path)
    return nets.eval().requires_grad_(False)


def has_oracles(folder: Path) -> bool:
    """Whether the task networks of clean frames lie beside a model."""
    return (folder / _ORACLES).is_file()


def save_checkpoint(
    folder: Path, model: TaskTok, *, oracles: nn.Module | None = None, facts: Mapping[str, object], exact: bool = False
) -> None:
    """Write a checkpoint; matrices are kept in fp16 (half the download) unless `exact`, vectors and statistics in fp32.

    Of an int8 model the weights are kept as their codes, the rest exactly.

    `facts` (recipe, steps, accuracies) goes into provenance.json, for people.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = {_WEIGHTS: model} if oracles is None else {_WEIGHTS: model, _ORACLES: oracles}
    for name, module in parts.items():
        partial = folder / f"{name}.partial"
        save_file(_packed(module, exact=exact), partial)
        partial.replace(folder / name)  # a model that was loaded from the old file still reads its pages
    (folder / _CONFIG).write_text(model.config.model_dump_json(indent=1) + "\n")
    (folder / "provenance.json").write_text(json.dumps(dict(facts), indent=1) + "\n")


def _packed(module: nn.Module, *, exact: bool) -> dict[str, Tensor]:
    layers = int8_layers(module)
    state = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    # num_batches_tracked only matters to training with a cumulative average, which nobody here uses.
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    # Rounding before an int8 layer may move a code to its neighbour: there only what is in fp16 already is kept so.
    packed = {n: v.half() if _goes_to_half(v, only_as_it_is=bool(layers)) and not exact else v for n, v in state.items()}
    packed |= {f"{name}.weight": layer.codes().cpu() for name, layer in layers.items()}
    # A quantizer that several layers share is in the state under each of their names; the file wants tensors of their own.
    return {name: value.clone() if value.ndim == 0 else value.contiguous() for name, value in packed.items()}


def _goes_to_half(x: Tensor, *, only_as_it_is: bool) -> bool:
    return x.ndim >= 2 and x.is_floating_point() and (not only_as_it_is or torch.equal(x.half().to(x.dtype), x))


def _unpacked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn int8 codes back to weights on their grid."""
    codes = {n: v for n, v in state.items() if v.dtype == torch.int8 and f"{n}_scale" in state}
    return state | {n: v.float() * state[f"{n}_scale"].reshape(-1, *[1] * (v.ndim - 1)) for n, v in codes.items()}


def _fill(module: nn.Module, path: Path) -> None:
    try:
        state = _unpacked(load_file(path))
    except SafetensorError as fault:
        raise CheckpointError(f"'{path}' is not a whole safetensors file ({fault}): copy or train it again") from None
    wanted = {n: v for n, v in module.state_dict().items() if not n.endswith("num_batches_tracked")}
    faults = fit_faults(wanted, state) + value_faults(state)
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise CheckpointError(f"'{path}' does not fit its config.json: {'; '.join(faults[:4])}{more}")
    assign(module, state)
