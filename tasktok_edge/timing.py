"""Times side by side: candidates in turn, interleaved in one run, so that a noisy machine still gives a ratio."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

WARM_UP = 5
BURST = 5  # counted calls of a turn, behind one that is not
NOISY = 1.5  # times from the 10th to the 90th percentile of a ratio


@dataclass(frozen=True)
class Ratio:
    """Of one candidate's times to another's, run by run: the median, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Latency:
    """Times of one candidate in milliseconds, and its ratio to the first candidate, pair by pair."""

    name: str
    p50_ms: float
    p90_ms: float
    p99_ms: float  # of single calls; the others are of turns
    ratio: float  # median of (this / first), run by run
    ratio_low: float  # 10th and 90th percentile of the same
    ratio_high: float
    to_peer: Ratio | None = None  # to the fastest of the peers, by its median

    @property
    def noisy(self) -> bool:
        """Whether the pairs differ so much that their median tells little."""
        return self.ratio_high > NOISY * self.ratio_low


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    runs: int,
    peers: Sequence[str] = (),
    rest_s: float = 0.0,
    on_round: Callable[[int], None] = lambda _: None,
) -> list[Latency]:
    """Measure candidates in turn, A B C A B C …, with a rest before each turn, as a stream of frames finds them.

    A turn is one call that brings the candidate's weights back into the caches, then a few that count; their median is the
    turn's time. One call a turn would time the caches that the candidate before has emptied: of a small model that is two
    thirds. The first candidate is what the others are compared with, and where there are `peers`, the fastest of them too.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    calls: dict[str, list[float]] = {name: [] for name in candidates}
    for done in _rounds(candidates, runs, times, calls, rest_s):
        on_round(done)
    first = next(iter(times.values()))
    peer = min((times[name] for name in peers), key=statistics.median, default=None)
    return [_latency(name, values, sorted(calls[name]), first, peer) for name, values in times.items()]


def _rounds(
    candidates: Mapping[str, Callable[[], object]],
    runs: int,
    times: dict[str, list[float]],
    calls: dict[str, list[float]],
    rest_s: float,
) -> Iterator[int]:
    for run in candidates.values():
        for _ in range(WARM_UP):
            run()
    for done in range(1, runs + 1):
        for name, run in candidates.items():
            if rest_s:
                time.sleep(rest_s)
            run()
            turn = [_timed(run) for _ in range(BURST)]
            times[name].append(statistics.median(turn))
            calls[name] += turn
        yield done


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _latency(name: str, values: list[float], calls: list[float], first: list[float], peer: list[float] | None) -> Latency:
    ratio = _ratio(values, first)
    return Latency(
        name,
        p50_ms=statistics.median(values),
        p90_ms=_percentile(sorted(values), 0.9),
        p99_ms=_percentile(calls, 0.99),
        ratio=ratio.median,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        to_peer=_ratio(values, peer) if peer else None,
    )


def _ratio(values: list[float], others: list[float]) -> Ratio:
    ratios = sorted(v / o for v, o in zip(values, others, strict=True))
    return Ratio(statistics.median(ratios), _percentile(ratios, 0.1), _percentile(ratios, 0.9))


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
