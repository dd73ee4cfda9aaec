"""The PyTorch side of every comparison: the same frames, the same way in and out, the model as it was trained."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasktok_edge.export.graph import Function, functions_of, output_names
from tasktok_edge.frames import Layout, check_frame, lay_out, to_uint8
from tasktok_edge.manifest import Resize
from tasktok_edge.model.config import TaskConfig
from tasktok_edge.model.faster_rcnn import Detections
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.runtimes.answers import Answer, answer_of
from tasktok_edge.runtimes.session import Result

RawOutputs = dict[str, NDArray[np.float32]]


class Reference:
    """A model in PyTorch, fp32 on the CPU, answering frames as a session does.

    `run_raw` computes the *full* model, every token refined and then switched: what the exported graph must equal.
    """

    def __init__(self, model: TaskTok) -> None:
        self.model, self.size = model.eval(), model.config.image_size
        self.tasks = tuple(model.config.tasks)

    @torch.inference_mode()
    def run_raw(self, functions: Sequence[str], batch: NDArray[np.uint8]) -> RawOutputs:
        """Run functions such as "restore/seg" or "restore/seg@8" on (n, S, S, 3) uint8; outputs by name, float32.

        Raises UsageError for predict/<task> where the model has no network for the task.
        """
        image = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        outputs: RawOutputs = {}
        budgets = range(1, self.model.config.tokenizer.tokens + 1)
        z = self.model.encode(image)  # the same for every task
        for (task, tokens), several in groupby(functions_of(self.tasks, budgets), lambda f: (f.task, f.tokens)):
            asked = [f for f in several if f.name in functions]
            if not asked:
                continue
            restored, seen = self.model.shown(self.model.replace_selected(z, task, tokens), task)
            for function in asked:
                if function.kind == "restore":
                    outputs[function.entry] = restored.permute(0, 2, 3, 1).numpy()
                else:
                    answer = self.model.task_net(function.task)(seen)
                    outputs |= raw_answer(answer, function, self.model.config.tasks[function.task])
        return outputs

    def __call__(self, frame: NDArray[np.uint8], tasks: Sequence[str]) -> dict[str, Result]:
        """Both the restored frame and the answer for each task, at the frame's own size; what they share is computed once."""
        found: dict[str, Result] = {}
        config = self.model.config
        for _, alike in groupby(sorted(tasks, key=lambda t: config.tasks[t].framing), lambda t: config.tasks[t].framing):
            named = list(alike)
            layout = _layout(frame, config.tasks[named[0]], self.size, config.resize)
            functions = [f.name for f in functions_of(named)]
            outputs = [self.run_raw(functions, batch) for batch in layout.cut(frame)]
            for task in named:
                restored = to_uint8(layout.join([o[f"restore_{task}"][0] for o in outputs]))
                part, entry = config.tasks[task], f"predict_{task}"
                answer = answer_of(part.kind, entry, outputs, layout, part.labels, heat_map=part.heat_map(self.size))
                found[task] = Result(restored, answer)
        return {task: found[task] for task in tasks}

    def restore(self, frame: NDArray[np.uint8], task: str) -> NDArray[np.uint8]:
        """The frame restored for a task, at its own size."""
        self.model.check_task(task)
        layout = _layout(frame, self.model.config.tasks[task], self.size, self.model.config.resize)
        outputs = [self.run_raw((f"restore/{task}",), batch)[f"restore_{task}"][0] for batch in layout.cut(frame)]
        return to_uint8(layout.join(outputs))

    def predict(self, frame: NDArray[np.uint8], task: str, tokens: int | None = None) -> Answer:
        """The task's answer for a frame of any size; UsageError where the model has no network for the task."""
        self.model.check_task(task)
        function = Function("predict", task, tokens)
        return answer_frame(
            lambda batch: self.run_raw((function.name,), batch),
            frame,
            function,
            self.model.config.tasks[task],
            self.size,
            resize=self.model.config.resize,
        )


def _layout(frame: NDArray[np.uint8], config: TaskConfig, size: int, resize: Resize) -> Layout:
    height, width = check_frame(frame).shape[:2]
    return lay_out(height, width, size, resize=resize, framing=config.framing)


def raw_answer(answer: object, function: Function, config: TaskConfig) -> RawOutputs:
    """Name a task network's output as the exported graph does."""
    names = output_names(function, config.kind)
    if isinstance(answer, list):
        return dict(zip(names, _listed(answer, config.n_outputs), strict=True))
    if config.kind == "det":
        boxes, logits = cast(tuple[torch.Tensor, torch.Tensor], answer)
        return dict(zip(names, (boxes.numpy(), torch.sigmoid(logits).numpy()), strict=True))
    if config.kind == "seg":
        return {names[0]: cast(torch.Tensor, answer).numpy()}
    return {names[0]: cast(torch.Tensor, answer).numpy()}


def _listed(found: list[Detections], n_labels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Faster R-CNN's list of what one frame holds, as boxes (1, n, 4) and scores (1, n, C): 0 but for the label it found."""
    (one,) = found
    scores = torch.zeros(len(one.labels), n_labels)
    scores[torch.arange(len(one.labels)), one.labels - 1] = one.scores  # its label 0 is the background
    return one.boxes[None].numpy(), scores[None].numpy()


def oracle_answer(
    net: nn.Module, frame: NDArray[np.uint8], task: str, config: TaskConfig, size: int, *, resize: Resize = "area"
) -> Answer:
    """The answer of a task network alone, without restoration."""
    function = Function("predict", task)

    @torch.inference_mode()
    def run(batch: NDArray[np.uint8]) -> RawOutputs:
        answer = net(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255)
        return raw_answer(answer, function, config)

    return answer_frame(run, frame, function, config, size, resize=resize)


def answer_frame(
    run: Callable[[NDArray[np.uint8]], RawOutputs],
    frame: NDArray[np.uint8],
    function: Function,
    config: TaskConfig,
    size: int,
    *,
    resize: Resize = "area",
) -> Answer:
    """Lay a frame out on squares of `size`, run each, and join the raw outputs to an answer, as the shim does."""
    layout = _layout(frame, config, size, resize)
    outputs = [run(batch) for batch in layout.cut(frame)]
    return answer_of(config.kind, function.entry, outputs, layout, config.labels, heat_map=config.heat_map(size))


def golden_answers(model: TaskTok, functions: Sequence[Function], frames: NDArray[np.uint8]) -> RawOutputs:
    """What the exported functions must give for each frame (n, S, S, 3), one at a time as a device runs them."""
    reference = Reference(model)
    names = [f.name for f in functions]
    runs = [reference.run_raw(names, frames[i : i + 1]) for i in range(len(frames))]
    return {name: np.ascontiguousarray(np.concatenate([r[name] for r in runs])) for name in runs[0]}
