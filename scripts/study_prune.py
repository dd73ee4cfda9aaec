"""How accurate a pruned refiner is, where its zeros are in every artifact, and what they give: bytes to download, no time.

python scripts/study_prune.py OUT [--checkpoint scenes-edge] [--cache FRAMES] [--steps 300] [--frames 500]
One thread: OMP_NUM_THREADS=1.
"""

import json
from copy import deepcopy
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from study_common import Alone, arguments, bench_of, cpu_ms, engines, finished, kept, scored

from tasktok_edge.export import Target
from tasktok_edge.manifest import Precision
from tasktok_edge.model.checkpoint import load_checkpoint, save_checkpoint
from tasktok_edge.model.config import ViTConfig
from tasktok_edge.model.refiner import Refiner
from tasktok_edge.model.tasktok import StaticSwitch
from tasktok_edge.parity import export_verified
from tasktok_edge.quantize.prune import prune, sparsity_of
from tasktok_edge.quantize.ptq import calibration_frames, to_int8
from tasktok_edge.zeros import bundle_zeros

SPARSITIES = (0.5, 0.7, 0.9)
BUNDLES: list[tuple[Target, Precision, tuple[float, ...]]] = [
    ("openvino", "fp32", (0.0, 0.5, 0.7, 0.9)),
    ("onnx", "fp32", (0.0, 0.5, 0.7, 0.9)),
    ("openvino", "fp16", (0.0, 0.7)),
    ("openvino", "int8", (0.0, 0.7, 0.9)),
    ("onnx", "int8", (0.0, 0.7, 0.9)),
    ("executorch", "fp32", (0.0, 0.7)),
    ("coreml", "fp32", (0.0, 0.7)),
]


def checkpoints(checkpoint: str, out: Path, cache: Path | None, steps: int) -> None:
    """Prune the refiner of a model to every sparsity; `out/<percent>`, 0 is the model as it is."""
    bench = None
    for sparsity in (0.0, *SPARSITIES):
        folder = out / f"{100 * sparsity:.0f}"
        if (folder / "config.json").is_file():
            continue
        model, teacher = load_checkpoint(checkpoint).model, load_checkpoint(checkpoint).model
        if sparsity:
            bench = bench or finished(bench_of(out, cache, steps, model.config.image_size))
            for at in prune(bench, model, teacher, name=f"prune-{sparsity}", sparsity=sparsity):
                if at.step % 50 == 0:
                    print(sparsity, at.step, {key: round(value, 4) for key, value in at.losses.items()}, flush=True)
        save_checkpoint(folder, model, facts={"sparsity": sparsity, "steps": steps})


def latencies(out: Path) -> dict[str, dict[str, float]]:
    """CPU milliseconds of the refiner alone in OpenVINO, fp32: ours, and one of the official shape whose weights are drawn."""
    found = {}
    ours = {f"{p}": load_checkpoint(out / p).model.refiner for p in ("0", "50", "70", "90")}
    torch.manual_seed(0)
    large = {"0": Refiner(ViTConfig(width=512, layers=6, heads=8), tokens=64, channels=64)}
    for percent in ("50", "70", "90"):
        large[percent] = deepcopy(large["0"])
        for p in large[percent].parameters():
            if p.ndim == 2:
                p.data[torch.rand_like(p) < float(percent) / 100] = 0
    for shape, refiners, inner in (("scenes-edge", ours, 20), ("tasktok-64", large, 2)):
        calls = {}
        for percent, refiner in refiners.items():
            tokens, channels = refiner.latent_positional_embedding.shape[0], refiner.conv_in.in_features
            module = Alone(StaticSwitch(refiner.eval().requires_grad_(False), range(0, tokens, 2), tokens=tokens)).eval()
            calls[percent] = engines(module, torch.randn(1, tokens, channels), out / "refiner.onnx")["openvino"]
        found[shape] = cpu_ms(calls, rounds=60, inner=inner)
    return found


if __name__ == "__main__":
    words = arguments(__doc__)
    checkpoints(words.checkpoint, words.out, words.cache, words.steps)
    table, found = Table("zeros", "found", "cls", "seg", "det", "kept"), {}
    for percent in ("0", "50", "70", "90"):
        model = load_checkpoint(words.out / percent).model
        found[percent] = scored(words.out, f"prune-{percent}", model, words.frames)
        found[percent] |= {"kept": kept(model, load_checkpoint(words.checkpoint).model)}
        table.add_row(
            percent, f"{100 * sparsity_of(model.refiner):.2f} %", *(f"{100 * v:.1f}" for v in found[percent].values())
        )
        print(percent, found[percent], flush=True)
    Console(width=150).print(table)
    times = latencies(words.out)
    print(times, flush=True)
    table, rows = Table("bundle of cls", "zeros asked for", "matrices found", "zeros in them", "bytes", "zipped"), []
    for target, precision, shares in BUNDLES:
        for share in shares:
            checkpoint, path = load_checkpoint(words.out / f"{100 * share:.0f}"), words.out / f"{target}-{precision}-{share}"
            if precision == "int8":
                made = to_int8(checkpoint.model, calibration_frames(checkpoint.model))
                save_checkpoint(words.out / f"int8-{share}", made, facts={})
                checkpoint = load_checkpoint(words.out / f"int8-{share}")
            if not (path / "manifest.json").is_file():
                export_verified(checkpoint, target, path, tasks=("cls",), precision=precision)
            z = bundle_zeros(path, checkpoint.model)
            told = [
                f"{target} {precision}",
                f"{share}",
                f"{z.found} of {len(z.matrices)}",
                f"{100 * z.share:.1f} %",
                z.bytes,
                z.zipped_bytes,
            ]
            rows.append(told)
            print(told, flush=True)
            table.add_row(*map(str, told))
    Console(width=150).print(table)
    (words.out / "prune.json").write_text(json.dumps({"accuracy": found, "cpu_ms": times, "bundles": rows}, indent=1))
