"""Where results go: lines of JSON, a video file, any callable; one that fails, as on a full disk, stops nobody."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self

from tasktok_edge.errors import UsageError
from tasktok_edge.runtimes.answers import plain, say
from tasktok_edge.runtimes.stream import Event, Streamed


class Sink(Protocol):
    """write() and close() may raise OSError, and nothing else that is expected."""

    name: str

    def write(self, one: Streamed) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """The answers, a line of JSON a frame; a line that did not fit on the disk is taken back."""

    def __init__(self, file: Path) -> None:
        self.name = str(file)
        try:
            self._stream = file.open("wb", buffering=0)
        except OSError as error:
            raise UsageError(f"{file} cannot be written: {error.strerror}") from None
        self._whole = 0  # bytes of whole lines

    def write(self, one: Streamed) -> None:
        line = json.dumps(line_of(one)).encode() + b"\n"
        try:
            written = 0
            while written < len(line):  # a disk that becomes full takes a part first
                written += self._stream.write(line[written:])
        except OSError:
            with suppress(OSError):  # a pipe, or a device
                self._stream.seek(self._whole)
                self._stream.truncate()
            raise
        self._whole += len(line)

    def close(self) -> None:
        self._stream.close()


class Each:
    """Any callable, once a result; what it raises other than OSError is not caught."""

    def __init__(self, call: Callable[[Streamed], object], name: str) -> None:
        self.name = name
        self._call = call

    def write(self, one: Streamed) -> None:
        self._call(one)

    def close(self) -> None: ...


class Sinks:
    """Gives each result to all of them; a context manager that closes them.

    A sink that raises OSError is told of once, until it works again, and tried with every further result; `missed` counts what
    each did not take.
    """

    def __init__(self, sinks: Sequence[Sink], on_event: Callable[[Event], None] = lambda _: None) -> None:
        self.sinks, self.missed = tuple(sinks), Counter[str]()
        self._on_event = on_event
        self._failing: set[str] = set()

    def write(self, one: Streamed) -> None:
        for sink in self.sinks:
            try:
                sink.write(one)
                self._failing.discard(sink.name)
            except OSError as error:
                self.missed[sink.name] += 1
                if sink.name not in self._failing:
                    self._on_event(Event("sink", f"{sink.name} cannot be written: {error.strerror or error}"))
                self._failing.add(sink.name)

    def close(self) -> None:
        for sink in self.sinks:
            try:
                sink.close()
            except OSError as error:
                if sink.name not in self._failing:
                    self._on_event(Event("sink", f"{sink.name} cannot be ended: {error.strerror or error}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def line_of(one: Streamed) -> dict[str, object]:
    """A result as JSON takes it, without its pictures."""
    spent = ("capture_ms", "queue_ms", "inference_ms", "end_to_end_ms")
    times = {name: round(getattr(one, name), 3) for name in spent}
    answer = {"said": say(one.answer), "answer": plain(one.answer)} if one.answer is not None else {}
    change = None if one.change is None else round(one.change, 1)
    return {"frame": one.index, **answer, "still": one.still, "change": change, **times}
