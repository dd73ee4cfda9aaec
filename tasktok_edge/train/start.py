"""What TaskTok's own training starts from: tokenizer, pre-restorer and clean-trained task networks, from files in a folder."""

import hashlib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tasktok_edge.errors import CheckpointError
from tasktok_edge.model.checkpoint import checkpoint_folder, load_checkpoint, load_oracles, read_config
from tasktok_edge.model.config import TaskTokConfig, ViTConfig
from tasktok_edge.model.official.files import TASKS, find_parts, read_tensors, some
from tasktok_edge.model.official.infer import NETS, SWITCHES
from tasktok_edge.model.official.load import config_of, fill
from tasktok_edge.model.official.names import UNUSED, official_name, official_shape
from tasktok_edge.model.refiner import Refiner
from tasktok_edge.model.states import State, fit_faults, value_faults
from tasktok_edge.model.task_nets import build_task_net
from tasktok_edge.model.tasktok import TaskTok

FRESH_REFINER = ViTConfig(width=512, layers=6, heads=8)  # of every official predictor
ORACLE_FILES = {
    "cls": ("clsnet_oracle.pt", "resnet18*.pt", "resnet18*.pth"),  # torchvision's ResNet-18 for ImageNet is the official one
    "det": ("detnet_oracle.pt",),
    "seg": ("segnet_oracle.pt",),
}
TITOK_FILES = ("titok_*.pt", "titok_*.safetensors")  # TiTok's own weights, where there is no tasktok_*.pt yet


@dataclass(frozen=True)
class Start:
    """A model to train, its teachers, and the SHA-256 of the files they came from."""

    model: TaskTok
    oracles: nn.ModuleDict
    sources: dict[str, str]

    @property
    def switches_are_fresh(self) -> bool:
        """Whether no order or training has moved the switches yet."""
        return all(not bool(logits.any()) for logits in self.model.switch.logits.values())

    @property
    def fingerprint(self) -> str:
        """A hash of all that never moves: a run is only resumed with what it began with."""
        digest = hashlib.sha256()
        for module in (self.model.prerestorer, self.model.tokenizer.encoder, self.oracles):
            for name, value in module.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_start(name: str | Path, *, refiner: ViTConfig = FRESH_REFINER) -> Start:
    """Load a folder of official files, or a checkpoint of ours, with its oracles; CheckpointError lists all that is missing.

    Without a predictor's file a new `refiner` and untouched switches are made. Task networks start as the oracles, or as the
    trained ones where those are there.
    """
    folder = checkpoint_folder(name)
    if not folder.is_dir():
        raise CheckpointError(f"no folder '{folder}' to start from: give one with official files, or a checkpoint of ours")
    if (folder / "config.json").is_file():
        return _from_ours(folder)
    parts = find_parts(folder)
    found = dict(parts.found)
    missing = [file for part, file in parts.missing.items() if part == "prerestorer"]
    if "tokenizer" not in found:
        titok = _first(folder, TITOK_FILES)
        found |= {"tokenizer": titok} if titok else {}
        missing += [] if titok else [f"{parts.missing['tokenizer']} (or {' or '.join(TITOK_FILES)})"]
    oracles, absent = _oracle_files(folder)
    if missing or absent:
        raise CheckpointError(f"'{folder}' lacks {', '.join([*missing, *absent])}: put the files there, or in its weights/")
    states: dict[str, State] = {part: _read(path) for part, path in found.items()}
    clean = {task: read_tensors(path) for task, path in oracles.items()}
    if "predictor" not in states and "latent_tokens" in states["tokenizer"]:
        states["predictor"] = _fresh_predictor(refiner, states["tokenizer"])
    for task, state in clean.items():
        states.setdefault(f"{task}net", state)
    config = config_of(states, folder)
    model = TaskTok(config)
    faults = [f"{part}: {some(wrong)}" for part, wrong in fill(model, states).items()]
    if faults:
        raise CheckpointError(f"the files in '{folder}' are not what they should be: {' | '.join(faults)}")
    nets = _filled(config, clean, oracles)
    hashes = {path.name: _sha256(path) for path in [*found.values(), *oracles.values()]}
    return Start(_own_memory(model), nets, hashes)


def _from_ours(folder: Path) -> Start:
    config = read_config(folder)
    odd = [task for task in NETS if task not in config.tasks or config.tasks[task].net != NETS[task]]
    if odd or len(config.tasks) != len(NETS):
        raise CheckpointError(
            f"the checkpoint '{folder}' has no {', '.join(NETS[t] for t in odd) or 'tasks cls, det and seg alone'}: TaskTok's "
            "own training needs them; start from official files, or use a recipe of the scenes"
        )
    loaded = load_checkpoint(folder)
    if (folder / "oracles.safetensors").is_file():
        nets, hashes = load_oracles(folder), {"oracles.safetensors": _sha256(folder / "oracles.safetensors")}
    else:
        files, absent = _oracle_files(folder)
        if absent:
            raise CheckpointError(f"'{folder}' lacks oracles.safetensors, or else {', '.join(absent)}: put the files there")
        nets = _filled(config, {task: read_tensors(path) for task, path in files.items()}, files)
        hashes = {path.name: _sha256(path) for path in files.values()}
    return Start(_own_memory(loaded.model), nets, {"model.safetensors": loaded.sha256} | hashes)


def _first(folder: Path, patterns: Iterable[str]) -> Path | None:
    places = (folder, folder / "weights")
    return next((p for pattern in patterns for place in places for p in sorted(place.glob(pattern)) if p.is_file()), None)


def _oracle_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The file of each task's network for clean images; and what was looked for where there is none."""
    found = {task: _first(folder, patterns) for task, patterns in ORACLE_FILES.items()}
    absent = [" or ".join(ORACLE_FILES[task]) for task, path in found.items() if path is None]
    return {task: path for task, path in found.items() if path is not None}, absent


def _read(path: Path) -> State:
    if path.suffix != ".safetensors":
        return read_tensors(path)
    try:
        return load_file(path)
    except SafetensorError as fault:
        raise CheckpointError(f"'{path}' is not a whole safetensors file ({fault}): download it again") from None


def _fresh_predictor(config: ViTConfig, tokenizer: State) -> dict[str, Tensor]:
    """A new predictor as an official state dict: a refiner that changes nothing yet, and switches at zero."""
    tokens, channels = len(tokenizer["latent_tokens"]), len(tokenizer.get("encoder.conv_out.weight", torch.zeros(1)))
    refiner = Refiner(config, tokens=tokens, channels=channels)
    state = {official_name("refiner", name): value for name, value in refiner.state_dict().items()}
    state = {name: value.reshape(official_shape(name, value.shape)) for name, value in state.items()}
    return state | {name: torch.zeros(tokens) for name in SWITCHES}


def _filled(config: TaskTokConfig, states: Mapping[str, State], files: Mapping[str, Path]) -> nn.ModuleDict:
    """The networks for clean images, in memory of their own."""
    nets = nn.ModuleDict({task: build_task_net(config.tasks[task], image_size=config.image_size) for task in TASKS})
    for task, state in states.items():
        wanted = {n: v for n, v in nets[task].state_dict().items() if not UNUSED.fullmatch(n)}
        used = {n: t for n, t in state.items() if not UNUSED.fullmatch(n)}
        faults = fit_faults(wanted, used) + value_faults({n: t for n, t in used.items() if n in wanted})
        if faults:
            raise CheckpointError(f"'{files[task]}' is no {config.tasks[task].net} of this model: {some(faults)}")
        nets[task].load_state_dict({n: t.float() for n, t in used.items()}, strict=False)  # all but the counters
    return nets


def _own_memory(model: TaskTok) -> TaskTok:
    """Copy the tensors that lie in mapped files, or in two networks at once, so that training may move them."""
    return deepcopy(model)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
