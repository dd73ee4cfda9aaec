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

from tasktok_edge.bundle import Bundle, Target, read_bundle
from tasktok_edge.errors import PackageError, UsageError, unknown_word
from tasktok_edge.frames import PIXELS, Pixels
from tasktok_edge.runtimes.answers import Answer, Classification, Detections, Segmentation
from tasktok_edge.runtimes.engine import Device, Engine, Trial, not_installed
from tasktok_edge.runtimes.selection import Policy, Proof, Report, select
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
            found.append(not_installed(target, error))
    return found


def load(
    path: Path | str | Sequence[Path | str],
    device: str = "auto",
    *,
    engine: str | None = None,
    tasks: Sequence[str] | None = None,
    tokens: int | None = None,
    threads: int | None = None,
    policy: Policy = "latency",
    proof: Proof = "required",
    remember: bool = True,
    pixels: Pixels = "rgb",
    isolate: bool = False,
    time_limit: float = 10.0,
    public_key: Path | str | None = None,
) -> Session:
    """Verify the bundle at `path`, prove the devices on its golden frames, pick one, and return a session on it.

    `path` may name several bundles of one model, one for each engine: the best device of all is picked, or of `engine` alone.
    `device` is auto, cpu, gpu, npu or an engine's own name of a device ("GPU.1"). `tasks` keeps to some of the bundle's
    tasks, which saves time and memory here. `tokens` is a budget that the bundle was built with: each task replaces so many
    tokens, those that matter most to it, and not its own selection. `policy` picks the fastest device, or ("power") the first
    of NPU, GPU, CPU that answers rightly; unless `remember` is false, the choice is kept for the next start
    (runtimes.remembered says where). `proof="measured"` keeps a device that answers wrongly, with its figures in the report:
    it is for programs that judge.

    `pixels` is how frames come: "rgb" or "bgr", (H, W, 3), or the planes of "nv12" or "i420", (H * 3 / 2, W), all uint8.
    `isolate` runs the engine in a process of its own: what crashes there, or takes longer than `time_limit` seconds for a
    frame, is a DeviceError here. With `public_key`, a PEM file, only a bundle that its owner signed is opened.

    Raises BundleError, UsageError, PackageError (the engine is not installed) or DeviceError (no such device, or it
    answers wrongly).
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}: give 1 or more, or None for the engine's own choice")
    if not time_limit > 0:
        raise UsageError(f"time_limit is {time_limit}: give the seconds that one frame may take")
    for word, known, kind in (
        (policy, ("latency", "power"), "policy"),
        (proof, ("required", "measured"), "proof"),
        (pixels, PIXELS, "kind of pixels"),
        (engine, (None, *ENGINES), "engine"),
    ):
        if word not in known:
            raise unknown_word(kind, str(word), [k for k in known if k is not None])
    paths = [path] if isinstance(path, Path | str) else list(path)
    if not paths:
        raise UsageError("give the path of a bundle, or of several")
    opened: list[Bundle] = []
    try:
        opened.extend(read_bundle(one, public_key=public_key).with_budget(tokens) for one in paths)
        chosen, running, report = select(
            _of_engine(opened, engine),
            {b.manifest.target: _engine(b.manifest.target, isolate, time_limit) for b in opened},
            device,
            tasks=(wanted := _tasks(opened, tasks)),
            threads=threads,
            policy=policy,
            proof=proof,
            keep=remember and proof == "required",
        )
        for other in opened:
            if other is not chosen:
                other.close()
        return Session(chosen, running, report, tasks=wanted, proof=proof, pixels=pixels)
    except BaseException:
        for bundle in opened:
            bundle.close()
        raise


def _of_engine(bundles: Sequence[Bundle], wanted: str | None) -> list[Bundle]:
    found = [b for b in bundles if wanted in (None, b.manifest.target)]
    if not found:
        there = ", ".join(dict.fromkeys(b.manifest.target for b in bundles))
        raise UsageError(f"no bundle for {wanted} was given, only for {there}: export one with --target {wanted}")
    return found


def _engine(target: Target, isolate: bool, time_limit: float) -> Engine:
    if not isolate:
        return engine(target)
    from tasktok_edge.runtimes.isolated import Isolated

    return Isolated(engine(target), time_limit)


def _tasks(bundles: Sequence[Bundle], tasks: Sequence[str] | None) -> tuple[str, ...]:
    """What is asked for, which every bundle must have."""
    if tasks is not None and (isinstance(tasks, str) or not tasks):
        raise UsageError('tasks is a list of names, such as ["seg"], or None for all')
    wanted = tuple(dict.fromkeys(tasks)) if tasks is not None else tuple(bundles[0].manifest.tasks)
    for bundle in bundles:
        for task in wanted:
            if task not in bundle.manifest.tasks:
                raise unknown_word("task", task, bundle.manifest.tasks)
    return wanted
