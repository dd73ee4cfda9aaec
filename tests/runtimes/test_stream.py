"""From frames to results: in order, bounded, newest first where that is asked, every fault told once, and a clean end."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasktok_edge.errors import FrameError, UsageError
from tasktok_edge.frames import check_frame
from tasktok_edge.runtimes.answers import Classification
from tasktok_edge.runtimes.cameras import EndedError, Frame, Frames, LostError, Video, camera
from tasktok_edge.runtimes.session import Result
from tasktok_edge.runtimes.stream import Event, Policy, Stream, stream


def frames(n: int, side: int = 8) -> list[Frame]:
    return [np.full((side, side, 3), i % 256, np.uint8) for i in range(n)]


class Model:
    """Answers each frame with its first pixel, after a while; refuses what a session refuses."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self, frame: Frame, task: str | None) -> Result:
        check_frame(frame)
        time.sleep(self.seconds)
        return Result(frame, Classification(int(frame[0, 0, 0]), "", np.zeros(1, np.float32)))


def streamed(source: object, model: Model, **options: object) -> Stream:
    return stream(model, source, **options)  # type: ignore[arg-type]


def answered(one: Stream) -> list[int]:
    return [result.index for result in one]


def test_every_frame_of_a_file_is_answered_in_order() -> None:
    events: list[Event] = []
    with streamed(Frames(lambda: frames(50)), Model(), policy="every", on_event=events.append) as results:
        seen = list(results)
    assert [one.index for one in seen] == list(range(50))
    assert all(one.result.answer.index == one.frame[0, 0, 0] for one in seen)  # type: ignore[union-attr]
    assert all(0 <= one.queue_ms <= one.end_to_end_ms and one.inference_ms <= one.end_to_end_ms for one in seen)
    assert results.counts.captured == results.counts.answered == 50 and results.counts.dropped == 0
    assert [e.kind for e in events] == ["opened", "ended"]


@given(st.integers(1, 60), st.sampled_from([0.0, 0.001, 0.003]), st.sampled_from(["latest", "every"]))
@settings(max_examples=25, deadline=None)
def test_no_frame_is_lost_from_the_count(n: int, seconds: float, policy: Policy) -> None:
    with streamed(Frames(lambda: frames(n), fps=2000), Model(seconds), policy=policy) as results:
        seen = answered(results)
    counts = results.counts
    assert counts.captured == n == counts.answered + counts.dropped + counts.stale + counts.refused
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
    assert results.counts.refused == 1 and [e.kind for e in events].count("refused") == 1


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


def test_closing_wakes_who_waits() -> None:
    gate = threading.Event()

    def silent() -> Iterator[Frame]:
        gate.wait(5)
        yield from frames(1)

    results = streamed(Frames(silent, live=True), Model())
    threading.Timer(0.05, results.close).start()
    assert answered(results) == []
    gate.set()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: str(folder), "holds no picture"),
        (lambda folder: str(folder / "none.mp4"), "no camera, file, folder or URL"),
    ],
)
def test_what_is_no_camera_is_told(make: Callable[[Path], str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        camera(make(tmp_path))


def test_names_hold_no_credentials_and_a_video_has_its_rate(tmp_path: Path) -> None:
    assert camera("http://user:secret@host.example/x?key=1").name == "http://host.example"
    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 50, (48, 32))
    for picture in frames(6, 32):
        writer.write(np.ascontiguousarray(cv2.resize(picture, (48, 32))))
    writer.release()
    source = camera(str(file))
    assert isinstance(source, Video) and not source.live
    begun = time.monotonic()
    with streamed(source, Model()) as results:
        assert answered(results)[-1] == 5
    assert source.fps == 50 and time.monotonic() - begun > 0.1  # played, not swallowed


def test_a_model_that_refuses_all_gives_nothing() -> None:
    class Refusing(Model):
        def __call__(self, frame: Frame, task: str | None) -> Result:
            raise FrameError("no")

    with streamed(Frames(lambda: frames(3)), Refusing(), policy="every") as results:
        assert answered(results) == []
    assert results.counts.refused == 3
