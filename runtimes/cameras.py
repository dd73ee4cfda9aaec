"""Where frames come from: a webcam, a video file, a network stream, a folder of pictures, a GStreamer pipeline, any iterable.

A source is opened, read and closed by one thread. Its name holds no credentials: it is made for logs.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from tasktok_edge.errors import UsageError

Frame = NDArray[np.uint8]  # (H, W, 3) RGB
PICTURES = (".jpeg", ".jpg", ".png", ".bmp")
URLS = ("rtsp", "rtsps", "http", "https", "udp", "rtmp")
PIPELINE = "gst:"


class EndedError(Exception):
    """There are no more frames, and there will be none."""


class LostError(Exception):
    """The source gave no frame, or could not be opened; it may come back."""


class DamagedError(Exception):
    """This frame came damaged; the next may be whole."""


class Source(Protocol):
    """`live` sources go on whether they are read or not, and are opened again when they are lost; `fps` None: as they come.

    read() raises one of the errors above. The other calls may raise LostError.
    """

    name: str
    live: bool
    fps: float | None

    def open(self) -> None: ...

    def read(self) -> Frame: ...

    def close(self) -> None: ...


class Webcam:
    """A camera of this machine by its number, through OpenCV."""

    live = True
    fps: float | None = None

    def __init__(self, number: int) -> None:
        self.name = f"camera {number}"
        self._number = number
        self._capture: cv2.VideoCapture | None = None

    def open(self) -> None:
        capture = cv2.VideoCapture(self._number)
        if not capture.isOpened():
            capture.release()
            raise LostError(f"{self.name} cannot be opened")
        self._capture = capture

    def read(self) -> Frame:
        assert self._capture is not None
        try:
            there, frame = self._capture.read()
        except cv2.error as error:
            raise LostError(f"{self.name}: {str(error).strip().splitlines()[-1]}") from None
        if not there:
            raise LostError(f"{self.name} gave no frame")
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


class Frames:
    """Any iterable of frames, made anew each time the source is opened."""

    def __init__(
        self, make: Callable[[], Iterable[Frame]], name: str = "frames", *, live: bool = False, fps: float | None = None
    ) -> None:
        self.name, self.live, self.fps = name, live, fps
        self._make = make
        self._left: Iterator[Frame] = iter(())

    def open(self) -> None:
        self._left = iter(self._make())

    def read(self) -> Frame:
        for frame in self._left:
            return frame
        raise EndedError

    def close(self) -> None:
        self._left = iter(())


def camera(spec: str) -> Source:
    """Turn a word of the command line into a source; UsageError where it is none.

    "0" is a webcam, "clip.mp4" a file, "pictures/" a folder, "rtsp://host/1" a stream, "gst: v4l2src" a GStreamer pipeline.
    Files, streams and pipelines are decoded by PyAV: PackageError where it is not installed.

    >>> camera("rtsp://user:secret@camera.local:554/1?token=x").name
    'rtsp://camera.local'
    """
    if spec.isdecimal():
        return Webcam(int(spec))
    path = Path(spec)
    url = urlsplit(spec)
    if not spec.startswith(PIPELINE) and url.scheme not in URLS:
        if path.is_dir():
            files = _pictures(path)
            return Frames(lambda: map(_picture, files), str(path))
        if not path.is_file():
            raise UsageError(f"there is no camera, file, folder or URL {spec!r}")
    from tasktok_edge.runtimes.video import Pipeline, Video

    if spec.startswith(PIPELINE):
        return Pipeline(spec.removeprefix(PIPELINE))
    if url.scheme in URLS:
        return Video(spec, f"{url.scheme}://{url.hostname or ''}", live=True)
    return Video(spec, str(path), live=False)


def _pictures(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
    if not files:
        raise UsageError(f"{folder} holds no picture ({', '.join(PICTURES)})")
    return files


def _picture(file: Path) -> Frame:
    data = np.fromfile(file, np.uint8) if file.is_file() else np.zeros(0, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise DamagedError(f"{file} is not a picture that OpenCV reads")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
