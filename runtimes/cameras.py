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
OPEN_MS = READ_MS = 5000  # what FFmpeg may take for a network stream before it gives up


class EndedError(Exception):
    """There are no more frames, and there will be none."""


class LostError(Exception):
    """The source gave no frame, or could not be opened; it may come back."""


class Source(Protocol):
    """`live` sources go on whether they are read or not, and are opened again when they are lost; `fps` None: as they come."""

    name: str
    live: bool
    fps: float | None

    def open(self) -> None: ...

    def read(self) -> Frame: ...

    def close(self) -> None: ...


class Video:
    """Whatever OpenCV captures: the number of a webcam, a file, a URL, or a GStreamer pipeline that ends in appsink."""

    def __init__(self, what: int | str, name: str, *, live: bool, backend: int = cv2.CAP_ANY) -> None:
        self.name, self.live = name, live
        self.fps: float | None = None
        self._what, self._backend = what, backend
        self._capture: cv2.VideoCapture | None = None

    def open(self) -> None:
        network = self.live and isinstance(self._what, str) and self._backend == cv2.CAP_FFMPEG
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_MS] if network else []
        capture = cv2.VideoCapture(self._what, self._backend, limits)  # type: ignore[arg-type, call-overload]
        if not capture.isOpened():
            capture.release()
            raise LostError(f"{self.name} cannot be opened")
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        self._capture, self.fps = capture, None if self.live or not 1 <= fps <= 240 else fps

    def read(self) -> Frame:
        assert self._capture is not None
        try:
            there, frame = self._capture.read()
        except cv2.error as error:
            raise LostError(f"{self.name}: {str(error).strip().splitlines()[-1]}") from None
        if not there:
            raise LostError(f"{self.name} gave no frame") if self.live else EndedError
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

    "0" is a webcam, "clip.mp4" a file, "pictures/" a folder, "rtsp://host/1" a stream, "gst: v4l2src ! … ! appsink" a pipeline.

    >>> camera("rtsp://user:secret@camera.local:554/1?token=x").name
    'rtsp://camera.local'
    """
    if spec.isdecimal():
        return Video(int(spec), f"camera {spec}", live=True)
    if spec.startswith(PIPELINE):
        if "GStreamer:                   YES" not in cv2.getBuildInformation():
            raise UsageError(
                "this OpenCV was built without GStreamer: use a build that has it, such as Debian's python3-opencv"
            )
        return Video(spec.removeprefix(PIPELINE).strip(), "GStreamer pipeline", live=True, backend=cv2.CAP_GSTREAMER)
    url = urlsplit(spec)
    if url.scheme in URLS:
        return Video(spec, f"{url.scheme}://{url.hostname or ''}", live=True, backend=cv2.CAP_FFMPEG)
    path = Path(spec)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
        if not files:
            raise UsageError(f"{path} holds no picture ({', '.join(PICTURES)})")
        return Frames(lambda: map(_picture, files), str(path))
    if not path.is_file():
        raise UsageError(f"there is no camera, file, folder or URL {spec!r}")
    return Video(spec, str(path), live=False)


def _picture(file: Path) -> Frame:
    data = np.fromfile(file, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        return np.zeros((0, 0, 3), np.uint8)  # what a session refuses: the stream tells of it and goes on
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
