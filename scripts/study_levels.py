"""How accurate and how fast the refiner is at each level and token budget.

python scripts/study_levels.py OUT [--checkpoint scenes-edge] [--cache FRAMES] [--steps 300] [--frames 500]
One thread: OMP_NUM_THREADS=1.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from study_common import Alone, arguments, bench_of, cpu_ms, engines, finished, kept, scored
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tasktok_edge.model.checkpoint import load_checkpoint
from tasktok_edge.model.config import Level, ViTConfig
from tasktok_edge.model.refiner import Refiner
from tasktok_edge.model.tasktok import StaticSwitch
from tasktok_edge.quantize.finetune import finetune
from tasktok_edge.quantize.levels import with_level

# Levels and shares of tokens; None: as trained, 11 or 12 of 32. "exact" is tuned too: what tuning gives is not a level's merit.
TUNED: list[tuple[Level, float | None]] = [
    ("exact", None),
    ("context", 0.5),
    ("selected", 0.5),
    ("context", 0.25),
    ("selected", 0.25),
]
TIMED: list[tuple[Level, float]] = [("exact", 1.0), ("exact", 0.5), ("exact", 0.25)]
TIMED += [("context", 0.5), ("context", 0.25), ("selected", 0.5), ("selected", 0.25)]
SHAPES = {  # name: tokens, their channels, the refiner's config
    "scenes-edge as shipped": (32, 64, load_checkpoint("scenes-edge").model.config.refiner),
    "scenes-edge before slimming": (32, 64, ViTConfig(width=128, layers=2, heads=4)),
    "tasktok-64": (64, 64, ViTConfig(width=512, layers=6, heads=8)),
}


def accuracies(checkpoint: str, out: Path, cache: Path | None, steps: int, frames: int) -> dict[str, dict[str, float]]:
    """Scores and the share of the correction that is kept: as it is, without a refiner, and of each case."""
    base = load_checkpoint(checkpoint).model
    found = {"as it is": scored(out, "as-it-is", base, frames) | {"kept": 1.0}}
    idle = with_level(base, "exact")
    for logits in idle.switch.logits.values():
        logits.fill_(-1.0)
    found["no token refined"] = scored(out, "none-refined", idle, frames) | {"kept": 0.0}
    every = with_level(base, "exact", 1.0)
    found["exact 1.0, not tuned"] = scored(out, "exact-1.0-untuned", every, frames) | {"kept": 1.0}
    bench = finished(bench_of(out, cache, steps, base.config.image_size))
    for level, share in TUNED:
        name, model = f"{level}-{share}", with_level(base, level, share)
        before = kept(model, base)
        for at in finetune(bench, model, load_checkpoint(checkpoint).model, name=name, scope="refiner"):
            if at.step % 50 == 0:
                print(name, at.step, {key: round(value, 4) for key, value in at.losses.items()}, flush=True)
        found[name] = scored(out, name, model, frames) | {"kept before": before, "kept": kept(model, base)}
        print(name, found[name], flush=True)
    return found


def latencies(out: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Multiply-adds and CPU milliseconds of the refiner alone, by shape and case."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for shape, (tokens, channels, config) in SHAPES.items():
        torch.manual_seed(0)
        refiner = Refiner(config, tokens=tokens, channels=channels).eval().requires_grad_(False)
        nn.init.normal_(refiner.conv_out.weight, std=0.05)
        calls: dict[str, dict[str, Callable[[], object]]] = {"openvino": {}, "onnxruntime": {}}
        found[shape] = {}
        for level, share in TIMED:
            rows = sorted(torch.randperm(tokens)[: round(share * tokens)].tolist())
            module = Alone(StaticSwitch(refiner, rows, tokens=tokens, level=level)).eval()
            z, counter = torch.randn(1, tokens, channels), FlopCounterMode(display=False)
            with counter, torch.no_grad():
                module(z)
            found[shape][f"{level}-{share}"] = {"macs": counter.get_total_flops() / 2}
            for engine, call in engines(module, z, out / "refiner.onnx").items():
                calls[engine][f"{level}-{share}"] = call
        for engine, candidates in calls.items():
            for name, ms in cpu_ms(candidates, rounds=60, inner=2 if tokens == 64 else 20).items():
                found[shape][name][engine] = ms
    return found


if __name__ == "__main__":
    words = arguments(__doc__)
    if not (words.out / "latency.json").is_file():
        (words.out / "latency.json").write_text(json.dumps(latencies(words.out), indent=1))
    times = json.loads((words.out / "latency.json").read_text())
    for shape, cases in times.items():
        table = Table(
            "level and share",
            "M multiply-adds",
            *(f"{e}: CPU ms, time / work" for e in ("openvino", "onnxruntime")),
            title=shape,
        )
        first = cases["exact-1.0"]
        for name, case in cases.items():
            work = case["macs"] / first["macs"]
            told = [f"{case[e]:.3f}  {case[e] / first[e]:.2f} / {work:.2f}" for e in ("openvino", "onnxruntime")]
            table.add_row(name, f"{case['macs'] / 1e6:.1f}", *told)
        Console(width=150).print(table)
    scores = accuracies(words.checkpoint, words.out, words.cache, words.steps, words.frames)
    (words.out / "accuracy.json").write_text(json.dumps(scores, indent=1))
    columns = ("cls", "seg", "det", "kept before", "kept")
    table = Table("model", *columns)
    for name, values in scores.items():
        table.add_row(name, *(f"{100 * values[c]:.1f}" if c in values else "" for c in columns))
    Console(width=150).print(table)
