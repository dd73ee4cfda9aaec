"""Task networks of the user's own: an ONNX file, or a function that returns an nn.Module.

Such a network takes an image (1, 3, S, S) float in nominal [0, 1], never clamped, S the checkpoint's size, and gives
classification logits (1, C), segmentation logits (1, K, S, S), or for detection a pair: boxes (1, N, 4) xyxy in pixels of S and
logits (1, N, C). It becomes part of the deployed graph, so that torch.export must take it: fixed shapes, no branches on values.
"""

import importlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor, nn

from tasktok_edge.errors import PackageError, UsageError, unknown_word
from tasktok_edge.model.config import TaskKind
from tasktok_edge.model.tasktok import TaskTok

T = TypeVar("T")
MAX_LABEL_BYTES = 1 << 20
MOST_LABELS: dict[TaskKind, int] = {"cls": 65536, "seg": 256, "det": 65536}  # as a manifest and a uint8 mask hold


class OwnNet(nn.Module):
    """A user's network as a `TaskNet` that answers; its features are its answer, so that no loss can compare them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def features(self, image: Tensor) -> list[Tensor | tuple[Tensor, ...]]:
        found = self.net(image)
        return [tuple(found) if isinstance(found, list) else found]

    def answer(self, features: list[Tensor | tuple[Tensor, ...]]) -> Tensor | tuple[Tensor, ...]:
        return features[0]

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.answer(self.features(image))


def parse_task_nets(words: Sequence[str], tasks: Collection[str]) -> dict[str, str]:
    """Split words such as `cls=flowers.onnx` or `seg=nets:roads` into task and where its network is.

    >>> parse_task_nets(["cls=flowers.onnx"], ["cls", "seg"])
    {'cls': 'flowers.onnx'}
    """
    found: dict[str, str] = {}
    for word in words:
        task, equals, spec = word.partition("=")
        if not (task and equals and spec):
            raise UsageError(f"--task-net {word!r}: expected TASK=FILE.onnx or TASK=package.module:callable")
        if task not in tasks:
            raise unknown_word("task", task, tasks)
        if task in found:
            raise UsageError(f"--task-net names {task} twice: '{found[task]}' and '{spec}'")
        found[task] = spec
    return found


def use_task_nets(model: TaskTok, words: Sequence[str]) -> TaskTok:
    """Give the model with the networks that `--task-net` words name, each checked; it shares the other tensors."""
    for task, spec in parse_task_nets(words, list(model.config.tasks)).items():
        net, count = load_own_net(spec, kind=model.config.tasks[task].kind, image_size=model.config.image_size)
        model = with_task_net(model, task, net, read_labels(spec, task=task, count=count))
    return model


def with_task_net(model: TaskTok, task: str, net: nn.Module, labels: tuple[str, ...]) -> TaskTok:
    """Give a copy of the model whose `task` is answered by `net`; every other tensor is shared."""
    model.check_task(task)
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    made = deepcopy(model, shared)  # type: ignore[arg-type]  # what a copy stands for may be of any type
    made.task_nets[task] = OwnNet(net).requires_grad_(False).eval()
    config = model.config.tasks[task]
    # Windows show a network what it was most likely trained on, whole squares; a detector keeps its checkpoint's framing.
    framing = config.framing if config.kind == "det" else "windows"
    own = config.model_copy(update={"net": "own", "labels": labels, "framing": framing})
    made.config = model.config.model_copy(update={"tasks": model.config.tasks | {task: own}})
    return made


def load_own_net(spec: str, *, kind: TaskKind, image_size: int) -> tuple[nn.Module, int]:
    """Give the network that `spec` names and how many labels it answers with; UsageError says what does not fit.

    `spec` is a path ending in .onnx, or package.module:callable, looked for in the current directory and then among what is
    installed. The network is run once on a grey image, copied, and exported once.
    """
    if _is_onnx(spec):
        try:
            from tasktok_edge.model.onnx_net import OnnxNet
        except ModuleNotFoundError as missing:
            raise PackageError(f'an ONNX task network needs {missing.name}: pip install "tasktok-edge[export]"') from None
        net: nn.Module = OnnxNet(Path(spec), image_size=image_size)
    else:
        net = _call(spec)
    return net, _checked(net, spec, kind, image_size)


def read_labels(spec: str, *, task: str, count: int) -> tuple[str, ...]:
    """Read labels_<task>.txt beside the network's file, a label a line; without one: label_0, label_1, …"""
    file = spec if _is_onnx(spec) else getattr(sys.modules[_split(spec)[0]], "__file__", None)
    path = Path(file or "").parent / f"labels_{task}.txt"
    if not path.is_file():
        return tuple(f"label_{i}" for i in range(count))
    if path.stat().st_size > MAX_LABEL_BYTES:
        raise UsageError(f"'{path}' is larger than {MAX_LABEL_BYTES} bytes: expected {count} labels, one a line")
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except UnicodeDecodeError:
        raise UsageError(f"'{path}' is not UTF-8 text: expected {count} labels, one a line") from None
    if len(labels) != count:
        raise UsageError(f"'{path}' has {len(labels)} labels, the network answers with {count}: one a line, in its order")
    return labels


def _is_onnx(spec: str) -> bool:
    return spec.lower().endswith(".onnx")


def _split(spec: str) -> tuple[str, str]:
    module, colon, name = spec.partition(":")
    words = [*module.split("."), name]
    if not (colon and all(word.isidentifier() for word in words)) or words[-2] == "py":
        raise UsageError(f"task network '{spec}': expected a path ending in .onnx, or package.module:callable (without .py)")
    return module, name


@contextmanager
def _importing_here() -> Iterator[None]:
    """Look in the current directory first, as `python -m` does; a console script does not by itself."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _call(spec: str) -> nn.Module:
    """Import what `spec` names and call it."""
    name, function = _split(spec)
    with _importing_here():
        module = _tried(spec, f"importing {name}", lambda: _import(spec, name))
        made = getattr(module, function, None)
        if made is None:
            own = [n for n, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == name]
            raise unknown_word(f"callable of {name}", function, own)
        if isinstance(made, nn.Module) or not callable(made):
            raise UsageError(f"task network '{spec}': {function} is {_told(made)}, expected a function that returns a network")
        net = _tried(spec, f"{function}()", made)
    if not isinstance(net, nn.Module):
        raise UsageError(f"task network '{spec}': {function}() gave {_told(net)}, expected an nn.Module")
    if any(part.training for part in net.modules()):
        raise UsageError(f"task network '{spec}' is in training mode: return it after .eval()")
    return net.requires_grad_(False)


def _import(spec: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as fault:
        if fault.name and f"{name}.".startswith(f"{fault.name}."):
            where = f"in {Path.cwd()} or among what is installed"
            raise UsageError(f"task network '{spec}': there is no module '{fault.name}' {where}") from None
        raise


def _checked(net: nn.Module, spec: str, kind: TaskKind, size: int) -> int:
    """How many labels the network answers with, after what its place in the graph asks of it."""
    grey = torch.full((1, 3, size, size), 0.5)
    with torch.no_grad():
        answer = _tried(spec, "running it on a grey image", lambda: net(grey))
    count = _count_labels(answer, spec, kind, size)
    _tried(spec, "copying it", lambda: deepcopy(net))
    _tried(spec, "torch.export of it", lambda: torch.export.export(net, (grey,)))
    return count


def _tried(spec: str, what: str, run: Callable[[], T]) -> T:
    """Run code of the user's, which may raise anything."""
    try:
        return run()
    except UsageError:
        raise
    except (Exception, SystemExit) as fault:
        line = next((text.strip() for text in str(fault).splitlines() if text.strip()), "")[:200]
        told = f"{type(fault).__name__}{f': {line}' if line else ''}"
        raise UsageError(f"task network '{spec}': {what} raised {told}") from fault


def _count_labels(answer: object, spec: str, kind: TaskKind, size: int) -> int:
    expected = {
        "cls": "logits (1, C)",
        "seg": f"logits (1, K, {size}, {size})",
        "det": f"a pair, boxes (1, N, 4) in pixels of {size} and logits (1, N, C)",
    }[kind]
    parts = list(answer) if isinstance(answer, tuple | list) else [answer]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    match kind, shapes:
        case "cls", [(1, count)] if not isinstance(answer, tuple | list):
            pass
        case "seg", [(1, count, height, width)] if (height, width) == (size, size) and isinstance(answer, Tensor):
            pass
        case "det", [(1, n, 4), (1, m, count)] if n == m > 0 and len(parts) == 2:
            pass
        case _:
            hint = _hint(answer, shapes, kind)
            raise UsageError(f"task network '{spec}' of a {kind} task gave {_told(answer)}, expected {expected}: {hint}")
    if any(tensor.dtype != torch.float32 for tensor in tensors) or not count:
        raise UsageError(f"task network '{spec}' gave {_told(answer)}, expected float32 {expected}")
    if count > MOST_LABELS[kind]:
        raise UsageError(f"task network '{spec}' answers with {count} labels, a {kind} task has at most {MOST_LABELS[kind]}")
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise UsageError(f"task network '{spec}' gave NaN or infinity for a grey image: check its weights")
    return int(count)


def _hint(answer: object, shapes: list[tuple[int, ...]], kind: TaskKind) -> str:
    if isinstance(answer, dict):
        return "return the tensors themselves, as in answer['out']"
    if kind == "det":
        swapped = len(shapes) == 2 and shapes[1][-1:] == (4,) != shapes[0][-1:]
        return "swap the two" if swapped else "return every cell's box and raw logits, before any suppression"
    if len(shapes) > 1:
        return "return the main one alone"
    if kind == "seg" and len(shapes) == 1 and len(shapes[0]) == 4:
        return "let the network resize its logits to the image's size as its last step"
    return "give it to the task that it was made for, or change its last layer"


def _told(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"{len(value)} of them: {', '.join(_told(part) for part in value[:4])}" if value else "nothing"
    if isinstance(value, dict):
        return f"a dict of {', '.join(repr(key) for key in list(value)[:4])}"
    return f"a {type(value).__name__}"
