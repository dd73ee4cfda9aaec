"""What an export needs, told before the work: memory by target, and room on the disk."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tasktok_edge.errors import UsageError
from tasktok_edge.export import Target
from tasktok_edge.manifest import Precision
from tasktok_edge.memory import GIB, available

BASE_BYTES = 1 << 30  # Python, torch and a converter; a small model needs no more
# Peak resident bytes for a byte of fp32 weights, as measured on the 64-token official model and rounded up.
FACTOR: dict[Target, dict[Precision, float]] = {
    "openvino": {"fp32": 1.2, "fp16": 1.2, "int8": 4.4},
    "onnx": {"fp32": 1.2, "fp16": 1.6, "int8": 4.4},
    "executorch": {"fp32": 8.0, "fp16": 5.0, "int8": 8.0},
    "coreml": {"fp32": 6.0, "fp16": 6.0, "int8": 6.0},
}
DISK: dict[Precision, float] = {"fp32": 2.2, "fp16": 1.6, "int8": 1.2}  # of fp32 weights: the result, and what is staged


def needed_bytes(target: Target, precision: Precision, weights_bytes: int) -> int:
    """Estimate the peak memory of an export, for fp32 weights of that size."""
    return BASE_BYTES + int(FACTOR[target][precision] * weights_bytes)


def check_fits(
    targets: Sequence[Target], precision: Precision, weights_bytes: int, out: Path, memory: int | None = None
) -> None:
    """Refuse what memory or disk cannot hold; UsageError says what would fit."""
    memory = available() if memory is None else memory
    large = {t: size for t in targets if (size := needed_bytes(t, precision, weights_bytes)) > memory}
    if large:
        told = ", ".join(f"{t} {precision} about {size / GIB:.1f} GiB" for t, size in large.items())
        fits = [
            f"--target {t} --precision {p}"
            for t, factors in FACTOR.items()
            for p in factors
            if needed_bytes(t, p, weights_bytes) <= memory
        ]
        raise UsageError(
            f"not enough memory: {told} needed, {memory / GIB:.1f} GiB available; "
            f"what would fit: {', '.join(fits) or 'nothing here, use a machine with more'}"
        )
    folder = next(p for p in [out, *out.absolute().parents] if p.exists())
    free, wanted = shutil.disk_usage(folder).free, int(len(targets) * DISK[precision] * weights_bytes)
    if wanted > free:
        raise UsageError(f"not enough room for {out}: about {wanted / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free")
