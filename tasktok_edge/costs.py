"""What else it costs: memory and size of a bundle, energy where the machine counts it, and how fast it could be at all."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasktok_edge.errors import DeviceError

SIDE = 1024  # of the matrices whose product is the machine's measured peak
ROUNDS = 7
ENERGY_S = 1.0  # a counter that rises a thousand times a second needs no more
RAPL = Path("/sys/class/powercap")
PROBE = """
import json, resource, sys
from pathlib import Path
import numpy as np
from tasktok_edge.runtimes import load
with load(sys.argv[1], sys.argv[2], threads=int(sys.argv[3]), proof="measured", remember=False) as session:
    session.restore(np.zeros((session.size, session.size, 3), np.uint8), session.tasks[0])
status = Path("/proc/self/status")  # on Linux getrusage also counts what the parent had before exec
if status.exists():
    kept = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    print(json.dumps(int(kept[0][1]) * 1024))
else:
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))  # bytes on macOS
"""


@dataclass(frozen=True)
class Cost:
    """Of one bundle. `macs` by function; `energy_j` for one answer of its first task, None where nothing counts it."""

    bundle: str
    bytes: int
    peak_memory_bytes: int  # of a process that loads it, proves it and answers, Python and the engine with it
    macs: dict[str, int]
    energy_j: float | None


def peak_memory(bundle: Path, device: str, *, threads: int) -> int:
    """The highest resident size of a process that loads a bundle and answers once; DeviceError where that fails."""
    words = [sys.executable, "-c", PROBE, str(bundle), device, str(threads)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(f"{bundle} could not be loaded by a process of its own: {done.stderr.strip().splitlines()[-1]}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def energy_j(run: Callable[[], object], *, folder: Path = RAPL) -> float | None:
    """Joules of one call, by the counter of the whole processor (Intel's and AMD's RAPL), what else runs included."""
    counters = [file for file in sorted(folder.glob("*:0/energy_uj")) if _readable(file)]
    if not counters:
        return None
    calls, start, before = 0, time.perf_counter(), _read(counters[0])
    while time.perf_counter() - start < ENERGY_S:
        run()
        calls += 1
    used = _read(counters[0]) - before
    return None if used < 0 else used / 1e6 / calls  # it starts again at nought now and then


def _readable(file: Path) -> bool:
    try:
        return _read(file) >= 0
    except (OSError, ValueError):  # only root may, since it tells of keys
        return False


def _read(file: Path) -> int:
    return int(file.read_text())


def peak_macs(precision: str, *, threads: int) -> float | None:
    """Multiply-adds a second of a square product in fp32 or int8, the best of a few: what a kernel can reach here at all.

    fp32 by torch, int8 by ONNX Runtime's MatMulInteger, uint8 times int8 as layers are; None for other precisions.
    """
    measured = {"fp32": _fp32, "int8": _int8}
    if precision not in measured:
        return None
    run = measured[precision](threads)
    run()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return SIDE**3 / min(times)


def _fp32(threads: int) -> Callable[[], object]:
    import torch

    torch.set_num_threads(threads)
    a, b = (torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    return lambda: a @ b


def _int8(threads: int) -> Callable[[], object]:
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (SIDE, SIDE), np.uint8), rng.integers(-64, 64, (SIDE, SIDE), np.int8)
    described = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "peak",
        [described("a", TensorProto.UINT8, [SIDE, SIDE])],
        [described("c", TensorProto.INT32, [SIDE, SIDE])],
        [numpy_helper.from_array(b, "b")],
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})
