"""Fill a model with official tensors, memory-mapped as they lie in the files: nothing is copied, nothing is executed."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tasktok_edge.errors import CheckpointError
from tasktok_edge.model.config import TaskTokConfig
from tasktok_edge.model.official.files import TASKS, Parts, read_tensors, some
from tasktok_edge.model.official.infer import SWITCHES, infer_config
from tasktok_edge.model.official.names import UNUSED, official_name, official_shape
from tasktok_edge.model.states import State, assign, fit_faults, transposed, value_faults
from tasktok_edge.model.swinir import relative_index
from tasktok_edge.model.tasktok import TaskTok


def load_official(parts: Parts) -> TaskTok:
    """Build the model of these files, in evaluation mode; CheckpointError names the file and the tensors that are wrong."""
    required = ("prerestorer", "tokenizer", "predictor")
    lacking = [f"{parts.missing[name]}" for name in required if name in parts.missing]
    if lacking:
        raise CheckpointError(f"the official checkpoint '{parts.folder}' lacks {', '.join(lacking)}")
    states = {name: read_tensors(path) for name, path in parts.found.items()}
    config = config_of(states, parts.folder)
    with torch.device("meta"):  # shapes alone: the tensors of the files take their places
        model = TaskTok(config)
    faults = fill(model, states)
    if faults:
        named = [f"'{parts.found[name].name}': {some(found)}" for name, found in faults.items()]
        raise CheckpointError(f"the official checkpoint '{parts.folder}' is not what it should be: {' | '.join(named)}")
    left = [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta]
    assert not left, left
    return model.eval().requires_grad_(False)


def config_of(states: Mapping[str, State], folder: Path) -> TaskTokConfig:
    """The config of these state dicts, with `labels_<task>.txt` of the folder where there is one, a label a line."""
    labels = {}
    for task in TASKS:
        file = folder / f"labels_{task}.txt"
        if file.is_file():
            labels[task] = tuple(file.read_text(encoding="utf-8").split("\n")[: 1 << 16])
            labels[task] = tuple(line.strip() for line in labels[task] if line.strip())
    nets = {task: states[f"{task}net"] for task in TASKS if f"{task}net" in states}
    return infer_config(states["prerestorer"], states["tokenizer"], states["predictor"], nets, labels)


def fill(model: TaskTok, states: Mapping[str, State]) -> dict[str, list[str]]:
    """Put the tensors into the model; give the faults by part, none of it filled where there are any."""
    faults: dict[str, list[str]] = {}
    predictor = dict(states["predictor"])
    switch = {f"logits.{task}": predictor.pop(name) for task, name in zip(TASKS, SWITCHES, strict=True)}
    modules: dict[str, tuple[nn.Module, str, State]] = {
        "prerestorer": (model.prerestorer, "prerestorer", states["prerestorer"]),
        "tokenizer": (model.tokenizer, "tokenizer", states["tokenizer"]),
        "predictor": (model.refiner, "refiner", predictor),
    }
    for name, (module, rules, state) in modules.items():
        found, wrong = _translated(module, rules, state)
        if wrong:
            faults[name] = wrong
        else:
            module.load_state_dict(found, assign=True)
    faults_of_index = _index_faults(states["prerestorer"])
    if faults_of_index:
        faults.setdefault("prerestorer", []).extend(faults_of_index)
    wrong = _values({name: states["predictor"][name] for name in SWITCHES})
    if wrong:
        faults.setdefault("predictor", []).extend(wrong)
    model.switch.load_state_dict({name: value.float() for name, value in switch.items()}, assign=True)
    for task in TASKS:
        if f"{task}net" in states:
            wrong = _fill_net(model.task_nets[task], states[f"{task}net"])
            if wrong:
                faults[f"{task}net"] = wrong
    return faults


def _translated(module: nn.Module, rules: str, state: State) -> tuple[dict[str, Tensor], list[str]]:
    """Rename and reshape a part's tensors to ours; list what is missing, unexpected, of another shape or dtype, not finite."""
    wanted = module.state_dict()
    names = {official_name(rules, ours): ours for ours in wanted}
    faults = [f"no '{there}'" for there in names if there not in state]
    faults += [f"unexpected '{there}'" for there in state if there not in names and not UNUSED.fullmatch(there)]
    found = {}
    for there, ours in names.items():
        if there not in state:
            continue
        tensor, shape = state[there], official_shape(there, wanted[ours].shape)
        if tuple(tensor.shape) != shape:
            faults.append(f"'{there}' is {tuple(tensor.shape)}, expected {shape}{transposed(tensor, shape)}")
        else:
            found[ours] = tensor.reshape(wanted[ours].shape)
    faults += _values({there: state[there] for there in names if there in state})
    return {name: tensor.float() for name, tensor in found.items()}, faults


def _index_faults(prerestorer: State) -> list[str]:
    # It follows from the window's side, so it is not read; another order of pixels would make another model of the same shapes.
    stored = {n: t for n, t in prerestorer.items() if n.endswith(".relative_position_index")}
    own = {t.shape[0]: relative_index(math.isqrt(t.shape[0])) for t in stored.values() if t.ndim == 2}
    return [
        f"'{n}' is not the index of SwinIR's windows"
        for n, t in stored.items()
        if t.ndim != 2 or not torch.equal(t, own[len(t)])
    ]


def _fill_net(net: nn.Module, state: State) -> list[str]:
    wanted = {n: v for n, v in net.state_dict().items() if not UNUSED.fullmatch(n)}
    used = {n: t for n, t in state.items() if not UNUSED.fullmatch(n)}
    faults = fit_faults(wanted, used, guess=True) + _values({n: t for n, t in used.items() if n in wanted})
    if not faults:
        assign(net, used)
    return faults


def _values(state: State) -> list[str]:
    faults = [f"'{n}' is {str(t.dtype).removeprefix('torch.')}, expected float32" for n, t in state.items() if not _is_float(t)]
    return faults + value_faults({n: t for n, t in state.items() if _is_float(t)})


def _is_float(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)


def source_hashes(parts: Parts) -> dict[str, str]:
    """SHA-256 of every file that was found, by part: what a converted checkpoint tells about where it comes from."""
    hashes = {}
    for name, path in parts.found.items():
        with path.open("rb") as stream:
            hashes[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes
