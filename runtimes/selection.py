"""Choose a device: list them, prove each on the bundle's golden frames, pick one, and keep the account of it."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Bundle, Parity, golden_values
from tasktok_edge.errors import DeviceError
from tasktok_edge.runtimes.engine import Device, Engine, Running

Policy = Literal["latency", "power"]
Proof = Literal["required", "measured"]
Verdict = Literal["chosen", "proven", "refused", "unusable", "skipped"]

LATENCY_RUNS = 5  # enough to order devices; bench measures
LATENCY_BUDGET_MS = 1000.0  # a model of seconds a frame is ordered by fewer
POWER_ORDER = ("npu", "gpu", "cpu")
PSNR_LIMIT_DB = 200.0  # equal arrays; JSON has no infinity, and float32 ends near 150 dB


@dataclass(frozen=True)
class Trial:
    """One device and how it did. `psnr_db` by function, `latency_ms` of one call of `functions`."""

    device: Device
    verdict: Verdict
    reason: str | None = None
    psnr_db: Mapping[str, float] = field(default_factory=dict)
    functions: tuple[str, ...] = ()
    latency_ms: float | None = None
    compile_s: float | None = None
    effective_precision: str | None = None
    effective_device: str | None = None


@dataclass(frozen=True)
class Report:
    """Which device runs the bundle and why; `notes` are what a person should know beside."""

    bundle: str
    bundle_sha256: str
    engine: str
    engine_version: str
    policy: Policy
    parity: Parity
    notes: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def chosen(self) -> Trial | None:
        return next((t for t in self.trials if t.verdict == "chosen"), None)

    def __str__(self) -> str:
        lines = [f"{self.bundle} on {self.engine} {self.engine_version}", *self.notes]
        for t in self.trials:
            costs = "" if t.latency_ms is None else f", {t.latency_ms:.2f} ms in {t.effective_precision}"
            lines.append(f"{t.device.kind} ({t.device.native}): {t.verdict}{costs}{f', {t.reason}' if t.reason else ''}")
        return "\n".join(lines)


def psnr_db(got: NDArray[Any], want: NDArray[Any], peak: float) -> float:
    """Compare in float64; within ±PSNR_LIMIT_DB, -PSNR_LIMIT_DB for another shape and for NaN.

    >>> round(psnr_db(np.array([0.5, 0.6]), np.array([0.5, 0.5]), peak=1.0), 2)
    23.01
    """
    if got.shape != want.shape or not np.isfinite(got).all():
        return -PSNR_LIMIT_DB
    error = float(np.mean(np.square(got.astype(np.float64) - want)))
    if error == 0.0:
        return PSNR_LIMIT_DB
    return float(np.clip(10.0 * np.log10(peak**2 / error), -PSNR_LIMIT_DB, PSNR_LIMIT_DB))


def peak_of(kind: str, reference: NDArray[Any]) -> float:
    """Give the peak of PSNR: 1 for a restored frame, else the largest magnitude of the reference."""
    return 1.0 if kind == "restore" else float(np.abs(reference).max()) or 1.0


def measure(
    running: Running, bundle: Bundle, functions: tuple[str, ...], golden: Mapping[str, NDArray[Any]]
) -> dict[str, float]:
    """Run the golden frames and give the PSNR in dB of every function: its worst output's."""
    frames, step = golden["frames"], bundle.manifest.golden_step
    runs = [running.run(functions, frames[i : i + 1]) for i in range(len(frames))]
    figures: dict[str, float] = {}
    for spec in bundle.manifest.functions:
        if spec.name not in functions:
            continue
        worst = PSNR_LIMIT_DB
        for o in spec.outputs:
            want, found = golden[o.name], [r[o.name] for r in runs]
            if any(f.shape != o.shape or not np.isfinite(f).all() for f in found):
                worst = -PSNR_LIMIT_DB
            else:
                worst = min(worst, psnr_db(golden_values(np.concatenate(found), step), want, peak_of(spec.kind, want)))
        figures[spec.name] = worst
    return figures


def shortfall(figures: Mapping[str, float], parity: Parity) -> str | None:
    """Say which functions answered wrongly, None if none did."""
    low = parity.shortfalls(figures)
    return f"answers the golden frames wrongly: {', '.join(low)}" if low else None


def task_functions(bundle: Bundle, task: str) -> tuple[str, ...]:
    """Name the functions of a task, restore first."""
    here = {f.name for f in bundle.manifest.functions}
    return tuple(n for n in (f"restore/{task}", f"predict/{task}") if n in here)


def select(
    engine: Engine,
    bundle: Bundle,
    device: str,
    *,
    tasks: Sequence[str],
    threads: int | None,
    policy: Policy,
    proof: Proof,
) -> tuple[Running, Report]:
    """Prove the devices that were asked for and return the best, opened, with the report; DeviceError if none is."""
    found = engine.devices()
    asked = [d for d in found if device in ("auto", d.kind) or device.lower() == d.native.lower()]
    if not any(d.usable for d in asked):
        raise DeviceError(f"there is no {_named(device)} for this {bundle.manifest.target} bundle. {_what_there_is(found)}")
    golden = bundle.golden()
    trials: list[Trial] = []
    opened: dict[int, Running] = {}
    try:
        for d in found:
            if not d.usable:
                trials.append(Trial(d, "unusable", d.reason))
            elif d not in asked:
                trials.append(Trial(d, "skipped", f"device {device!r} was asked for"))
            else:
                trial, running = _try(engine, bundle, d, golden, tasks=tasks, threads=threads)
                if running is not None:
                    opened[len(trials)] = running
                trials.append(trial)
        right = [i for i in opened if trials[i].verdict == "proven"]
        choices = right or (list(opened) if proof == "measured" else [])
        if not choices:
            told = "; ".join(f"{t.device.native} {t.reason}" for t in trials if t.device in asked)
            raise DeviceError(f"no device runs {bundle.source} rightly: {told}")
        best = min(choices, key=lambda i: _rank(trials[i], policy))
        trials[best] = replace(trials[best], verdict="chosen")
        running = opened.pop(best)
    finally:
        for other in opened.values():
            other.close()
    manifest = bundle.manifest
    report = Report(
        bundle=manifest.name,
        bundle_sha256=bundle.sha256,
        engine=manifest.target,
        engine_version=engine.version(),
        policy=policy,
        parity=manifest.parity,
        notes=_notes(manifest.parity),
        trials=tuple(trials),
    )
    return running, report


def _try(
    engine: Engine,
    bundle: Bundle,
    device: Device,
    golden: Mapping[str, NDArray[Any]],
    *,
    tasks: Sequence[str],
    threads: int | None,
) -> tuple[Trial, Running | None]:
    calls = [functions for task in tasks if (functions := task_functions(bundle, task))]
    start = time.perf_counter()
    try:
        running = engine.open(bundle, device, threads=threads, tasks=tasks)
    except DeviceError as error:
        return Trial(device, "unusable", str(error)), None
    try:
        for functions in calls:
            running.run(functions, golden["frames"][:1])
        compile_s = time.perf_counter() - start
        figures: dict[str, float] = {}
        for functions in calls:
            figures |= measure(running, bundle, functions, golden)
        times_ms = []
        for _ in range(LATENCY_RUNS):
            start = time.perf_counter()
            running.run(calls[0], golden["frames"][:1])
            times_ms.append((time.perf_counter() - start) * 1e3)
            if sum(times_ms) > LATENCY_BUDGET_MS:
                break
    except DeviceError as error:
        running.close()
        return Trial(device, "unusable", str(error)), None
    except BaseException:
        running.close()
        raise
    wrong = shortfall(figures, bundle.manifest.parity)
    trial = Trial(
        device,
        "refused" if wrong else "proven",
        wrong,
        figures,
        calls[0],
        statistics.median(times_ms),
        compile_s,
        running.effective_precision,
        running.effective_device,
    )
    return trial, running


def _rank(trial: Trial, policy: Policy) -> tuple[float, float]:
    order = POWER_ORDER.index(trial.device.kind) if policy == "power" else 0
    return order, trial.latency_ms if trial.latency_ms is not None else float("inf")


def _notes(parity: Parity) -> tuple[str, ...]:
    if parity.status == "passed":
        return ()
    why = f": {parity.reason}" if parity.reason else ""
    said = "failed its parity check" if parity.status == "failed" else "was never checked against its model"
    return (f"unverified: the bundle {said} at export{why}",)


def _named(device: str) -> str:
    return "usable device" if device == "auto" else f"device {device!r}"


def _what_there_is(found: Sequence[Device]) -> str:
    usable = [f"{d.kind} ({d.native})" for d in found if d.usable]
    without = [f"{d.kind} ({d.native}): {d.reason}" for d in found if not d.usable]
    return f"There is: {', '.join(usable) or 'none'}" + (f". Not usable: {'; '.join(without)}" if without else "")
