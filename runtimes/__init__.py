"""Run a bundle on the best hardware that is here, and know which and why.

    from tasktok_edge.runtimes import load

    with load("bundle") as session:
        result = session(frame, task="seg")     # frame: (H, W, 3) uint8 RGB, any size
        print(session.report)                   # which engine and device, what else was tried, what each cost

Importing this is light: no torch, no engine. An engine is imported when a bundle needs it.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

from tasktok_edge.bundle import Target, read_bundle
from tasktok_edge.errors import PackageError, UsageError, unknown_word
from tasktok_edge.runtimes.answers import Answer, Classification, Detections, Segmentation
from tasktok_edge.runtimes.engine import Device, Engine
from tasktok_edge.runtimes.selection import Policy, Proof, Report, Trial, select
from tasktok_edge.runtimes.session import Result, Session

__all__ = [
    "ENGINES",
    "Answer",
    "Classification",
    "Detections",
    "Device",
    "Report",
    "Result",
    "Segmentation",
    "Session",
    "Trial",
    "devices",
    "engine",
    "load",
]

ENGINES: dict[Target, str] = {
    "executorch": "tasktok_edge.runtimes.executorch",
    "coreml": "tasktok_edge.runtimes.coreml",
    "openvino": "tasktok_edge.runtimes.openvino",
    "onnx": "tasktok_edge.runtimes.onnx",
}


def engine(target: Target) -> Engine:
    """Import the module that runs `target`; the engine itself is imported when it is first used."""
    return cast(Engine, import_module(ENGINES[target]))


def devices() -> list[Device]:
    """List every engine's devices on this machine, usable or not, each with the reason."""
    found: list[Device] = []
    for target in ENGINES:
        try:
            found += engine(target).devices()
        except PackageError as error:
            found.append(Device(target, "cpu", "-", "not installed", usable=False, reason=str(error)))
    return found


def load(
    path: Path | str,
    device: str = "auto",
    *,
    tasks: Sequence[str] | None = None,
    threads: int | None = None,
    policy: Policy = "latency",
    proof: Proof = "required",
) -> Session:
    """Verify the bundle at `path`, prove the devices on its golden frames, pick one, and return a session on it.

    `device` is auto, cpu, gpu, npu or an engine's own name of a device ("GPU.1"). `tasks` keeps to some of the bundle's
    tasks, which saves time and memory here. `policy` picks the fastest device, or ("power") the first of NPU, GPU, CPU
    that answers rightly. `proof="measured"` keeps a device that answers wrongly, with its figures in the report: it is
    for programs that judge bundles.

    Raises BundleError, UsageError, PackageError (the engine is not installed) or DeviceError (no such device, or it
    answers wrongly).
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}: give 1 or more, or None for the engine's own choice")
    for word, known, kind in (
        (policy, ("latency", "power"), "policy"),
        (proof, ("required", "measured"), "proof"),
    ):
        if word not in known:
            raise unknown_word(kind, word, known)
    bundle = read_bundle(path)
    try:
        known_tasks = tuple(bundle.manifest.tasks)
        if tasks is not None and (isinstance(tasks, str) or not tasks):
            raise UsageError('tasks is a list of names, such as ["seg"], or None for all')
        for task in tasks or ():
            if task not in known_tasks:
                raise unknown_word("task", task, known_tasks)
        wanted = known_tasks if tasks is None else tuple(dict.fromkeys(tasks))
        running, report = select(
            engine(bundle.manifest.target), bundle, device, tasks=wanted, threads=threads, policy=policy, proof=proof
        )
        return Session(bundle, running, report, tasks=wanted, proof=proof)
    except BaseException:
        bundle.close()
        raise
