"""What counts as a change, and which of several ways keeps up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasktok_edge.runtimes.pace import LONGEST, PATIENCE, SEEN, Pace
from tasktok_edge.runtimes.still import BLOCKS, LEVELS, Still

SIZES = ((128, 128), (256, 256), (480, 640), (720, 1280), (241, 333))


def scene(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(60, 196, (height, width, 3), np.uint8)


def kept(frame: np.ndarray) -> Still:
    still = Still()
    assert still.change(frame) == np.inf
    still.keep()
    return still


@pytest.mark.parametrize(("height", "width"), SIZES)
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_thing_as_large_as_a_block_is_never_missed(height: int, width: int, data: st.DataObject) -> None:
    """Wherever it is and whatever its colour: it fills a quarter of some block, so that four thresholds are enough."""
    frame = scene(height, width)
    still, side = kept(frame), int(np.ceil(min(height, width) / BLOCKS))
    y, x = data.draw(st.integers(0, height - side)), data.draw(st.integers(0, width - side))
    channel, levels = data.draw(st.integers(0, 2)), data.draw(st.integers(int(4 * LEVELS) + 6, 59))
    sign = data.draw(st.sampled_from((-1, 1)))
    changed = frame.astype(int)
    changed[y : y + side, x : x + side, channel] += sign * levels
    assert still.change(changed.astype(np.uint8)) > LEVELS


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_sensors_noise_is_no_change_and_less_light_is(height: int, width: int) -> None:
    frame = scene(height, width)
    still, rng = kept(frame), np.random.default_rng(1)
    for _ in range(5):
        noisy = np.clip(np.rint(frame + rng.normal(0, 2.0, frame.shape)), 0, 255).astype(np.uint8)
        assert still.change(noisy) < LEVELS
    assert still.change(frame) == 0
    assert still.change((frame * 0.95).astype(np.uint8)) > LEVELS


def test_a_slow_change_adds_up_and_a_new_size_is_a_change() -> None:
    frame = np.full((96, 96, 3), 100, np.uint8)
    still = kept(frame)
    assert [still.change(frame + np.uint8(i)) > LEVELS for i in range(5)] == [False, False, False, True, True]
    assert still.change(np.full((96, 97, 3), 100, np.uint8)) == np.inf
    assert still.change(frame + np.uint8(3)) == 3
    still.keep()
    assert still.change(frame + np.uint8(3)) == 0


def run(pace: Pace, times: dict[int, float], n: int) -> list[int]:
    ways = []
    for _ in range(n):
        ways.append(pace.way)
        pace.saw(times[pace.way])
    return ways


def test_a_way_that_does_not_keep_up_is_left_and_the_best_that_does_is_kept() -> None:
    ways = run(Pace(3, 33), {0: 80, 1: 40, 2: 30}, 5000)
    assert ways[SEEN - 1] == 0 and ways[SEEN] == 1 and ways[2 * SEEN] == 2
    assert set(ways[2 * SEEN :]) == {2}  # 30 of 33 ms leaves no room to try


def test_a_better_way_is_tried_less_and_less_often() -> None:
    pace = Pace(2, 33)
    ways = run(pace, {0: 40, 1: 5}, 40_000)
    tries = [i for i in range(1, len(ways)) if ways[i] == 0 and ways[i - 1] == 1]
    gaps = np.diff(tries)
    assert gaps[0] >= PATIENCE and (gaps[1:] >= gaps[:-1]).all() and gaps[-1] >= LONGEST
    assert ways.count(0) / len(ways) < 0.01


def test_a_better_way_is_gone_back_to_when_the_machine_has_time_again() -> None:
    pace = Pace(2, 33)
    run(pace, {0: 50, 1: 10}, 200)
    assert run(pace, {0: 20, 1: 10}, 500)[-1] == 0
    assert pace.way == 0


def test_one_hiccup_moves_nothing() -> None:
    pace = Pace(2, 33)
    for i in range(1000):
        pace.saw(200 if i % 5 == 0 else 10)
    assert pace.way == 0
