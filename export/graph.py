"""The graph that every target exports: a uint8 frame in, restored frames and task answers out."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tasktok_edge.export.rewrite import Rewritten, sharing_copy
from tasktok_edge.model.config import TaskTokConfig
from tasktok_edge.model.tasktok import TaskTok

Kind = Literal["restore", "predict"]
Say = Callable[[str], None]  # what an exporter does just now, for whoever watches
# Faster R-CNN proposes another number of boxes for every image; a graph has fixed shapes.
NOT_EXPORTED = ("none", "fasterrcnn_mobilenet_v3_large_fpn")


class Function(NamedTuple):
    """What an engine can be asked for: `restore/<task>` gives a frame, `predict/<task>` the task's raw answer."""

    kind: Kind
    task: str

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.task}"

    @property
    def entry(self) -> str:
        """The name inside the artifact: identifiers alone are safe in every format."""
        return f"{self.kind}_{self.task}"


def functions_of(tasks: Sequence[str]) -> list[Function]:
    """Both functions of each task, in the order in which artifacts list them."""
    return [Function(kind, task) for task in tasks for kind in ("restore", "predict")]


def model_functions(config: TaskTokConfig, tasks: Sequence[str] | None = None) -> list[Function]:
    """What can be exported of a model: every task's frame, and its answer where a network gives one of fixed shape."""
    chosen = list(config.tasks) if tasks is None else tasks
    return [f for f in functions_of(chosen) if f.kind == "restore" or config.tasks[f.task].net not in NOT_EXPORTED]


def output_names(function: Function, kind: str) -> list[str]:
    """What the function's outputs are called; detection has two."""
    if function.kind == "predict" and kind == "det":
        return [f"{function.entry}_boxes", f"{function.entry}_scores"]
    return [function.entry]


class Deployed(nn.Module):
    """The model at its level for some functions: one pass shares what they have in common.

    Takes `frame` (1, S, S, 3) uint8 RGB, or with `image_input` (1, 3, S, S) float in [0, 1] for formats whose camera input
    does that scaling itself. Gives, in the order of `functions`: restored frames (1, S, S, 3) float, nominal [0, 1];
    classification logits (1, C); segmentation logits (1, S, S, K); boxes (1, G, 4) xyxy pixels and scores (1, G, C). `dtype` is
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
        self.functions, self.image_input, self.dtype = list(functions), image_input, dtype
        self.model = Rewritten(model)
        self.size, self.level = model.config.image_size, model.config.level
        self.switches = nn.ModuleDict({task: model.static_switch(task) for task in dict.fromkeys(f.task for f in functions)})

    def only(self, function: Function) -> "Deployed":
        """Give the graph of one function, with the same tensors."""
        part = sharing_copy(self)
        part.functions = [function]
        part.switches = nn.ModuleDict({function.task: part.switches[function.task]})
        return part

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        image = frame if self.image_input else frame.permute(0, 3, 1, 2).to(self.dtype) / 255
        z = self.model.encode(image)
        shared = self.model.refiner.shared(z, self.level)
        restored = {task: self.model.decode(switch(z, shared)) for task, switch in self.switches.items()}
        outputs: list[Tensor] = []
        for function in self.functions:
            if function.kind == "restore":
                outputs.append(restored[function.task].permute(0, 2, 3, 1))
            else:
                outputs.extend(self._answer(function.task, restored[function.task]))
        return tuple(output.to(torch.float32) for output in outputs)

    def _answer(self, task: str, image: Tensor) -> list[Tensor]:
        answer = self.model.task_nets[task](image)
        if isinstance(answer, tuple):
            boxes, logits = answer
            return [boxes, torch.sigmoid(logits)]
        return [answer.permute(0, 2, 3, 1) if answer.ndim == 4 else answer]
