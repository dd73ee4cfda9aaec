"""Results to files and callables; one that fails is told once, counted, and stops nobody."""

import json
from pathlib import Path

import numpy as np
import pytest

from tasktok_edge.errors import UsageError
from tasktok_edge.runtimes.answers import Classification
from tasktok_edge.runtimes.sinks import Each, JsonLines, Sinks
from tasktok_edge.runtimes.stream import Event, Streamed


def result(index: int) -> Streamed:
    frame = np.zeros((8, 8, 3), np.uint8)
    answer = Classification(1, "dog", np.array([0.25, 0.75], np.float32))
    times = {"capture_ms": 1.0, "queue_ms": 0.5, "inference_ms": 2.0, "end_to_end_ms": 2.5}
    return Streamed(index, frame, frame, answer, 1.0 * index, **times, change=None, still=False, session=None)  # type: ignore[arg-type]


class Failing:
    """Fails while it is told to."""

    name = "failing"

    def __init__(self) -> None:
        self.broken, self.taken, self.closed = False, list[int](), False

    def write(self, one: Streamed) -> None:
        if self.broken:
            raise OSError(28, "No space left on device")
        self.taken.append(one.index)

    def close(self) -> None:
        self.closed = True
        if self.broken:
            raise OSError(28, "No space left on device")


def test_lines_are_whole_json(tmp_path: Path) -> None:
    with Sinks([JsonLines(tmp_path / "a.jsonl")]) as sinks:
        for i in range(3):
            sinks.write(result(i))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2] and lines[0]["said"] == "dog (75%)"
    assert lines[0]["answer"]["scores"] == [0.25, 0.75] and lines[0]["end_to_end_ms"] == 2.5 and lines[0]["still"] is False


def test_a_sink_that_fails_is_told_once_for_each_outage_and_stops_nobody() -> None:
    events, seen, failing = list[Event](), list[int](), Failing()
    with Sinks([failing, Each(lambda one: seen.append(one.index), "list")], events.append) as sinks:
        for i in range(30):
            failing.broken = 10 <= i < 15 or i >= 25
            sinks.write(result(i))
    assert seen == list(range(30)) and failing.taken == [*range(10), *range(15, 25)] and failing.closed
    assert sinks.missed == {"failing": 10}
    assert [e.told for e in events] == ["failing cannot be written: No space left on device"] * 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_once() -> None:
    events: list[Event] = []
    with Sinks([JsonLines(Path("/dev/full"))], events.append) as sinks:
        for i in range(5):
            sinks.write(result(i))
    assert sinks.missed == {"/dev/full": 5} and len(events) == 1 and "No space left" in events[0].told


def test_a_line_that_did_not_fit_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = JsonLines(tmp_path / "a.jsonl")
    sink.write(result(0))
    raw, room = sink._stream, 40

    class Full:
        """Takes 40 bytes more, and no more, until there is room again."""

        def write(self, data: bytes) -> int:
            nonlocal room
            if not room:
                raise OSError(28, "No space left on device")
            taken = raw.write(data[:room])
            room -= taken
            return taken

        def __getattr__(self, name: str) -> object:
            return getattr(raw, name)

    monkeypatch.setattr(sink, "_stream", Full())
    with pytest.raises(OSError, match="No space left"):
        sink.write(result(1))
    room = 10**6
    sink.write(result(2))
    sink.close()
    assert [json.loads(line)["frame"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [0, 2]


def test_what_a_callable_gets_wrong_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        Sinks([Each(lambda one: 1 / one.index, "odd")]).write(result(0))


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        JsonLines(tmp_path / "none" / "a.jsonl")
