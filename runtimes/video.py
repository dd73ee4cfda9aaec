"""Video by PyAV (FFmpeg): files, network streams and GStreamer pipelines as sources, and a file that is written as it comes."""

import shlex
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.errors import PackageError, UsageError
from tasktok_edge.runtimes.cameras import DamagedError, EndedError, Frame, LostError

try:
    import av
except ModuleNotFoundError:
    raise PackageError('video is decoded by PyAV, not installed: pip install "tasktok-edge[camera]"') from None

OPEN_S = READ_S = 5.0  # what a network stream may take before it counts as lost
EXIT_S = 1.0  # what a pipeline may take to leave, after the last of its frames
# Of streams: a second to find out what they are, no frames held back, RTSP over TCP, whose pictures come whole. Not nobuffer:
# it throws away what was looked at, the first key frame too.
REMOTE = {"flags": "low_delay", "analyzeduration": "1000000", "rtsp_transport": "tcp"}
CODECS = ("libx264", "mpeg4")  # the first that FFmpeg was built with
TICK = Fraction(1, 1000)  # s
GROUP = 50  # pictures of a fragment
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}  # what is cut short plays up to there


class Video:
    """What FFmpeg reads. A frame that its decoder calls corrupt is a DamagedError; what it conceals silently is not seen."""

    fps: float | None = None

    def __init__(self, what: str, name: str, *, live: bool) -> None:
        self.name, self.live = name, live
        self._what = what
        self._container: Any = None
        self._packets: Iterator[Any] = iter(())
        self._decoded: deque[Any] = deque()
        self._to_rgb = av.video.reformatter.VideoReformatter()

    def open(self) -> None:
        self._open(self._what)

    def _open(self, what: str, kind: str | None = None) -> None:
        remote = "://" in what
        try:
            self._container = container = av.open(
                what, format=kind, options=REMOTE if remote else {}, timeout=(OPEN_S, READ_S) if remote else None
            )
        except (av.FFmpegError, OSError) as error:  # its own words hold the URL
            raise LostError(f"{self.name} cannot be opened: {error.strerror}") from None
        if not container.streams.video:
            raise LostError(f"{self.name} holds no video")
        stream = container.streams.video[0]
        stream.thread_type = "SLICE" if self.live else "AUTO"  # threads by frames hold several of them back
        if not self.live or (remote and container.duration):  # a file on a server ends as others do
            rate = float(stream.average_rate or 0)
            self.live, self.fps = False, rate if 1 <= rate <= 240 else None
        self._packets = container.demux(stream)

    def read(self) -> Frame:
        while not self._decoded:
            try:
                packet = next(self._packets, None)
                if packet is None:
                    raise LostError(f"{self.name} gave no frame") if self.live else EndedError
                self._decoded.extend(packet.decode())
            except av.error.InvalidDataError:
                raise DamagedError(f"{self.name}: a packet cannot be decoded") from None
            except av.FFmpegError as error:
                raise LostError(f"{self.name}: {error.strerror}") from None
        frame = self._decoded.popleft()
        if frame.is_corrupt:
            raise DamagedError(f"{self.name}: a frame came damaged")
        upright = np.rot90(self._to_rgb.reformat(frame, format="rgb24").to_ndarray(), frame.rotation // 90)
        return np.ascontiguousarray(upright)

    def close(self) -> None:
        self._decoded.clear()
        self._packets = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None


class Pipeline(Video):
    """A GStreamer pipeline, run by gst-launch-1.0; its raw video comes through a pipe.

    pip's OpenCV is built without GStreamer, and Debian's bindings are for Debian's Python: the tool goes with any. An appsink
    at the end may be written, and is not needed.
    """

    def __init__(self, pipeline: str) -> None:
        super().__init__(pipeline, "GStreamer pipeline", live=True)
        launch = shutil.which("gst-launch-1.0")
        if launch is None:
            raise UsageError("there is no gst-launch-1.0: install GStreamer's tools (Debian: gstreamer1.0-tools)")
        try:
            words = shlex.split(pipeline)
        except ValueError as error:
            raise UsageError(f"this is no GStreamer pipeline: {error}") from None
        if words and words[-1] == "appsink":
            words = words[:-1]
        if words and words[-1] == "!":
            words = words[:-1]
        if not words:
            raise UsageError('a GStreamer pipeline is empty: write "gst: v4l2src", elements joined by !')
        raw = "! videoconvert ! video/x-raw,format=I420 ! y4menc ! fdsink fd=1"
        self._command = [launch, "--quiet", *words, *raw.split()]
        self._child: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        # What it complains of names the element; it goes to stderr with everything else of GStreamer's.
        self._child = child = subprocess.Popen(self._command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert child.stdout is not None
        self._open(f"pipe:{child.stdout.fileno()}", "yuv4mpegpipe")

    def read(self) -> Frame:
        try:
            return super().read()
        except LostError:
            if self._child is not None:
                with suppress(subprocess.TimeoutExpired):  # its end of the pipe closes before it is gone
                    if self._child.wait(EXIT_S) == 0:
                        raise EndedError from None  # such as of a file
            raise

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            assert self._child.stdout is not None
            self._child.stdout.close()
            self._child = None
        super().close()


class VideoFile:
    """A video (H.264 in MP4, or what the suffix says) of the first picture's size, each picture at the time it was captured.

    It is written in fragments: what is there when the power goes can be played. Raises UsageError for a name that no
    container goes by, and OSError as files do, a full disk too.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        options = FRAGMENTS if file.suffix in (".mp4", ".mov", ".m4v") else {}
        try:
            file.open("wb").close()  # PyAV would find out at the first picture
            self._container = av.open(str(file), "w", options=options, container_options={"flush_packets": "1"})
        except (OSError, ValueError) as error:
            told = error.strerror if isinstance(error, OSError) else "no container has this suffix"
            raise UsageError(f"{file} cannot be written as a video ({told}): name a file that ends in .mp4") from None
        codec = next(name for name in CODECS if name in av.codecs_available)
        quick = {"preset": "veryfast", "tune": "zerolatency", "crf": "21"} if codec == "libx264" else {}
        stream: Any = self._container.add_stream(codec, rate=30, options=quick)
        stream.pix_fmt, stream.codec_context.time_base, stream.codec_context.gop_size = "yuv420p", TICK, GROUP
        self._stream = stream
        self._begun_s: float | None = None
        self._last = -1

    def write(self, picture: NDArray[np.uint8], at_s: float) -> None:
        """Append a picture (H, W, 3) RGB whose time is `at_s` seconds of any clock that does not go back."""
        height, width = (side // 2 * 2 for side in picture.shape[:2])  # even, as codecs want it
        if self._begun_s is None:
            self._begun_s = at_s
            self._stream.width, self._stream.height = width, height
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
        frame = frame.reformat(width=self._stream.width, height=self._stream.height, format="yuv420p")
        self._last = max(self._last + 1, round((at_s - self._begun_s) / TICK))
        frame.pts, frame.time_base = self._last, TICK
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        try:
            if self._begun_s is not None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
