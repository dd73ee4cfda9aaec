"""What restoring gives each task on degraded video, and what not restoring still scenes saves and misses.

    python scripts/study_video.py BUNDLE --out apps/video.jpg

Clips are of held-out scenes, 15 frames a second: for a second and a half things move, then they stand still; noise is drawn
anew for each frame. The bundle answers through runtimes.stream, each frame, and again with still scenes left out. Metrics are
cls top-1 / seg mIoU / det mAP; `clean` and `degraded` are the server's networks that were trained on clean frames.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tasktok_edge.data.live import FPS, degraded_clip
from tasktok_edge.data.scenes import Frame
from tasktok_edge.drawing import draw_answer
from tasktok_edge.evidence import Observation, Truth, meter, observe
from tasktok_edge.metrics import same_answer
from tasktok_edge.model.checkpoint import load_checkpoint, load_oracles
from tasktok_edge.reference import Reference
from tasktok_edge.runtimes import Session, load
from tasktok_edge.runtimes.answers import Answer
from tasktok_edge.runtimes.cameras import Frames
from tasktok_edge.runtimes.still import LEVELS
from tasktok_edge.runtimes.stream import Streamed, stream
from tasktok_edge.scores import without_restoration

FIRST = 4000  # scenes of `test` that no other figure is of
MOVING, STANDING = 22, 22  # frames of a clip
SHOWN = (0, 11, 21)  # frames in the picture
KINDS = ("clean", "degraded", "server", "bundle", "bundle, still left out")
Image = NDArray[np.uint8]


def answered(session: Session, frames: Sequence[Image], task: str, still: float | None) -> list[Streamed]:
    """Every frame of a clip through a stream."""
    with stream(session, Frames(lambda: frames), task=task, policy="every", still=still) as results:
        return list(results)


def truth_of(frame: Frame) -> Truth:
    return Truth(frame.label, frame.semantic, frame.boxes, frame.box_labels)


def main(
    bundle: Annotated[Path, typer.Argument()],
    out: Annotated[Path, typer.Option(help="picture to write")] = Path("out/video.jpg"),
    clips: Annotated[int, typer.Option(min=1)] = 24,
    degradation: Annotated[list[str] | None, typer.Option(help="NAME or NAME:SEVERITY")] = None,
) -> None:
    """Run it and print the tables."""
    torch.set_num_threads(1)
    console = Console(width=150)
    server = load_checkpoint("scenes-server")
    alone, restored = without_restoration(load_oracles(server.path), server.model), Reference(server.model)
    accuracy = Table("degradation", "frames", *KINDS, title=f"cls / seg / det on {clips} clips each")
    saved = Table(
        "degradation", "moving: left out", "of these, another answer", "standing: left out", title=f"threshold {LEVELS}"
    )
    rows: list[Image] = []
    with load(bundle, threads=1) as session:
        tasks = session.tasks
        for words in degradation or ["mix-b", "noise:1", "low-light:3", "haze:3"]:
            name, _, severity = words.partition(":")
            seen: dict[tuple[str, str], list[Observation]] = defaultdict(list)
            moving, standing, other = list[bool](), list[bool](), list[bool]()
            for clip in track(range(clips), words, console=Console(stderr=True), transient=True):
                times = [min(i, MOVING - 1) / FPS for i in range(MOVING + STANDING)]
                made = list(degraded_clip("test", FIRST + clip, times, degradation=name, severity=int(severity or 3)))
                frames = [frame for _, frame in made]
                for task in tasks:
                    each, fewer = (answered(session, frames, task, still) for still in (None, LEVELS))
                    lines: dict[str, Sequence[Answer | None]] = {
                        "clean": [alone(truth.image, task) for truth, _ in made],
                        "degraded": [alone(frame, task) for frame in frames],
                        "server": [restored.predict(frame, task) for frame in frames],
                        "bundle": [one.answer for one in each],
                        "bundle, still left out": [one.answer for one in fewer],
                    }
                    for kind, found in lines.items():
                        for answer, (truth, _) in zip(found, made, strict=True):
                            assert answer is not None
                            seen[kind, task].append(observe(answer, truth_of(truth)))
                    moving += [one.still for one in fewer[1:MOVING]]
                    standing += [one.still for one in fewer[MOVING:]]
                    for one, late in zip(each[:MOVING], fewer[:MOVING], strict=True):
                        if late.still:
                            assert one.answer is not None and late.answer is not None
                            other.append(not same_answer(one.answer, late.answer))
                    if not clip and task == "det":
                        rows.append(_row(words, each, lines["degraded"]))
            n = clips * (MOVING + STANDING)
            figures = {key: float(meter(key[1], found)(np.ones((1, len(found))))[0]) for key, found in seen.items()}
            accuracy.add_row(
                words, str(n), *(" / ".join(f"{100 * figures[kind, task]:.1f}" for task in tasks) for kind in KINDS)
            )
            saved.add_row(words, _share(moving), _share(other), _share(standing))
    console.print(accuracy)
    console.print(saved)
    out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    console.print(f"saved {out}")


def _share(found: Sequence[bool]) -> str:
    return f"{np.mean(found):.1%}" if found else "-"


def _row(words: str, found: Sequence[Streamed], without: Sequence[Answer | None]) -> Image:
    """Some frames of a clip with the answers drawn in: degraded, by who does not restore; and restored."""
    pairs = [(found[i].frame, without[i]) for i in SHOWN] + [(found[i].restored, found[i].answer) for i in SHOWN]
    row = np.concatenate([draw_answer(frame, answer)[0] for frame, answer in pairs if answer], axis=1)
    for place, told in ((6, words), (6 + row.shape[1] // 2, f"{words}, restored")):
        cv2.putText(row, told, (place, 248), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return row


if __name__ == "__main__":
    typer.run(main)
