"""`tasktok-edge run BUNDLE PICTURE…`: restore pictures on this machine and say what the task sees."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tasktok_edge.errors import FrameError, UsageError
from tasktok_edge.recording import Recorder, everything, head_of
from tasktok_edge.runtimes import Session, load
from tasktok_edge.runtimes.answers import plain, say


def restore_command(
    bundle: Annotated[Path, typer.Argument(help="a bundle: a folder, or a .ttk file")],
    pictures: Annotated[list[Path], typer.Argument(help="PNG or JPEG files of any size")],
    task: Annotated[str | None, typer.Option(help="what to restore for; needed if the bundle has several")] = None,
    out: Annotated[Path, typer.Option(help="folder for the restored pictures")] = Path("out/restored"),
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, npu or an engine's own name")] = "auto",
    tokens: Annotated[int | None, typer.Option(help="a budget that the bundle was built with")] = None,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="run the engine in a process of its own: for bundles of others")
    ] = False,
    public_key: Annotated[Path | None, typer.Option(help="PEM file: open only a bundle that its owner signed")] = None,
    record: Annotated[
        Path | None, typer.Option(help="new folder: keep frames and answers for validate --recorded, of all tasks or --task")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Restore pictures with a bundle and give the task's answer for each."""
    frames = [read_picture(path) for path in pictures]
    names = [path.stem for path in pictures]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"two pictures are named {', '.join(sorted(twice))}: their restored files would be one")
    with load(bundle, device, tokens=tokens, isolate=isolate, public_key=public_key) as session:
        if record is not None:
            _record(session, frames, [path.name for path in pictures], task, record)
            return
        rows = list(_restore(session, frames, names, task, out))
        where = f"{session.bundle.manifest.name} on {session.device.native}, {session.precision}"
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("picture", "answer", "restored", title=where)
    for row in rows:
        table.add_row(row["picture"], row["said"], row["restored"])
    Console(soft_wrap=True).print(table)


def _restore(
    session: Session, frames: list[NDArray[np.uint8]], names: list[str], task: str | None, out: Path
) -> Iterator[dict[str, Any]]:
    # A checkpoint may have no network for a task: its bundle restores all the same, and the row says so.
    for frame, name in zip(frames, names, strict=True):
        restored, answer = session.look(frame, task)
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{name}.png"
        if not cv2.imwrite(str(path), cv2.cvtColor(restored, cv2.COLOR_RGB2BGR)):
            raise UsageError(f"{path} could not be written: choose another --out")
        said = "no answer: the bundle holds no task network" if answer is None else say(answer)
        yield {"picture": name, "restored": str(path), "said": said, "answer": plain(answer) if answer is not None else None}


def _record(session: Session, frames: list[NDArray[np.uint8]], names: list[str], task: str | None, folder: Path) -> None:
    tasks = session.tasks if task is None else (session.named(task),)
    labels = {t: session.bundle.manifest.tasks[t].labels for t in tasks}
    with Recorder(folder, head_of(session), labels) as recorder:
        for frame, name in zip(frames, names, strict=True):
            recorder.add(name, frame, everything(session, frame, tasks))
    print(f"recorded {len(frames)} frames for {', '.join(tasks)} in {folder}")


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture file as (H, W, 3) uint8 RGB; FrameError where it is none."""
    if not path.is_file():
        raise FrameError(f"there is no picture at {path}")
    data = np.fromfile(path, np.uint8)  # imread would print its own complaint
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise FrameError(f"{path} is not a picture that OpenCV reads: give a PNG or JPEG file")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
