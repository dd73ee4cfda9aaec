"""What a device answered, frame by frame, to be judged elsewhere: numpy alone, and hashes that tie it to bundle and frames.

A folder with `record.json` (bundle, device, labels), `frames.jsonl` (a line a frame, written as it comes) and for each frame a
.npz: the frame, and for each task the restored frame and the answer's arrays.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.errors import UsageError
from tasktok_edge.runtimes.answers import Answer, Classification, Detections, Segmentation
from tasktok_edge.runtimes.session import Session

SCHEMA_VERSION = 1
HEAD, LINES = "record.json", "frames.jsonl"
Frame = NDArray[np.uint8]
Found = Mapping[str, tuple[Frame | None, Answer | None]]  # task -> restored frame, answer


def frame_sha256(frame: Frame) -> str:
    """What a frame is known by: its size and its bytes."""
    return hashlib.sha256(str(frame.shape).encode() + np.ascontiguousarray(frame).tobytes()).hexdigest()


class Recorder:
    """Writes a new recording; a context manager. `head` tells what answered: name, sha256, engine, device, precision."""

    def __init__(self, folder: Path, head: Mapping[str, str], labels: Mapping[str, Sequence[str]]) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"--record {folder} is there already: name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        told = {"schema_version": SCHEMA_VERSION, **head, "labels": {task: list(names) for task, names in labels.items()}}
        (folder / HEAD).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        self.folder, self.n = folder, 0
        self._lines = (folder / LINES).open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def add(self, name: str, frame: Frame, found: Found) -> None:
        """Write one frame (H, W, 3) uint8 RGB and what came of it."""
        arrays: dict[str, NDArray[Any]] = {"frame": frame}
        for task, (restored, answer) in found.items():
            if restored is not None:
                arrays[f"{task}/restored"] = restored
            arrays |= {f"{task}/{key}": value for key, value in _arrays(answer).items()}
        file = self.folder / f"{self.n:06d}.npz"
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        line = {"name": name, "file": file.name, "frame_sha256": frame_sha256(frame), "sha256": _file_sha256(file)}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        self.n += 1


def head_of(session: Session) -> dict[str, str]:
    """What a recording says of who answered."""
    manifest, report = session.bundle.manifest, session.report
    engine = f"{report.engine} {report.engine_version}"
    known = {"name": manifest.name, "sha256": session.bundle.sha256, "engine": engine}
    return {**known, "device": session.device.native, "precision": session.precision}


def everything(session: Session, frame: Frame, tasks: Sequence[str] | None = None) -> Found:
    """The restored frame of each task, and its answer where the bundle has a network for it."""
    asked = session.tasks if tasks is None else tasks
    functions = session.bundle.manifest.functions
    answering = [t for t in asked if any(f.kind == "predict" and f.task == t for f in functions)]
    both = session(frame, tasks=answering) if answering else {}
    return {t: (both[t].frame, both[t].answer) if t in both else (session.restore(frame, t), None) for t in asked}


def _arrays(answer: Answer | None) -> dict[str, NDArray[Any]]:
    if answer is None:
        return {}
    if isinstance(answer, Classification):
        return {"scores": answer.scores}
    if isinstance(answer, Segmentation):
        return {"mask": answer.mask}
    return {"boxes": answer.boxes, "box_labels": np.array(answer.labels, np.int64), "box_scores": answer.scores}


class Recording:
    """Reads one; what is missing, damaged or of a newer schema is a UsageError that names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
            lines = [json.loads(line) for line in (folder / LINES).read_text(encoding="utf-8").splitlines()]
            self.head = {key: str(head[key]) for key in ("name", "sha256", "engine", "device", "precision")}
            self.labels = {str(task): tuple(map(str, names)) for task, names in head["labels"].items()}
            self.places = {str(line["frame_sha256"]): i for i, line in enumerate(lines)}
            self._lines = [(str(line["name"]), str(line["file"]), str(line["sha256"])) for line in lines]
            version = int(head["schema_version"])
        except FileNotFoundError as error:
            raise UsageError(f"{folder} is no recording: {Path(str(error.filename)).name} is missing there") from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UsageError(f"{folder} is no recording that can be read: {error!r}") from None
        if version > SCHEMA_VERSION:
            told = f"{folder} has the schema {version}, this version reads up to {SCHEMA_VERSION}"
            raise UsageError(f"{told}: update tasktok-edge")
        if not lines:
            raise UsageError(f"{folder} holds no frame")
        self.tasks = tuple(self.labels)

    def __len__(self) -> int:
        return len(self._lines)

    def name(self, index: int) -> str:
        return self._lines[index][0]

    def read(self, index: int) -> tuple[Frame, Found]:
        """One frame, and what the device made of it."""
        name, file, sha256 = self._lines[index]
        path = self.folder / Path(file).name
        if not path.is_file() or _file_sha256(path) != sha256:
            raise UsageError(f"{path} is not what was recorded of {name}: copy the recording again")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                kept = {key: arrays[key] for key in arrays.files}
            return kept["frame"], {task: (kept.get(f"{task}/restored"), self._answer(task, kept)) for task in self.tasks}
        except (ValueError, LookupError, OSError, zipfile.BadZipFile) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None

    def _answer(self, task: str, kept: Mapping[str, NDArray[Any]]) -> Answer | None:
        labels = self.labels[task]
        if f"{task}/scores" in kept:
            scores = kept[f"{task}/scores"]
            return Classification(int(scores.argmax()), labels[int(scores.argmax())], scores)
        if f"{task}/mask" in kept:
            return Segmentation(kept[f"{task}/mask"], labels)
        if f"{task}/boxes" in kept:
            found = kept[f"{task}/box_labels"].tolist()
            return Detections(kept[f"{task}/boxes"], found, kept[f"{task}/box_scores"], labels)
        return None


def _file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
