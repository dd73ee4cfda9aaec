"""The files of an official checkpoint: which there are, and their tensors, memory-mapped. Nothing in them is executed."""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # the error's name alone: torch's restricted reader raises it

import torch
from torch import Tensor

from tasktok_edge.errors import CheckpointError

PRERESTORER = "codeformer_swinir_tiny.pt"
TASKS = ("cls", "det", "seg")  # their official order: switch i is of task i
PARENTS = 4  # upstream keeps weights/ beside experiments/joint/NAME/checkpoints
_TOKENIZER = re.compile(r"tasktok_(last|best_(?:cls|det|seg)|\d{7})\.pt")
# Whatever a damaged or hostile file makes torch's restricted reader raise.
_READ_ERRORS = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
    MemoryError, ImportError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """Where each part lies; a path that is None was not found. `pick` is last, best_<task> or a step of seven digits."""

    folder: Path
    pick: str
    prerestorer: Path | None
    tokenizer: Path | None
    predictor: Path | None
    task_nets: dict[str, Path]

    @property
    def found(self) -> dict[str, Path]:
        named = {"prerestorer": self.prerestorer, "tokenizer": self.tokenizer, "predictor": self.predictor}
        return {name: path for name, path in named.items() if path is not None} | {
            f"{task}net": path for task, path in self.task_nets.items()
        }

    @property
    def missing(self) -> dict[str, str]:
        """What is not there, and the file name that was looked for."""
        tokenizer, predictor, nets = _file_names(self.pick)
        wanted = {"prerestorer": f"weights/{PRERESTORER}", "tokenizer": tokenizer, "predictor": predictor}
        wanted |= {f"{task}net": name for task, name in nets.items()}
        return {part: name for part, name in wanted.items() if part not in self.found}


def is_official(folder: Path) -> bool:
    """Whether the folder looks like one of official files."""
    return bool(_picks(folder)) or any((place / PRERESTORER).is_file() for place in _places(folder))


def find_parts(folder: Path, pick: str | None = None) -> Parts:
    """List the files of one training state: `pick`, or `last` where it is there, or the only other one."""
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at '{folder}': expected a folder of official .pt files")
    picks = _picks(folder)
    if pick is None:
        others = [p for p in picks if p != "last"]
        if len(others) > 1 and "last" not in picks:
            raise CheckpointError(
                f"'{folder}' holds several training states, none is tasktok_last.pt: --pick {', '.join(others)}"
            )
        pick = "last" if "last" in picks or not others else others[0]
    elif pick not in picks:
        raise CheckpointError(f"'{folder}' holds no tasktok_{pick}.pt; there is: {', '.join(picks) or 'none'}")
    tokenizer, predictor, nets = _file_names(pick)
    return Parts(
        folder=folder,
        pick=pick,
        prerestorer=_first([*_places(folder), *(p / "weights" for p in list(folder.resolve().parents)[:PARENTS])], PRERESTORER),
        tokenizer=_first(_places(folder), tokenizer),
        predictor=_first(_places(folder), predictor),
        task_nets={task: path for task, name in nets.items() if (path := _first(_places(folder), name))},
    )


def _places(folder: Path) -> list[Path]:
    return [folder, folder / "checkpoints", folder / "weights"]


def _first(places: list[Path], name: str) -> Path | None:
    return next((place / name for place in places if (place / name).is_file()), None)


def _picks(folder: Path) -> list[str]:
    names = {path.name for place in _places(folder)[:2] if place.is_dir() for path in place.iterdir()}
    return sorted(found[1] for name in names if (found := _TOKENIZER.fullmatch(name)))


def _file_names(pick: str) -> tuple[str, str, dict[str, str]]:
    """Files of tokenizer, predictor and task networks. The best decoder of a task pairs with that task's network alone."""
    nets = {task: f"{task}net_{pick}.pt" for task in TASKS}
    if pick.startswith("best_"):
        task = pick.removeprefix("best_")
        nets = {task: f"{task}net_best.pt"}
    return f"tasktok_{pick}.pt", f"token_predictor_{pick}.pt", nets


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict, memory-mapped, a `module.` prefix stripped; CheckpointError names the file and what is wrong."""
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"'{path}' is no file of torch.save: {_looks_like(head)}; copy or download it again")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        what = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        named = f" ('{what[1]}')" if what else ""
        raise CheckpointError(
            f"'{path}' holds more than tensors{named}: nothing of it was executed; an official file is a plain state dict"
        ) from None
    except _READ_ERRORS as error:
        raise CheckpointError(f"'{path}' is damaged or not whole ({_first_line(error)}): copy or download it again") from None
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"'{path}' holds a {type(state).__name__}, expected a state dict of tensors")
    odd = [(name, value) for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if odd:
        name, value = odd[0]
        raise CheckpointError(f"'{path}': {name!r} is a {type(value).__name__}, expected a state dict of tensors alone")
    tensors = {str(name): value.detach() for name, value in state.items()}
    faults = [f"'{n}' is not a plain dense tensor" for n, t in tensors.items() if t.is_quantized or t.layout != torch.strided]
    faults += [f"'{n}' is not contiguous" for n, t in tensors.items() if t.layout == torch.strided and not t.is_contiguous()]
    if faults:
        raise CheckpointError(f"'{path}': {some(faults)}")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def some(faults: list[str], shown: int = 4) -> str:
    """Join the first faults and count the rest."""
    return "; ".join(faults[:shown]) + (f"; and {len(faults) - shown} more" if len(faults) > shown else "")


def _looks_like(head: bytes) -> str:
    if not head:
        return "it is empty"
    if head.lstrip()[:1] == b"<":
        return "it is a web page, as a download service sends in place of a large file"
    if head.startswith(b"\x80"):
        return "it is a bare pickle, which is never read"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, git lfs pull fetches the file"
    return "it does not begin as a zip archive"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
