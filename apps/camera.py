"""`tasktok-edge camera`: frames of a camera, restored, the task's answer drawn in, on a screen, in a page or into files."""

import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from rich.console import Console

from tasktok_edge.apps.live import AUTO, OWN, Live, Wish, open_model, prove
from tasktok_edge.apps.show import Film, Window, has_windows
from tasktok_edge.errors import UsageError, unknown_word
from tasktok_edge.recording import Recorder, head_of
from tasktok_edge.runtimes.cameras import Frames, Source, camera
from tasktok_edge.runtimes.sinks import Each, JsonLines, Sink, Sinks
from tasktok_edge.runtimes.still import LEVELS
from tasktok_edge.runtimes.stream import Event, Policy, Stream, stream

POLICIES: dict[str, Policy] = {"latest": "latest", "every": "every"}
SCENES = "scenes"
TELL_S, LOG_S = 5.0, 60.0  # between two lines of numbers on a terminal, and in a log
POLL_S = 0.05  # how often keys and wishes are looked at while no frame comes
KEPT = 10_000  # times that the last line is about
TOKEN = "TASKTOK_EDGE_TOKEN"


def camera_command(
    bundle: Annotated[list[Path], typer.Option(help="a folder, or a .ttk file; with --serve several to change between")],
    source: Annotated[
        str,
        typer.Option(
            help='number of a webcam, video file, folder of pictures, URL, "gst: …", or scenes, scenes:snow, scenes:snow:4'
        ),
    ] = "0",
    task: Annotated[str | None, typer.Option(help="what to restore for; needed if the bundle has several")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, npu or an engine's own name")] = "auto",
    threads: Annotated[int | None, typer.Option(help="for the engine; default: as it chooses", min=1)] = None,
    tokens: Annotated[int | None, typer.Option(help="a budget that the bundle was built with")] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="frames a second to keep up with, by the bundle's largest budget that does", min=0.1),
    ] = None,
    policy: Annotated[str, typer.Option(help="latest: old frames are dropped; every: none is, for files")] = "latest",
    max_staleness: Annotated[float, typer.Option(help="ms after which a frame is too old to be shown; 0: never", min=0)] = 0,
    still: Annotated[
        float, typer.Option(help="levels of 255 by which a part must change to be restored again; 0: every frame is", min=0)
    ] = LEVELS,
    duration: Annotated[float | None, typer.Option(help="seconds, then end", min=0)] = None,
    headless: Annotated[bool, typer.Option("--headless", help="show no window")] = False,
    out: Annotated[Path | None, typer.Option(help="video to write (.mp4): degraded and restored, side by side")] = None,
    answers: Annotated[Path | None, typer.Option(help="file for the answers, a line of JSON a frame")] = None,
    record: Annotated[Path | None, typer.Option(help="new folder for frames and answers, for validate --recorded")] = None,
    serve: Annotated[
        str | None,
        typer.Option(help=f"PORT or HOST:PORT of a page to look at and to change things; its token may be in {TOKEN}"),
    ] = None,
) -> None:
    """Restore a camera's frames as they come, and show, serve or write them with the task's answer."""
    if policy not in POLICIES:
        raise unknown_word("policy", policy, POLICIES)
    if len(bundle) > 1 and serve is None:
        raise UsageError("several bundles are for --serve, whose page changes between them: give one")
    if tokens is not None and fps is not None:
        raise UsageError("--tokens fixes the budget, --fps chooses it: give one of them")
    window = not headless and serve is None
    if window and not has_windows():
        raise UsageError(
            "this OpenCV cannot show windows (opencv-python-headless): add --headless, with --out or --answers, or --serve"
        )
    for file in (out, answers):
        if file is not None and not file.parent.is_dir():
            raise UsageError(f"{file} cannot be written, there is no folder {file.parent}")
    from tasktok_edge.cli import need

    # What OpenCV has to say of a camera that is not there, an event says once.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    frames, console = _source(source), Console(stderr=True)
    with ExitStack() as stack:
        opening = partial(
            open_model, device=device, threads=threads, tokens=tokens, budgets=serve is not None or fps is not None
        )
        model = opening(bundle[0])
        stack.callback(model.close)
        start = Wish(model, model.own.named(task), AUTO if fps else OWN)
        for session in model.of_budget(start.budget):
            prove(session, start.task)
        levels = (still or None) if record is None else None  # each frame that is recorded has an answer of its own
        live = Live(bundle, opening, start, frames.name, max_staleness or None, levels)

        def tell(event: Event) -> None:
            live.tell(event)
            console.print(f"{event.kind}: {event.told}", highlight=False, markup=False, soft_wrap=True)

        sinks = stack.enter_context(Sinks(_sinks(live, stack, window, out, answers, record), tell))
        if serve is not None:
            need("camera", "fastapi", "uvicorn", "prometheus_client")
            from tasktok_edge.apps.serve import serving

            address = stack.enter_context(serving(live, serve, os.environ.get(TOKEN) or None))
            console.print(f"serving {address}", highlight=False, soft_wrap=True)
        own = model.own
        console.print(f"{own.bundle.manifest.name} on {own.device.native}, {own.precision}", highlight=False)
        results = stack.enter_context(
            stream(
                model.of_budget(start.budget),
                frames,
                task=start.task,
                policy=POLICIES[policy],
                max_staleness_ms=max_staleness or None,
                still=levels,
                fps=fps,
                on_event=tell,
            )
        )
        live.results = results
        times = deque[float](maxlen=KEPT)
        with suppress(KeyboardInterrupt):  # how a camera is ended
            _watch(results, live, sinks, times, console, duration=duration, window=window)
    counts = results.counts
    if not counts.captured and not frames.live and live.told["lost"]:
        raise UsageError(next(event.told for _, event in live.events if event.kind == "lost"))
    console.print(_numbers(results, times), highlight=False, soft_wrap=True)
    for file in (out, answers, record):
        if file is not None:
            print(f"saved {file}" + (f", without {n} results" if (n := sinks.missed[str(file)]) else ""))


def _source(words: str) -> Source:
    if words != SCENES and not words.startswith(f"{SCENES}:"):
        return camera(words)
    from tasktok_edge.data.live import FPS, moving_scenes

    endless = moving_scenes(words.removeprefix(SCENES).removeprefix(":"))
    return Frames(lambda: endless, words, fps=FPS)


def _sinks(
    live: Live, stack: ExitStack, window: bool, out: Path | None, answers: Path | None, record: Path | None
) -> list[Sink]:
    found: list[Sink] = [live]
    if out is not None:
        found.append(Film(out))
    if answers is not None:
        found.append(JsonLines(answers))
    if record is not None:
        task, own = live.now.task, live.now.model.own
        labels = {task: own.bundle.manifest.tasks[task].labels}
        recorder = stack.enter_context(Recorder(record, head_of(own), labels))
        found.append(
            Each(lambda one: recorder.add(f"frame {one.index}", one.frame, {task: (one.restored, one.answer)}), str(record))
        )
    if window:
        found.append(Window())
    return found


def _watch(
    results: Stream,
    live: Live,
    sinks: Sinks,
    times: deque[float],
    console: Console,
    *,
    duration: float | None,
    window: bool,
) -> None:
    """Go on until the source ends, the time is over or a key is pressed; end-to-end times go into `times`."""
    begun = told = time.monotonic()
    while not results.ended:
        one = results.poll(POLL_S)
        live.obey()
        if one is not None:
            times.append(one.end_to_end_ms)
            sinks.write(one)
        if window and Window.left():
            break
        now = time.monotonic()
        if now - told > (TELL_S if console.is_terminal else LOG_S):
            told = now
            console.print(_numbers(results, times), highlight=False, soft_wrap=True)
        if duration is not None and now - begun > duration:
            break


def _numbers(results: Stream, times: Sequence[float]) -> str:
    c = results.counts
    told = (
        f"{c.answered} answered, {c.still} still, {c.dropped} dropped, {c.stale} too old, {c.damaged} damaged, "
        f"{c.refused} refused of {c.captured} frames"
    )
    if not times:
        return told
    p50, p95 = np.percentile(times, [50, 95])
    return f"{told}; end to end {p50:.1f} ms, p95 {p95:.1f}"


if __name__ == "__main__":  # python -m tasktok_edge.apps.camera
    from tasktok_edge.cli import verb

    verb("camera")()
