"""From frames to results: in order, bounded, newest first where that is asked, every fault told once, and a clean end."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasktok_edge.errors import FrameError
from tasktok_edge.frames import check_frame
from tasktok_edge.runtimes.answers import Answer, Classification
from tasktok_edge.runtimes.cameras import EndedError, Frame, Frames, LostError, camera
from tasktok_edge.runtimes.session import Result
from tasktok_edge.runtimes.stream import Event, Policy, Stream, stream


def frames(n: int, side: int = 8) -> list[Frame]:
    return [np.full((side, side, 3), i % 256, np.uint8) for i in range(n)]


class Model:
    """Answers each frame with its first pixel, after a while; refuses what a session refuses."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.calls, self.tokens, self.tasks = seconds, 0, 8, set[str | None]()
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(name="fake"))

    def look(self, frame: Frame, task: str | None) -> tuple[Frame, Answer]:
        found = self(frame, task)
        return found.frame, found.answer

    def __call__(self, frame: Frame, task: str | None) -> Result:
        check_frame(frame)
        time.sleep(self.seconds)
        self.calls += 1
        self.tasks.add(task)
        return Result(frame, Classification(int(frame[0, 0, 0]), "", np.zeros(1, np.float32)))


def streamed(source: object, model: object, **options: object) -> Stream:
    return stream(model, source, **options)  # type: ignore[arg-type]


def answered(one: Stream) -> list[int]:
    return [result.index for result in one]


def test_every_frame_of_a_file_is_answered_in_order() -> None:
    events: list[Event] = []
    with streamed(Frames(lambda: frames(50)), Model(), policy="every", on_event=events.append) as results:
        seen = list(results)
    assert [one.index for one in seen] == list(range(50))
    assert all(one.answer.index == one.frame[0, 0, 0] for one in seen)  # type: ignore[union-attr]
    assert all(one.capture_ms >= 0 and one.change is None for one in seen)
    assert all(0 <= one.queue_ms <= one.end_to_end_ms and one.inference_ms <= one.end_to_end_ms for one in seen)
    assert results.counts.captured == results.counts.answered == 50 and results.counts.dropped == 0
    assert [e.kind for e in events] == ["opened", "ended"]


@given(st.integers(1, 60), st.sampled_from([0.0, 0.001, 0.003]), st.sampled_from(["latest", "every"]))
@settings(max_examples=25, deadline=None)
def test_no_frame_is_lost_from_the_count(n: int, seconds: float, policy: Policy) -> None:
    with streamed(Frames(lambda: frames(n), fps=2000), Model(seconds), policy=policy) as results:
        seen = answered(results)
    counts = results.counts
    assert counts.captured == n == counts.answered + counts.dropped
    assert seen == sorted(set(seen)) and len(seen) == counts.answered
    assert seen[-1] == n - 1 and (policy == "latest" or len(seen) == n)


def test_under_latest_a_slow_model_sees_the_newest_and_nothing_too_old_is_given() -> None:
    with streamed(Frames(lambda: frames(200), fps=100), Model(0.05), max_staleness_ms=500) as results:
        seen = list(results)
    assert results.counts.dropped > 100 and results.counts.answered + results.counts.dropped + results.counts.stale == 200
    assert max(one.end_to_end_ms for one in seen) <= 500
    with streamed(Frames(lambda: frames(30), fps=100), Model(0.05), max_staleness_ms=20) as results:
        assert not list(results)  # the model alone takes longer
    assert results.counts.stale and not results.counts.answered


def test_who_never_reads_stops_nobody() -> None:
    read = itertools.count()

    def endless() -> Iterator[Frame]:
        while True:
            next(read)
            time.sleep(0.0005)
            yield np.zeros((8, 8, 3), np.uint8)

    with streamed(Frames(endless, live=True), Model()) as results:
        time.sleep(0.2)
        first, begun = next(read), time.monotonic()
        time.sleep(0.2)
        assert next(read) - first > 20 and len(results._waiting) == 1
        results.close()
        results.close()
        assert time.monotonic() - begun < 2 and not results._reader.is_alive()
        assert results.counts.dropped >= results.counts.captured - 2


def test_damaged_frames_are_refused_and_told_and_others_go_on(tmp_path: Path) -> None:
    for i, picture in enumerate(frames(4)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture)
    (tmp_path / "2.png").write_bytes(b"no picture")
    events: list[Event] = []
    with streamed(camera(str(tmp_path)), Model(), policy="every", on_event=events.append) as results:
        assert answered(results) == [0, 1, 3]
    assert results.counts.damaged == 1 and [e.kind for e in events].count("damaged") == 1
    assert events[1].told == f"{tmp_path / '2.png'} is not a picture that OpenCV reads"


class Flaky:
    """Gives two frames each time it is opened, then is lost; the first attempts to open it again fail."""

    name, live, fps = "flaky", True, None

    def __init__(self, failures: int) -> None:
        self.failures, self.opened, self.left = failures, 0, 0

    def open(self) -> None:
        self.opened += 1
        if 1 < self.opened <= 1 + self.failures:
            raise LostError("flaky cannot be opened")
        self.left = 2

    def read(self) -> Frame:
        if not self.left:
            if self.opened > 1:
                raise EndedError
            raise LostError("flaky gave no frame")
        self.left -= 1
        return np.zeros((8 * self.opened, 8, 3), np.uint8)

    def close(self) -> None: ...


def test_a_lost_camera_is_opened_again_with_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasktok_edge.runtimes.stream.BACK_OFF_S", (0.01, 0.02))
    events: list[Event] = []
    source = Flaky(failures=3)
    with streamed(source, Model(), policy="every", on_event=events.append) as results:
        assert answered(results) == [0, 1, 2, 3]
    assert source.opened == 5 and [e.kind for e in events] == ["opened", "lost", "opened", "ended"]


class Flapping(Flaky):
    """Can be opened at once each time, and gives nothing until the last time."""

    def open(self) -> None:
        self.opened += 1
        self.left = 2 if self.opened > self.failures else 0

    def read(self) -> Frame:
        if self.opened > self.failures:
            return super().read()
        raise LostError("flaky gave no frame")


def test_a_camera_that_opens_and_gives_nothing_is_lost_once_and_waited_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasktok_edge.runtimes.stream.BACK_OFF_S", (0.01, 0.02, 0.2))
    events: list[Event] = []
    begun = time.monotonic()
    with streamed(Flapping(failures=4), Model(), policy="every", on_event=events.append) as results:
        assert answered(results) == [0, 1]
    assert [e.kind for e in events] == ["lost", "opened", "ended"] and time.monotonic() - begun > 0.4


def test_a_new_size_and_a_stall_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasktok_edge.runtimes.stream.STALL_S", 0.5)
    events: list[Event] = []

    def changing() -> Iterator[Frame]:
        yield from (*frames(2, 8), *frames(2, 16))
        time.sleep(1.2)
        yield from frames(1, 16)

    with streamed(Frames(changing, "clip"), Model(), policy="every", on_event=events.append) as results:
        assert len(answered(results)) == 5
    assert [e.kind for e in events] == ["opened", "size", "stalled", "ended"]
    assert events[1].told == "clip: frames are 16x16, not 8x8 any more"


def test_a_stall_that_nobody_waited_for_is_told_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasktok_edge.runtimes.stream.STALL_S", 0.3)
    events: list[Event] = []

    def changing() -> Iterator[Frame]:
        yield from frames(1)
        time.sleep(0.5)
        yield from frames(1)

    with streamed(Frames(changing), Model(), policy="every", on_event=events.append) as results:
        time.sleep(1)  # whoever takes the results is elsewhere
        assert len(answered(results)) == 2
    assert [e.kind for e in events] == ["opened", "stalled", "ended"]


def test_closing_wakes_who_waits() -> None:
    gate = threading.Event()

    def silent() -> Iterator[Frame]:
        gate.wait(5)
        yield from frames(1)

    results = streamed(Frames(silent, live=True), Model())
    threading.Timer(0.05, results.close).start()
    assert answered(results) == []
    gate.set()


def test_a_model_that_refuses_all_gives_nothing_and_that_is_told_once() -> None:
    class Refusing(Model):
        def __call__(self, frame: Frame, task: str | None) -> Result:
            raise FrameError("no")

    events: list[Event] = []
    with streamed(Frames(lambda: frames(3)), Refusing(), policy="every", on_event=events.append) as results:
        assert answered(results) == []
    assert results.counts.refused == 3 and [e.kind for e in events].count("refused") == 1


def test_a_model_slower_than_a_result_may_be_old_is_told_once() -> None:
    events: list[Event] = []
    with streamed(Frames(lambda: frames(30), fps=100), Model(0.05), max_staleness_ms=20, on_event=events.append) as results:
        assert not list(results)
    assert [e.kind for e in events].count("slow") == 1 and results.counts.stale and not results.counts.answered


def test_a_model_that_is_always_too_late_does_not_hold_who_polls() -> None:
    with streamed(Frames(lambda: frames(100), fps=100), Model(0.05), max_staleness_ms=20) as results:
        begun = time.monotonic()
        assert results.poll(0.1) is None and not results.ended
        assert time.monotonic() - begun < 0.7 and results.counts.stale


def test_a_way_whose_results_come_too_late_is_left() -> None:
    models, events = [Model(0.08), Model(0.001)], list[Event]()
    with streamed(Frames(lambda: frames(120), fps=100), models, fps=50, max_staleness_ms=50, on_event=events.append) as results:
        seen = list(results)
    assert seen and {one.session for one in seen} == {models[1]} and [e.kind for e in events].count("pace") == 1


def test_a_mistake_in_a_source_reaches_who_iterates() -> None:
    def wrong() -> Iterator[Frame]:
        yield from frames(2)
        raise ZeroDivisionError("in the source")

    with streamed(Frames(wrong), Model(), policy="every") as results:
        assert next(results).index == 0 and next(results).index == 1
        with pytest.raises(ZeroDivisionError, match="in the source"):
            next(results)
        assert answered(results) == []


def test_a_still_scene_is_not_restored_again_and_a_change_is() -> None:
    clip = [*frames(1, 48) * 5, *(np.full((48, 48, 3), v, np.uint8) for v in (1, 2, 3, 4, 5)), *frames(1, 64) * 2]
    model = Model()
    with streamed(Frames(lambda: clip), model, policy="every", still=2.5) as results:
        seen = list(results)
    # A slow change adds up until it is seen; a new size is a new scene.
    assert [one.still for one in seen] == [False, True, True, True, True, True, True, False, True, True, False, True]
    assert model.calls == results.counts.answered == 3 and results.counts.still == 9
    assert [one.answer.index for one in seen] == [0] * 7 + [3] * 3 + [0] * 2  # type: ignore[union-attr]
    assert all(one.inference_ms == 0 for one in seen if one.still)
    assert [one.change for one in seen[:8]] == [None, 0, 0, 0, 0, 1, 2, 3]


def test_the_first_of_several_sessions_that_keeps_up_is_used() -> None:
    models, events = [Model(0.03), Model(0.03), Model(0.001)], list[Event]()
    with streamed(Frames(lambda: frames(80), fps=100), models, fps=50, on_event=events.append) as results:
        ways = [models.index(one.session) for one in results]  # type: ignore[arg-type]
    assert sorted(ways) == ways and set(ways) == {0, 1, 2}
    told = [e.told for e in events if e.kind == "pace"]
    assert told == [f"fake with 8 tokens, {n} of 3 ways, for 50 frames a second" for n in (2, 3)]


def test_another_task_is_used_from_the_next_frame_on() -> None:
    first, second = Model(), Model()
    with streamed(Frames(lambda: frames(20)), first, policy="every", still=2.5) as results:
        next(results)
        results.use(second, "det")  # type: ignore[arg-type]
        assert not next(results).still  # the other's result is none of this one's
        list(results)
    assert second.tasks == {"det"} and first.calls == 1


def test_who_has_other_work_polls() -> None:
    gate = threading.Event()

    def waiting() -> Iterator[Frame]:
        gate.wait(5)
        yield from frames(1)

    with streamed(Frames(waiting), Model()) as results:
        begun = time.monotonic()
        assert results.poll(0.05) is None and not results.ended and time.monotonic() - begun < 1
        gate.set()
        one = results.poll(5)
        assert one is not None and one.index == 0
        assert results.poll(5) is None and results.ended
