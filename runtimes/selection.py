"""Choose a device: list them, prove each on the bundle's golden frames, pick one, and keep the account of it."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Bundle, Parity, Target, golden_values
from tasktok_edge.errors import DeviceError, PackageError
from tasktok_edge.runtimes.engine import Device, Engine, Running, Trial, not_installed
from tasktok_edge.runtimes.remembered import forget, key_of, recall, remember

Policy = Literal["latency", "power"]
Proof = Literal["required", "measured"]

LATENCY_RUNS = 5  # enough to order devices; bench measures
LATENCY_BUDGET_MS = 1000.0  # a model of seconds a frame is ordered by fewer
POWER_ORDER = ("npu", "gpu", "cpu")
PSNR_LIMIT_DB = 200.0  # equal arrays; JSON has no infinity, and float32 ends near 150 dB


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
    remembered: bool = False  # from an earlier start; figures and times are of then

    @property
    def chosen(self) -> Trial | None:
        return next((t for t in self.trials if t.verdict == "chosen"), None)

    def pick(self, policy: Policy) -> Trial | None:
        """What `device="auto"` takes under a policy of what was tried; None where that is nothing."""
        right = [t for t in self.trials if t.verdict in ("chosen", "proven") and not t.device.by_name_alone]
        return min(right, key=lambda t: _rank(t, policy), default=None)

    def __str__(self) -> str:
        lines = [f"{self.bundle} on {self.engine} {self.engine_version}", *self.notes]
        for t in self.trials:
            costs = "" if t.latency_ms is None else f", {t.latency_ms:.2f} ms in {t.effective_precision}"
            whose = "" if t.bundle in ("", self.bundle) else f"{t.bundle}, "
            lines.append(f"{whose}{t.device.kind} ({t.device.native}): {t.verdict}{costs}{f', {t.reason}' if t.reason else ''}")
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
    return tuple(
        f.name for kind in ("restore", "predict") for f in bundle.manifest.functions if (f.kind, f.task) == (kind, task)
    )


def select(
    bundles: Sequence[Bundle],
    engines: Mapping[Target, Engine],
    device: str,
    *,
    tasks: Sequence[str],
    threads: int | None,
    policy: Policy,
    proof: Proof,
    keep: bool,
) -> tuple[Bundle, Running, Report]:
    """Prove the devices that were asked for and return the best, opened, with its bundle and the report.

    With `keep`, a choice that was made before is made again, once the device has answered the first task's golden frames.
    Raises DeviceError where no device answers rightly, PackageError where no engine is installed.
    """
    found = _candidates(bundles, engines)
    asked = [c for c in found if _is_asked(c.device, device)]
    if not any(c.device.usable for c in asked):
        kinds = " or ".join(dict.fromkeys(b.manifest.target for b in bundles))
        there = _what_there_is([c.device for c in found])
        raise DeviceError(f"there is no {_named(device)} for this {kinds} bundle. {there}")
    key = key_of(_facts(found, engines, device, tasks=tasks, threads=threads, policy=policy))
    known = recall(key) if keep else None
    if known is not None:
        again = _again(found, known, tasks=tasks, threads=threads)
        if again is not None:
            candidate, running, trials = again
            return candidate.bundle, running, _report(candidate, policy, trials, remembered=True)
        forget(key)
    candidate, running, trials = _tried(found, asked, device, tasks=tasks, threads=threads, policy=policy, proof=proof)
    if keep:
        remember(key, trials)
    return candidate.bundle, running, _report(candidate, policy, trials, remembered=False)


def _is_asked(device: Device, word: str) -> bool:
    return word.lower() == device.native.lower() or (word in ("auto", device.kind) and not device.by_name_alone)


@dataclass(frozen=True)
class _Candidate:
    """A device for one of the bundles."""

    bundle: Bundle
    engine: Engine | None  # None: it is not installed
    device: Device


def _candidates(bundles: Sequence[Bundle], engines: Mapping[Target, Engine]) -> list[_Candidate]:
    found, missing = [], None
    for bundle in bundles:
        target = bundle.manifest.target
        try:
            found += [_Candidate(bundle, engines[target], d) for d in engines[target].devices()]
        except PackageError as error:
            missing = missing or error
            found.append(_Candidate(bundle, None, not_installed(target, error)))
    if missing is not None and all(c.engine is None for c in found):
        raise missing
    return found


def _facts(
    found: Sequence[_Candidate],
    engines: Mapping[Target, Engine],
    device: str,
    *,
    tasks: Sequence[str],
    threads: int | None,
    policy: Policy,
) -> dict[str, Any]:
    """All that a decision depends on."""
    there = [
        [
            c.bundle.sha256,
            c.bundle.manifest.functions[0].tokens,
            c.engine.version() if c.engine else None,
            *vars(c.device).values(),
        ]
        for c in found
    ]
    isolated = [type(engine).__name__ for engine in engines.values()]
    return {"there": there, "asked": device, "tasks": list(tasks), "threads": threads, "policy": policy, "how": isolated}


def _again(
    found: Sequence[_Candidate], known: list[Trial], *, tasks: Sequence[str], threads: int | None
) -> tuple[_Candidate, Running, list[Trial]] | None:
    """Open what was chosen before, and prove its first call; None where it is no longer right."""
    if [c.device for c in found] != [t.device for t in known]:
        return None  # the key is of these candidates in this order: the file was written by someone else
    at = next(i for i, t in enumerate(known) if t.verdict == "chosen")
    candidate = found[at]
    trial, running = _try(candidate, candidate.bundle.golden(), tasks=tasks, threads=threads, again=True)
    if running is None:
        return None
    if trial.verdict != "proven":
        running.close()
        return None
    figures = {**known[at].psnr_db, **trial.psnr_db}
    trials = list(known)
    trials[at] = replace(trial, verdict="chosen", psnr_db=figures, latency_ms=known[at].latency_ms)
    return candidate, running, trials


def _tried(
    found: Sequence[_Candidate],
    asked: Sequence[_Candidate],
    device: str,
    *,
    tasks: Sequence[str],
    threads: int | None,
    policy: Policy,
    proof: Proof,
) -> tuple[_Candidate, Running, list[Trial]]:
    trials: list[Trial] = []
    opened: dict[int, Running] = {}
    golden = {c.bundle.sha256: c.bundle.golden() for c in asked}
    try:
        for c in found:
            name = c.bundle.manifest.name
            if not c.device.usable:
                trials.append(Trial(c.device, "unusable", c.device.reason, bundle=name))
            elif c not in asked:
                why = "used only where it is named" if c.device.by_name_alone else f"device {device!r} was asked for"
                trials.append(Trial(c.device, "skipped", why, bundle=name))
            else:
                trial, running = _try(c, golden[c.bundle.sha256], tasks=tasks, threads=threads)
                if running is not None:
                    opened[len(trials)] = running
                trials.append(trial)
        right = [i for i in opened if trials[i].verdict == "proven"]
        choices = right or (list(opened) if proof == "measured" else [])
        if not choices:
            told = "; ".join(f"{t.device.native} {t.reason}" for t, c in zip(trials, found, strict=True) if c in asked)
            sources = ", ".join(str(source) for source in dict.fromkeys(c.bundle.source for c in asked))
            raise DeviceError(f"no device runs {sources} rightly: {told}")
        best = min(choices, key=lambda i: _rank(trials[i], policy))
        trials[best] = replace(trials[best], verdict="chosen")
        running = opened.pop(best)
    finally:
        for other in opened.values():
            other.close()
    return found[best], running, trials


def _report(candidate: _Candidate, policy: Policy, trials: Sequence[Trial], *, remembered: bool) -> Report:
    bundle = candidate.bundle
    assert candidate.engine is not None
    notes = _notes(bundle.manifest.parity)
    if remembered:
        notes += ("remembered from an earlier start: devices were not tried again, calls are proven when they are first made",)
    return Report(
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        engine=bundle.manifest.target,
        engine_version=candidate.engine.version(),
        policy=policy,
        parity=bundle.manifest.parity,
        notes=notes,
        trials=tuple(trials),
        remembered=remembered,
    )


def _try(
    candidate: _Candidate,
    golden: Mapping[str, NDArray[Any]],
    *,
    tasks: Sequence[str],
    threads: int | None,
    again: bool = False,
) -> tuple[Trial, Running | None]:
    bundle, device, name = candidate.bundle, candidate.device, candidate.bundle.manifest.name
    assert candidate.engine is not None
    calls = [functions for task in tasks if (functions := task_functions(bundle, task))]
    calls, runs = (calls[:1], 0) if again else (calls, LATENCY_RUNS)
    start = time.perf_counter()
    try:
        running = candidate.engine.open(bundle, device, threads=threads, tasks=tasks)
    except DeviceError as error:
        return Trial(device, "unusable", str(error), bundle=name), None
    try:
        for functions in calls:
            running.run(functions, golden["frames"][:1])
        compile_s = time.perf_counter() - start
        figures: dict[str, float] = {}
        for functions in calls:
            figures |= measure(running, bundle, functions, golden)
        times_ms: list[float] = []
        while len(times_ms) < runs and sum(times_ms) <= LATENCY_BUDGET_MS:
            start = time.perf_counter()
            running.run(calls[0], golden["frames"][:1])
            times_ms.append((time.perf_counter() - start) * 1e3)
    except DeviceError as error:
        running.close()
        return Trial(device, "unusable", str(error), bundle=name), None
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
        statistics.median(times_ms) if times_ms else None,
        compile_s,
        running.effective_precision,
        running.effective_device,
        bundle=name,
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
    usable = [f"{d.kind} ({d.native}{', where it is named' if d.by_name_alone else ''})" for d in found if d.usable]
    without = [f"{d.kind} ({d.native}): {d.reason}" for d in found if not d.usable]
    return f"There is: {', '.join(usable) or 'none'}" + (f". Not usable: {'; '.join(without)}" if without else "")
