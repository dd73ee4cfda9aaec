"""The arithmetic of a comparison; no test looks at a speed."""

import time

import pytest

from tasktok_edge.bench import WARM_UP, measure


def test_candidates_run_in_turn_and_are_compared_pair_by_pair() -> None:
    calls: list[str] = []

    def candidate(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    first, second = measure({"a": lambda: candidate("a", 0.001), "b": lambda: candidate("b", 0.02)}, runs=9)
    assert calls == ["a"] * WARM_UP + ["b"] * WARM_UP + ["a", "b"] * 9
    assert first.ratio == pytest.approx(1.0) and first.ratio_low == first.ratio_high == pytest.approx(1.0)
    assert second.p50_ms >= 20 and second.p90_ms >= second.p50_ms
    assert second.ratio_low <= second.ratio <= second.ratio_high
