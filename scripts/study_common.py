"""What the studies share: their arguments, scores on held-out frames, and interleaved CPU times."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Generator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tasktok_edge.data.heldout import HeldOut, held_out
from tasktok_edge.export.graph import Function
from tasktok_edge.frames import lay_out
from tasktok_edge.model.tasktok import StaticSwitch, TaskTok
from tasktok_edge.quantize.finetune import Bench, FinetuneRecipe, prepare
from tasktok_edge.reference import raw_answer
from tasktok_edge.runtimes.answers import Answer, answer_of
from tasktok_edge.scores import rate

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import onnxruntime as ort  # noqa: E402
import openvino as ov  # noqa: E402

LEARNING_RATE = 3e-4
BATCH = 20


def arguments(told: str | None) -> argparse.Namespace:
    """What is asked for; one thread from here on."""
    parser = argparse.ArgumentParser(description=told)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", default="scenes-edge")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--frames", type=int, default=500)
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return words


def bench_of(out: Path, cache: Path | None, steps: int, size: int) -> Generator[object, None, Bench]:
    """Frames and recipe of every run of a study; yields progress."""
    bench = yield from prepare(FinetuneRecipe(steps=steps, learning_rate=LEARNING_RATE), out / "runs", size=size, cache=cache)
    return bench


def finished(steps: Generator[object, None, Bench]) -> Bench:
    """Run a generator to its end and give what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


@cache
def frames_of(n: int) -> tuple[HeldOut, ...]:
    """The held-out frames."""
    return tuple(held_out(n))


@torch.inference_mode()
def kept(model: TaskTok, base: TaskTok, n: int = 100) -> float:
    """Share of the correction that `base` makes which `model` makes too, on the tokens that `model` replaces; 1 is all of it.

    Accuracy alone tells little: where it is the same without any refiner, every refiner keeps it.
    """
    held = frames_of(n)
    layout = lay_out(*held[0].degraded.shape[:2], base.config.image_size, resize=base.config.resize)
    squares = np.concatenate([square for h in held for square in layout.cut(h.degraded)])
    z = base.encode(torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255)
    wanted, left, whole = base.refiner(z), 0.0, 0.0
    for task in base.config.tasks:
        rows = model.switch.selected(task)
        left += float((model.replace_selected(z, task) - wanted)[:, rows].square().sum())
        whole += float((z - wanted)[:, rows].square().sum())
    return 1 - left / whole


@torch.inference_mode()
def scored(out: Path, name: str, model: TaskTok, n: int) -> dict[str, float]:
    """Score `model` on `n` held-out frames, in [0, 1] by task, or read what an earlier run of the study found.

    As `validate` does, but in batches whose tokens are made once for all tasks.
    """
    path, config = out / f"{name}-{n}.json", model.config
    if not path.is_file():
        held, answers = frames_of(n), dict[str, list[Answer]]({task: [] for task in config.tasks})
        layout = lay_out(*held[0].degraded.shape[:2], config.image_size, resize=config.resize)
        for start in range(0, n, BATCH):
            squares = np.concatenate([square for h in held[start : start + BATCH] for square in layout.cut(h.degraded)])
            z = model.encode(torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255)
            for task, part in config.tasks.items():
                _, seen = model.shown(model.replace_selected(z, task), task)
                answer = model.task_net(task)(seen)
                raw = raw_answer(answer, Function("predict", task), part)
                for i in range(len(squares)):
                    one = {key: value[i : i + 1] for key, value in raw.items()}
                    side = part.heat_map(config.image_size)
                    answers[task].append(answer_of(part.kind, task, [one], layout, part.labels, heat_map=side))
        path.write_text(json.dumps(dict(rate(name, answers, held).values)))
    return dict(json.loads(path.read_text()))


def cpu_ms(calls: Mapping[str, Callable[[], object]], *, rounds: int, inner: int) -> dict[str, float]:
    """Median CPU time of this process for one call, in milliseconds; the candidates take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 3):
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(inner):
                call()
            if i >= 3:
                times[name].append((time.process_time() - start) * 1e3 / inner)
    return {name: statistics.median(values) for name, values in times.items()}


class Alone(nn.Module):
    """The refiner of one task by itself: tokens in, mixed tokens out."""

    def __init__(self, switch: StaticSwitch) -> None:
        super().__init__()
        self.switch = switch

    def forward(self, z: Tensor) -> Tensor:
        return self.switch(z, self.switch.refiner.shared(z, self.switch.level))


def engines(module: nn.Module, z: Tensor, path: Path) -> dict[str, Callable[[], object]]:
    """Calls of the module in OpenVINO and ONNX Runtime, fp32, one thread."""
    torch.onnx.export(module, (z,), path, dynamo=True, verbose=False, opset_version=20, external_data=False)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    converted = ov.convert_model(torch.export.export(module, (z,)))
    request = ov.Core().compile_model(converted, "CPU", hints).create_infer_request()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, values = session.get_inputs()[0].name, z.numpy()
    with torch.no_grad():
        wanted = module(z).numpy()
    for got in (request.infer([values])[0], session.run(None, {name: values})[0]):
        np.testing.assert_allclose(got, wanted, atol=1e-3)
    return {"openvino": lambda: request.infer([values]), "onnxruntime": lambda: session.run(None, {name: values})}
