"""What int8 gives each part of an official model: bytes, CPU time, and how far its output is from fp32's.

python scripts/study_official.py OUT --checkpoint DIR [--task seg] [--rounds 7]
DIR holds official files, or random ones in their layout: python -m tests.official_files bl64 DIR. OUT takes 5 GB, memory 8 GB.
Pre-restorer, encoder, refiner with the task's tokens and decoder are exported each by itself, as they are in a bundle, and run
on what the fp32 model feeds them. One thread: OMP_NUM_THREADS=1.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from study_common import Alone, cpu_ms, ort, ov
from torch import Tensor, nn

from tasktok_edge.cli import hush_converters
from tasktok_edge.data.heldout import held_out
from tasktok_edge.export.int8 import in_codes
from tasktok_edge.export.onnx import OPSET
from tasktok_edge.export.rewrite import Rewritten
from tasktok_edge.export.writer import FLOOR_DB
from tasktok_edge.frames import lay_out
from tasktok_edge.machine import machine
from tasktok_edge.macs import count
from tasktok_edge.model.checkpoint import load_checkpoint
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.quantize.ptq import at_precision
from tasktok_edge.runtimes.selection import peak_of, psnr_db

PARTS = ("pre-restorer", "encoder", "refiner", "decoder")
PRECISIONS = ("fp32", "int8")
WAYS = ("in", "out")
ENGINES = {"openvino": "OpenVINO", "onnx": "ONNX Runtime"}
IMAGES = ("pre-restorer", "decoder")  # parts whose output is a picture, peak 1


class Decoding(nn.Module):
    """Tokens to the image, as the graph has it."""

    def __init__(self, graph: Rewritten) -> None:
        super().__init__()
        self.decoder, self.grow = graph.decoder, graph.grow

    def forward(self, tokens: Tensor) -> Tensor:
        return self.grow(self.decoder.image(self.decoder.features(tokens)))


def parts_of(model: TaskTok, task: str) -> dict[str, nn.Module]:
    """The parts as the graph of `restore/<task>` has them, in its order: each takes what the one before gives."""
    graph, switch = Rewritten(model), model.static_switch(task)
    found = (
        graph.prerestorer,
        nn.Sequential(graph.shrink, graph.encoder),
        Alone(switch),
        Decoding(graph),
    )
    return {name: module.eval() for name, module in zip(PARTS, found, strict=True)}


@torch.inference_mode()
def flow(model: TaskTok, task: str) -> dict[str, tuple[Tensor, Tensor]]:
    """What each part takes and gives for one held-out degraded frame, in fp32 PyTorch."""
    frame = next(iter(held_out(1))).degraded
    layout = lay_out(*frame.shape[:2], model.config.image_size, resize=model.config.resize)
    x = torch.from_numpy(layout.cut(frame)[0]).permute(0, 3, 1, 2).float() / 255
    found = {}
    for name, module in parts_of(model, task).items():
        taken, x = x, module(x)
        found[name] = taken, x
    return found


def export(folder: Path, module: nn.Module, x: Tensor, *, int8: bool) -> None:
    """Write `openvino/model.xml` and `onnx/model.onnx` into `folder`, with their weights."""
    for engine in ENGINES:
        (folder / engine).mkdir(parents=True, exist_ok=True)
    exported = torch.export.export(in_codes(module, "fake") if int8 else module, (x,))
    ov.save_model(ov.convert_model(exported), folder / "openvino" / "model.xml", compress_to_fp16=False)
    coded = in_codes(module, "uint8") if int8 else module
    path = folder / "onnx" / "model.onnx"
    torch.onnx.export(coded, (x,), path, dynamo=True, verbose=False, opset_version=OPSET, external_data=True)


def write_all(out: Path, checkpoint: str, task: str) -> dict[str, float]:
    """Export every part at both precisions, and what it takes and gives; multiply-adds by part."""
    model = load_checkpoint(checkpoint).model
    flowing = flow(model, task)
    np.savez(
        out / "flow.npz",
        **{f"{name} {way}": t.numpy() for name, both in flowing.items() for way, t in zip(WAYS, both, strict=True)},
    )
    for precision in PRECISIONS:
        parts = parts_of(model if precision == "fp32" else at_precision(model, "int8", print), task)
        for name, (x, _) in flowing.items():
            export(out / precision / name, parts[name], x, int8=precision == "int8")
            print(f"exported {name}, {precision}", flush=True)
    return {cost.name: cost.exported for cost in count(model.config, {task: model.switch.selected(task)}) if cost.name in PARTS}


def openvino_call(path: Path, x: NDArray[np.float32], **hints: str) -> tuple[Callable[[], NDArray[Any]], str]:
    """A call of the part, and the precision that the device took for what is not int8."""
    options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", **hints}
    compiled = ov.Core().compile_model(path / "openvino" / "model.xml", "CPU", options)
    request = compiled.create_infer_request()
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return lambda: request.infer([x])[0], taken


def onnx_call(path: Path, x: NDArray[np.float32]) -> Callable[[], NDArray[Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path / "onnx" / "model.onnx", options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)[0]


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def measure(out: Path, part: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Bytes, CPU milliseconds and PSNR of a part, by engine."""
    flowing = np.load(out / "flow.npz")
    x, wanted = (flowing[f"{part} {way}"] for way in WAYS)
    paths = {precision: out / precision / part for precision in PRECISIONS}
    calls = {f"onnx {precision}": onnx_call(path, x) for precision, path in paths.items()}
    for precision, path in paths.items():
        calls[f"openvino {precision}"], _ = openvino_call(path, x, INFERENCE_PRECISION_HINT="f32")
    calls["openvino default"], taken = openvino_call(paths["fp32"], x)
    outputs = {name: call().copy() for name, call in calls.items()}
    db = partial(psnr_db, want=wanted, peak=peak_of("restore" if part in IMAGES else "tokens", wanted))
    assert min(db(outputs[f"{engine} fp32"]) for engine in ENGINES) > FLOOR_DB["fp32"]
    ms = cpu_ms(calls, rounds=rounds, inner=10 if part == "refiner" else 1)
    found: dict[str, dict[str, Any]] = {}
    for engine in ENGINES:
        found[engine] = {"bytes": {p: size(path / engine) for p, path in paths.items()}}
        found[engine]["cpu_ms"] = {name.split()[1]: value for name, value in ms.items() if name.startswith(f"{engine} ")}
        found[engine]["psnr_db"] = {
            name.split()[1]: db(output) for name, output in outputs.items() if name.startswith(f"{engine} ")
        }
    found["openvino"]["default"] = taken
    return found


def rows(found: dict[str, Any]) -> Table:
    """The figures as a table, the sum of all parts last."""
    table = Table(
        "part", "GMACs", "engine", "MB, fp32 / int8", "ms, fp32 / int8", "ms, default", "int8 to fp32", box=box.MARKDOWN
    )
    for engine, called in ENGINES.items():
        each = [found["parts"][part][engine] for part in PARTS]
        whole = {key: {n: sum(e[key][n] for e in each) for n in each[0][key]} for key in ("bytes", "cpu_ms")}
        macs = [found["macs"][part] for part in PARTS]
        for part, n, case in zip((*PARTS, "all parts"), (*macs, sum(macs)), (*each, whole), strict=True):
            mb, ms = ([case[key][p] / unit for p in PRECISIONS] for key, unit in (("bytes", 1e6), ("cpu_ms", 1.0)))
            default = case["cpu_ms"].get("default")
            table.add_row(
                part,
                f"{n / 1e9:.3f}",
                called,
                f"{mb[0]:.1f} / {mb[1]:.1f}, {mb[1] / mb[0]:.2f}",
                f"{ms[0]:.0f} / {ms[1]:.0f}, {ms[1] / ms[0]:.2f}",
                f"{default:.0f} ({found['parts'][PARTS[0]][engine]['default']}), {ms[1] / default:.2f}" if default else "",
                f"{case['psnr_db']['int8']:.1f} dB" if "psnr_db" in case else "",
            )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--task", default="seg")
    parser.add_argument("--rounds", type=int, default=7)
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    hush_converters()
    work = words.out / "macs.json"
    if not work.is_file():  # written last: what is there is whole
        work.write_text(json.dumps(write_all(words.out, words.checkpoint, words.task)))
    parts = {}
    for part in PARTS:
        parts[part] = measure(words.out, part, words.rounds)
        print(f"measured {part}", flush=True)
    found = {"machine": machine(1), "macs": json.loads(work.read_text()), "parts": parts}
    (words.out / "official.json").write_text(json.dumps(found, indent=1))
    print(found["machine"])
    Console(width=180).print(rows(found))
