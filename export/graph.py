"""The graph that every target exports: a uint8 frame in, restored frames and task answers out."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tasktok_edge.export.rewrite import Rewritten, sharing_copy
from tasktok_edge.manifest import function_name, output_name
from tasktok_edge.model.config import TaskTokConfig
from tasktok_edge.model.fuse import fuse
from tasktok_edge.model.tasktok import TaskTok

Kind = Literal["restore", "predict"]
Say = Callable[[str], None]  # what an exporter does just now, for whoever watches
# Faster R-CNN proposes another number of boxes for every image; a graph has fixed shapes.
NOT_EXPORTED = ("none", "fasterrcnn_mobilenet_v3_large_fpn")


class Function(NamedTuple):
    """What an engine can be asked for: `restore/<task>` gives a frame, `predict/<task>` the task's raw answer."""

    kind: Kind
    task: str
    tokens: int | None = None  # a budget: so many tokens are replaced, not the task's own selection

    @property
    def name(self) -> str:
        return function_name(self.kind, self.task, self.tokens)

    @property
    def entry(self) -> str:
        """The name inside the artifact: identifiers alone are safe in every format."""
        return output_name(self.kind, self.task, self.tokens)

    @property
    def choice(self) -> str:
        """What it shares with the other function of its task and budget: the tokens."""
        return self.entry.removeprefix(f"{self.kind}_")


class Place(NamedTuple):
    """Where a bundle has a function: the engine's file, and the engine's own name of the function."""

    file: str
    entry: str


def in_one(file: str, functions: Sequence[Function]) -> dict[Function, Place]:
    """All of them in the same file, under their usual names."""
    return {function: Place(file, function.entry) for function in functions}


def functions_of(tasks: Sequence[str], budgets: Sequence[int] = ()) -> list[Function]:
    """Both functions of each task, in the order in which artifacts list them: its own selection, then each budget."""
    return [Function(kind, task, n) for task in tasks for n in (None, *budgets) for kind in ("restore", "predict")]


def model_functions(config: TaskTokConfig, tasks: Sequence[str] | None = None, budgets: Sequence[int] = ()) -> list[Function]:
    """What can be exported of a model: every task's frame, and its answer where a network gives one of fixed shape."""
    chosen = list(config.tasks) if tasks is None else tasks
    return [f for f in functions_of(chosen, budgets) if f.kind == "restore" or config.tasks[f.task].net not in NOT_EXPORTED]


def output_names(function: Function, kind: str) -> list[str]:
    """What the function's outputs are called; detection has two."""
    if function.kind == "predict" and kind == "det":
        return [f"{function.entry}_boxes", f"{function.entry}_scores"]
    return [function.entry]


class Pixels(nn.Module):
    """Bytes to floats in [0, 1]."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, frame: Tensor) -> Tensor:
        return frame.to(self.dtype) / 255


class Deployed(nn.Module):
    """The model at its level for some functions: one pass shares what they have in common.

    Takes `frame` (1, S, S, 3) uint8 RGB, or with `image_input` (1, 3, S, S) float in [0, 1] for formats whose camera input
    does that scaling itself. Gives, in the order of `functions`: restored frames (1, S, S, 3) float, nominal [0, 1];
    classification logits (1, C); segmentation logits (1, K, S, S); boxes (1, G, 4) xyxy pixels and scores (1, G, C). `dtype` is
    what the model's weights have and what is computed in; outputs are float32.
    """

    def __init__(
        self,
        model: TaskTok,
        functions: Sequence[Function],
        *,
        image_input: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        model = fuse(model)
        self.functions, self.image_input = list(functions), image_input
        self.pixels: nn.Module = Pixels(dtype)  # or an exporter's own way of it
        self.model = Rewritten(model)
        self.size, self.level = model.config.image_size, model.config.level
        chosen = {f.choice: f for f in functions}
        self.switches = nn.ModuleDict({name: model.static_switch(f.task, f.tokens) for name, f in chosen.items()})

    def only(self, function: Function) -> "Deployed":
        """Give the graph of one function, with the same tensors."""
        part = sharing_copy(self)
        part.functions = [function]
        part.switches = nn.ModuleDict({function.choice: part.switches[function.choice]})
        return part

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        z = self.model.encode(self._image(frame))
        shared = self.model.refiner.shared(z, self.level)
        outputs: dict[Function, list[Tensor]] = {}
        for choice, switch in self.switches.items():
            features = self.model.decoder.features(switch(z, shared))
            image = cache(partial(self.model.image, features))  # made once, and not at all where the answer is read before it
            for function in (f for f in self.functions if f.choice == choice):
                if function.kind == "restore":
                    outputs[function] = [image().permute(0, 2, 3, 1)]
                else:
                    outputs[function] = self._answer(function.task, self.model.seen(features, image, function.task))
        return tuple(output.to(torch.float32) for function in self.functions for output in outputs[function])

    def _image(self, frame: Tensor) -> Tensor:
        """What the encoder reads: scaled first, so that what moves it meets the convolution and engines make one of the two."""
        if self.image_input:
            return self.model.blocks(frame.permute(0, 2, 3, 1))
        return self.model.blocks(self.pixels(frame))

    def _answer(self, task: str, seen: Tensor) -> list[Tensor]:
        answer = self.model.task_nets[task](seen)
        if isinstance(answer, tuple):
            boxes, logits = answer
            return [boxes, torch.sigmoid(logits)]
        return [answer]
