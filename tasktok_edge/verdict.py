"""From what was seen of every frame to a report: metrics, differences with their intervals, worst frames, the outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasktok_edge.contestants import Contestant
from tasktok_edge.evidence import Floats, Meter, meter, top
from tasktok_edge.interval import Outcome, paired_interval
from tasktok_edge.metrics import METRIC_NAMES
from tasktok_edge.report import Bad, Column, Comparison, Group, Judged, Metric, Report
from tasktok_edge.shards import Seen

WORST = 3  # frames shown of each task
ORDER: dict[Outcome, int] = {"pass": 0, "not enough frames": 1, "fail": 2}


def judge(
    seen: Sequence[Seen],
    everyone: Sequence[Contestant],
    kinds: Mapping[str, str],
    head: Mapping[str, Any],
    *,
    max_drop: float,
    min_psnr_db: float | None,
) -> Report:
    """Make the report of what was seen of all frames."""
    by_task = {task: [s for s in seen if task in s["tasks"]] for task in kinds}
    metrics = {task: _metric(kind, by_task[task]) for task, kind in kinds.items()}
    bundles = tuple(
        _judged(one, by_task, kinds, metrics, max_drop=max_drop, min_psnr_db=min_psnr_db) for one in everyone if one.is_device
    )
    notes = list(head["notes"])
    if not any(s["found"] for s in seen) and any(s["same"] for s in seen):
        notes.append("without labels answers are compared alone: the share of the same answers stands for accuracy")
    elif any(s["found"] and "clean" not in s["found"] for s in seen):
        notes.append("the checkpoint has no task networks of clean frames, so that clean and degraded frames have no figures")
    return Report(
        **{**head, "notes": tuple(notes)},
        frames={task: len(those) for task, those in by_task.items()},
        max_drop=max_drop,
        min_psnr_db=min_psnr_db,
        metrics=metrics,
        columns=tuple(_column(one.name, by_task, kinds) for one in everyone),
        groups=_groups(seen, everyone, kinds),
        bundles=bundles,
        outcome=max((b.outcome for b in bundles), key=ORDER.__getitem__, default="pass"),
    )


def _metric(kind: str, seen: Sequence[Seen]) -> Metric:
    labelled = any(s["found"] for s in seen)
    found: Metric = METRIC_NAMES[kind] if labelled else "same answers"  # type: ignore[assignment]
    return found


def _observed(seen: Sequence[Seen], name: str, task: str) -> list[Any]:
    return [s["found"][name][task] for s in seen if task in s["found"].get(name, {})]


def _measured(seen: Sequence[Seen], name: str, task: str, measure: str) -> float | None:
    values = [m[measure] for s in seen if measure in (m := s["restored"].get(name, {}).get(task, {}))]
    return float(np.mean(values)) if values else None


def _column(name: str, by_task: Mapping[str, Sequence[Seen]], kinds: Mapping[str, str]) -> Column:
    found: dict[str, dict[str, float]] = {"metrics": {}, "top_5": {}, "psnr_db": {}, "ssim": {}}
    for task, seen in by_task.items():
        observed = _observed(seen, name, task)
        if observed:
            once = np.ones((1, len(observed)))
            value = float(meter(kinds[task], observed)(once)[0])
            if np.isfinite(value):  # not where there is no object at all
                found["metrics"][task] = value
            if kinds[task] == "cls":
                found["top_5"][task] = float(top(observed, 5)(once)[0])
        for measure in ("psnr_db", "ssim"):
            mean = _measured(seen, name, task, measure)
            if mean is not None:
                found[measure][task] = mean
    return Column(name=name, **found)


def _groups(seen: Sequence[Seen], everyone: Sequence[Contestant], kinds: Mapping[str, str]) -> tuple[Group, ...]:
    names = list(dict.fromkeys(s["group"] for s in seen))
    groups = []
    for group in names if len(names) > 1 else []:
        those = [s for s in seen if s["group"] == group]
        by_task = {task: [s for s in those if task in s["tasks"]] for task in kinds}
        metrics = {one.name: _column(one.name, by_task, kinds).metrics for one in everyone}
        groups.append(Group(name=group, frames=len(those), metrics=metrics))
    return tuple(groups)


@dataclass(frozen=True, eq=False)
class _Pair:
    """Meters of a bundle and the server on the frames of one task; without labels, of same answers beside all the same."""

    name: str  # of the bundle
    task: str
    metric: Metric
    seen: Sequence[Seen]
    device: Meter
    server: Meter

    @property
    def to_server_db(self) -> list[float | None]:
        """How near each restored frame is to the server's."""
        return [s["restored"].get(self.name, {}).get(self.task, {}).get("psnr_to_server_db") for s in self.seen]

    @property
    def same(self) -> list[bool]:
        return [s["same"][self.name][self.task] for s in self.seen]


def _pair(name: str, task: str, kind: str, metric: Metric, seen: Sequence[Seen]) -> _Pair | None:
    """None where the bundle only restores for the task."""
    answered = [s for s in seen if task in s["same"].get(name, {})]
    if not answered:
        return None
    if metric == "same answers":
        same = [{"rank": int(not s["same"][name][task])} for s in answered]
        return _Pair(name, task, metric, answered, top(same), top([{"rank": 0}] * len(same)))
    device, server = (meter(kind, _observed(answered, who, task)) for who in (name, "server"))
    return _Pair(name, task, metric, answered, device, server)


def _judged(
    one: Contestant,
    by_task: Mapping[str, Sequence[Seen]],
    kinds: Mapping[str, str],
    metrics: Mapping[str, Metric],
    *,
    max_drop: float,
    min_psnr_db: float | None,
) -> Judged:
    comparisons, worst, reasons = list[Comparison](), list[Bad](), list[tuple[Outcome, str]]()
    restored: dict[str, float] = {}
    for task, seen in by_task.items():
        if task not in one.tasks or not seen:
            continue
        pair = _pair(one.name, task, kinds[task], metrics[task], seen)
        if pair is not None:
            found = _comparison(pair, max_drop)
            comparisons.append(found)
            worst += _worst(pair)
            if found.outcome != "pass":
                reasons.append((found.outcome, _reason(found, max_drop)))
        near = _measured(seen, one.name, task, "psnr_to_server_db")
        if near is not None:
            restored[task] = near
            if min_psnr_db is not None and near < min_psnr_db:
                told = f"{task}: restored frames are {near:.1f} dB from the server's, {min_psnr_db:g} dB asked"
                reasons.append(("fail", told))
    outcomes: list[Outcome] = ["pass", *(what for what, _ in reasons)]
    outcome = max(outcomes, key=ORDER.__getitem__)
    return Judged(
        name=one.name,
        **one.known,
        tasks=tuple(comparisons),
        restored_to_server_db=restored,
        worst=tuple(worst),
        outcome=outcome,
        reasons=tuple(told for what, told in reasons if what == outcome),
    )


def _comparison(pair: _Pair, max_drop: float) -> Comparison:
    n = len(pair.seen)
    once, interval = np.ones((1, n)), paired_interval(pair.device, pair.server, n)
    return Comparison(
        task=pair.task,
        metric=pair.metric,
        frames=n,
        server=float(pair.server(once)[0]),
        device=float(pair.device(once)[0]),
        difference=interval.value,
        low=interval.low,
        high=interval.high,
        outcome=interval.outcome(max_drop),
        frames_needed=interval.frames_needed(max_drop, n),
        agreement=float(np.mean(pair.same)),
        psnr_to_server_db=_measured(pair.seen, pair.name, pair.task, "psnr_to_server_db"),
    )


def _reason(found: Comparison, max_drop: float) -> str:
    told = f"{found.task}: {100 * found.difference:+.2f} points ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
    if found.outcome == "fail":
        return f"{told}, {100 * max_drop:g} may be lost"
    return f"{told}, too wide to tell a drop of {100 * max_drop:g}: about {found.frames_needed} frames would do"


def _worst(pair: _Pair) -> list[Bad]:
    """The frames where the device fell furthest behind the server by each frame's own metric; without labels in dB."""
    near = pair.to_server_db
    if pair.metric == "same answers":
        differing = [i for i, same in enumerate(pair.same) if not same]
        chosen = sorted(differing, key=lambda i: near[i] or 0.0)[:WORST]
        return [_bad(pair, i, None, None) for i in chosen]
    mine, theirs = (np.nan_to_num(_frame_by_frame(m, len(pair.seen))) for m in (pair.device, pair.server))
    order = np.argsort(mine - theirs, kind="stable")[:WORST]
    return [_bad(pair, i, float(theirs[i]), float(mine[i])) for i in order.tolist() if mine[i] < theirs[i]]


def _frame_by_frame(metric: Meter, n: int) -> Floats:
    each = np.eye(n)
    return np.concatenate([metric(each[i : i + 100]) for i in range(0, n, 100)])


def _bad(pair: _Pair, i: int, theirs: float | None, mine: float | None) -> Bad:
    seen = pair.seen[i]
    return Bad(
        task=pair.task,
        frame=seen["name"],
        index=seen["i"],
        server=theirs,
        device=mine,
        psnr_to_server_db=pair.to_server_db[i],
    )
