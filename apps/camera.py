"""`tasktok-edge camera`: frames of a camera, restored, with the task's answer drawn in, on a screen or into files."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, TextIO

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from tasktok_edge.apps.restore import plain, say
from tasktok_edge.drawing import draw_answer
from tasktok_edge.errors import UsageError, unknown_word
from tasktok_edge.recording import Recorder, head_of
from tasktok_edge.runtimes import load
from tasktok_edge.runtimes.cameras import camera
from tasktok_edge.runtimes.stream import Event, Policy, Stream, Streamed, stream

POLICIES: dict[str, Policy] = {"latest": "latest", "every": "every"}
SIDE = 384  # pixels of the height of a shown or written frame
FPS = 25.0  # of a written video whose source does not say
TELL_S = 5.0
WINDOW = "tasktok-edge"
KEYS = (27, ord("q"))  # which end it


def camera_command(
    bundle: Annotated[Path, typer.Option(help="a bundle: a folder, or a .ttk file")],
    source: Annotated[
        str, typer.Option(help='number of a webcam, video file, folder of pictures, URL (rtsp, http), or "gst: … ! appsink"')
    ] = "0",
    task: Annotated[str | None, typer.Option(help="what to restore for; needed if the bundle has several")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, npu or an engine's own name")] = "auto",
    threads: Annotated[int | None, typer.Option(help="for the engine; default: as it chooses", min=1)] = None,
    tokens: Annotated[int | None, typer.Option(help="a budget that the bundle was built with")] = None,
    policy: Annotated[str, typer.Option(help="latest: old frames are dropped; every: none is, for files")] = "latest",
    max_staleness: Annotated[float, typer.Option(help="ms after which a frame is too old to be shown; 0: never", min=0)] = 0,
    duration: Annotated[float | None, typer.Option(help="seconds, then end", min=0)] = None,
    headless: Annotated[bool, typer.Option("--headless", help="show no window")] = False,
    out: Annotated[Path | None, typer.Option(help="video to write (.mp4): degraded and restored, side by side")] = None,
    answers: Annotated[Path | None, typer.Option(help="file for the answers, a line of JSON a frame")] = None,
    record: Annotated[Path | None, typer.Option(help="new folder for frames and answers, for validate --recorded")] = None,
) -> None:
    """Restore a camera's frames as they come, and show or write them with the task's answer."""
    if policy not in POLICIES:
        raise unknown_word("policy", policy, POLICIES)
    if not headless and not _has_windows():
        raise UsageError("this OpenCV cannot show windows (opencv-python-headless): add --headless, and --out or --answers")
    for file in (out, answers):
        if file is not None and not file.parent.is_dir():
            raise UsageError(f"{file} cannot be written, there is no folder {file.parent}")
    frames, console = camera(source), Console(stderr=True)
    with ExitStack() as stack:
        session = stack.enter_context(load(bundle, device, threads=threads, tokens=tokens))
        named = _task(task, session.tasks)
        session(np.zeros((session.size, session.size, 3), np.uint8), named)  # the first call proves, and takes longer
        lines = stack.enter_context(answers.open("w", encoding="utf-8")) if answers else None
        recorder = None
        if record is not None:
            labels = {named: session.bundle.manifest.tasks[named].labels}
            recorder = stack.enter_context(Recorder(record, head_of(session), labels))
        console.print(f"{session.bundle.manifest.name} on {session.device.native}, {session.precision}", highlight=False)

        def tell(event: Event) -> None:
            console.print(f"{event.kind}: {event.told}", highlight=False, markup=False)

        limit = max_staleness or None
        results = stack.enter_context(
            stream(session, frames, task=named, policy=POLICIES[policy], max_staleness_ms=limit, on_event=tell)
        )
        sink = stack.enter_context(_Writer(out)) if out else None
        seen = _watch(results, console, lines, recorder, sink, named, duration=duration, window=not headless)
    console.print(_numbers(results, seen), highlight=False, soft_wrap=True)
    for file in (out, answers, record):
        if file is not None:
            print(f"saved {file}")


def _task(task: str | None, known: Sequence[str]) -> str:
    if task is None and len(known) > 1:
        raise UsageError(f"name the task, this bundle has {len(known)}: {', '.join(known)}")
    if task is not None and task not in known:
        raise unknown_word("task", task, known)
    return task or known[0]


def _watch(
    results: Stream,
    console: Console,
    lines: TextIO | None,
    recorder: Recorder | None,
    sink: "_Writer | None",
    task: str,
    *,
    duration: float | None,
    window: bool,
) -> list[float]:
    """Go on until the source ends, the time is over or a key is pressed; gives the end-to-end times of the last minutes."""
    begun = told = time.monotonic()
    times: list[float] = []
    for one in results:
        times = [*times[-9999:], one.end_to_end_ms]
        if lines is not None:
            lines.write(json.dumps(_line(one)) + "\n")
            lines.flush()
        if recorder is not None:
            recorder.add(f"frame {one.index}", one.frame, {task: (one.result.frame, one.result.answer)})
        if sink is not None or window:
            picture = _side_by_side(one)
            if sink is not None:
                sink.write(picture)
            if window:
                cv2.imshow(WINDOW, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
                if cv2.waitKey(1) in KEYS:
                    break
        now = time.monotonic()
        if now - told > TELL_S:
            told = now
            console.print(_numbers(results, times), highlight=False, soft_wrap=True)
        if duration is not None and now - begun > duration:
            break
    return times


def _line(one: Streamed) -> dict[str, object]:
    spent = {"queue_ms": one.queue_ms, "inference_ms": one.inference_ms, "end_to_end_ms": one.end_to_end_ms}
    times = {name: round(value, 3) for name, value in spent.items()}
    return {"frame": one.index, "said": say(one.result.answer), "answer": plain(one.result.answer), **times}


def _side_by_side(one: Streamed) -> NDArray[np.uint8]:
    drawn, said = draw_answer(one.result.frame, one.result.answer)
    width = max(2, round(one.frame.shape[1] * SIDE / one.frame.shape[0]) // 2 * 2)  # even, as codecs want it
    left, right = (np.asarray(cv2.resize(f, (width, SIDE)), np.uint8) for f in (one.frame, drawn))
    both = np.concatenate([left, right], axis=1)
    told = f"{said}  {one.inference_ms:.1f} ms".strip()
    for colour, thick in ((0, 3), (255, 1)):
        cv2.putText(both, told, (width + 8, SIDE - 12), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (colour,) * 3, thick, cv2.LINE_AA)
    return both


class _Writer:
    """A video file, opened with the size of the first picture; others are brought to that."""

    def __init__(self, file: Path) -> None:
        self._file, self._size = file, (0, 0)
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()

    def write(self, picture: NDArray[np.uint8]) -> None:
        if self._writer is None:
            self._size = (picture.shape[1], picture.shape[0])
            self._writer = cv2.VideoWriter(str(self._file), cv2.VideoWriter.fourcc(*"mp4v"), FPS, self._size)
            if not self._writer.isOpened():
                raise UsageError(f"{self._file} cannot be written as a video: name a file that ends in .mp4")
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = np.asarray(cv2.resize(picture, self._size), np.uint8)
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def _numbers(results: Stream, times: list[float]) -> str:
    c = results.counts
    told = f"{c.answered} answered, {c.dropped} dropped, {c.stale} too old, {c.refused} refused of {c.captured} frames"
    if not times:
        return told
    p50, p95 = np.percentile(times, [50, 95])
    return f"{told}; end to end {p50:.1f} ms, p95 {p95:.1f}"


def _has_windows() -> bool:
    try:
        cv2.namedWindow(WINDOW)
        cv2.destroyWindow(WINDOW)
    except cv2.error:
        return False
    return True


if __name__ == "__main__":  # python -m tasktok_edge.apps.camera
    from tasktok_edge.cli import verb

    verb("camera")()
