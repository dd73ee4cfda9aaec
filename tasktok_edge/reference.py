"""The PyTorch side of every comparison: the same frames, the same way in and out, the model as it was trained."""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasktok_edge.export.graph import Function, functions_of, output_names
from tasktok_edge.frames import blend, check_frame, crop_resize, resize, to_uint8, windows
from tasktok_edge.model.config import TaskConfig
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.runtimes.answers import Answer, classification, detections, segmentation

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
        """Run functions such as "restore/seg" on (n, S, S, 3) uint8; outputs by name, float32."""
        image = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        outputs: RawOutputs = {}
        for function in functions_of(self.tasks):
            if function.name not in functions:
                continue
            restored = self.model.restore(image, function.task)
            if function.kind == "restore":
                outputs[function.entry] = restored.permute(0, 2, 3, 1).numpy()
            else:
                net, kind = self.model.task_net(function.task), self.model.config.tasks[function.task].kind
                outputs |= raw_answer(net(restored), function, kind)
        return outputs

    def restore(self, frame: NDArray[np.uint8], task: str) -> NDArray[np.uint8]:
        """The frame restored for a task, at its own size."""
        self.model.check_task(task)
        check_frame(frame)
        places = windows(*frame.shape[:2])
        tiles = []
        for place in places:
            output = self.run_raw((f"restore/{task}",), crop_resize(frame, place, self.size)[None])[f"restore_{task}"]
            tiles.append(resize(output[0], place.side, place.side))
        return to_uint8(blend(tiles, places, *frame.shape[:2]))

    def predict(self, frame: NDArray[np.uint8], task: str) -> Answer:
        """The task's answer for a frame of any size."""
        self.model.check_task(task)
        return answer_frame(
            lambda batch: self.run_raw((f"predict/{task}",), batch),
            frame,
            task,
            self.model.config.tasks[task],
            self.size,
        )


def raw_answer(answer: object, function: Function, kind: str) -> RawOutputs:
    """Name a task network's output as the exported graph does."""
    names = output_names(function, kind)
    if kind == "det":
        boxes, logits = cast(tuple[torch.Tensor, torch.Tensor], answer)
        return dict(zip(names, (boxes.numpy(), torch.sigmoid(logits).numpy()), strict=True))
    if kind == "seg":
        return {names[0]: cast(torch.Tensor, answer).permute(0, 2, 3, 1).numpy()}
    return {names[0]: cast(torch.Tensor, answer).numpy()}


def oracle_answer(net: nn.Module, frame: NDArray[np.uint8], task: str, config: TaskConfig, size: int) -> Answer:
    """The answer of a task network alone, without restoration."""

    @torch.inference_mode()
    def run(batch: NDArray[np.uint8]) -> RawOutputs:
        return raw_answer(
            net(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255), Function("predict", task), config.kind
        )

    return answer_frame(run, frame, task, config, size)


def answer_frame(
    run: Callable[[NDArray[np.uint8]], RawOutputs], frame: NDArray[np.uint8], task: str, config: TaskConfig, size: int
) -> Answer:
    """Cut a frame into windows, run each, and join the raw outputs to an answer, as the shim does."""
    check_frame(frame)
    height, width = frame.shape[:2]
    places = windows(height, width)
    outputs = [run(crop_resize(frame, place, size)[None]) for place in places]
    name = f"predict_{task}"
    if config.kind == "cls":
        return classification([o[name] for o in outputs], config.labels)
    if config.kind == "seg":
        return segmentation([o[name] for o in outputs], places, height, width, config.labels)
    pairs = [(o[f"{name}_boxes"], o[f"{name}_scores"]) for o in outputs]
    return detections(pairs, places, size, height, width, config.labels)


def golden_answers(model: TaskTok, functions: Sequence[Function], frames: NDArray[np.uint8]) -> RawOutputs:
    """What the exported functions must give for each frame (n, S, S, 3), one at a time as a device runs them."""
    reference = Reference(model)
    names = [f.name for f in functions]
    runs = [reference.run_raw(names, frames[i : i + 1]) for i in range(len(frames))]
    return {name: np.ascontiguousarray(np.concatenate([r[name] for r in runs])) for name in runs[0]}
