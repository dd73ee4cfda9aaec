"""Sources by their words; video through PyAV, whole and damaged; a GStreamer pipeline; a file that is written."""

import http.server
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tasktok_edge.errors import UsageError
from tasktok_edge.runtimes.cameras import DamagedError, EndedError, Frame, LostError, Source, Webcam, camera
from tasktok_edge.runtimes.video import Video, VideoFile

FRAMES = 30


def picture(i: int) -> Frame:
    """A block that moves, so that later frames of a video depend on earlier ones."""
    frame = np.full((64, 96, 3), 90, np.uint8)
    frame[10:40, 2 * i : 2 * i + 30] = (200, 40, 8 * i)
    return frame


def write(file: Path) -> Path:
    video = VideoFile(file)
    for i in range(FRAMES):
        video.write(picture(i), 5.0 + i / 20)
    video.close()
    return file


def read(source: Source) -> tuple[list[Frame], int]:
    """All frames, and how many came damaged."""
    source.open()
    frames, damaged = list[Frame](), 0
    while True:
        try:
            frames.append(source.read())
        except DamagedError:
            damaged += 1
        except EndedError:
            source.close()
            return frames, damaged


def test_a_written_video_is_read_as_it_was(tmp_path: Path) -> None:
    source = camera(str(write(tmp_path / "a.mp4")))
    frames, damaged = read(source)
    assert len(frames) == FRAMES and not damaged and not source.live
    assert source.fps == pytest.approx(20, rel=0.1)
    away = [np.abs(frame.astype(int) - picture(i)).mean() for i, frame in enumerate(frames)]
    assert max(away) < 6  # H.264, 4:2:0


def test_what_was_written_before_the_power_went_can_be_played(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "a.mp4")
    for i in range(120):
        video.write(picture(i % 30), i / 20)
    frames, _ = read(camera(str(tmp_path / "a.mp4")))  # it was not closed
    assert 50 <= len(frames) < 120
    video.close()


def test_sizes_may_change_and_times_stand_still(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "a.mp4")
    for size in ((40, 61), (41, 60), (80, 20)):
        video.write(np.zeros((*size, 3), np.uint8), 1.0)
    video.close()
    frames, _ = read(camera(str(tmp_path / "a.mp4")))
    assert [f.shape for f in frames] == [(40, 60, 3)] * 3


@pytest.mark.parametrize("name", ["a.nothing", "none/a.mp4"])
def test_a_video_that_cannot_be_written_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written as a video"):
        VideoFile(tmp_path / name)


def test_damaged_packets_are_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    file = write(tmp_path / "a.ts")
    data = bytearray(file.read_bytes())
    for place in np.random.default_rng(0).integers(len(data) // 4, len(data), 40):
        data[place] ^= 0xFF
    file.write_bytes(data)
    frames, damaged = read(camera(str(file)))
    assert damaged and len(frames) > FRAMES // 5 and len(frames) + damaged <= 2 * FRAMES
    assert all(frame.shape == (64, 96, 3) for frame in frames)


def test_a_file_that_is_no_video_is_lost(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(LostError, match=r"a\.mp4 cannot be opened"):
        camera(str(tmp_path / "a.mp4")).open()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{one.server_address[1]}"
        one.shutdown()


def test_a_file_on_a_server_ends_as_a_file_does(server: str, tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    source = camera(f"{server}/a.mp4?key=secret")
    frames, _ = read(source)
    assert len(frames) == FRAMES and not source.live and source.name == "http://127.0.0.1"


def test_what_goes_wrong_with_a_url_does_not_tell_its_secrets(server: str) -> None:
    for url in (f"{server}/none.mp4", "rtsp://user:secret@127.0.0.1:9/1", "http://user:secret@127.0.0.1:9/1"):
        with pytest.raises(LostError) as told:
            camera(url).open()
        assert "secret" not in str(told.value) and told.value.__suppress_context__


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: str(folder), "holds no picture"),
        (lambda folder: str(folder / "none.mp4"), "no camera, file, folder or URL"),
    ],
)
def test_what_is_no_camera_is_told(make: Callable[[Path], str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told):
        camera(make(tmp_path))


def test_a_webcam_that_is_not_there_is_lost() -> None:
    source = camera("97")
    assert isinstance(source, Webcam) and source.live
    with pytest.raises(LostError, match="camera 97 cannot be opened"):
        source.open()


def test_without_gstreamer_its_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match=r"there is no gst-launch-1\.0"):
        camera("gst: videotestsrc")


@pytest.mark.parametrize(("code", "told"), [(0, EndedError), (1, LostError)])
def test_a_pipeline_that_is_slow_to_leave(
    code: int, told: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "gst-launch-1.0"
    head = r"YUV4MPEG2 W16 H16 F30:1 Ip A1:1 C420jpeg\nFRAME\n"
    tool.write_text(f"#!/bin/sh\nprintf '{head}'\nhead -c 384 /dev/zero\nexec >&-\nsleep 0.3\nexit {code}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    source = camera("gst: videotestsrc")
    source.open()
    assert source.read().shape == (16, 16, 3)
    with pytest.raises(told):
        source.read()
    source.close()


@pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="GStreamer's tools are not installed")
@pytest.mark.parametrize("end", ["", "! appsink", "! videoconvert ! appsink"])
def test_a_gstreamer_pipeline(end: str) -> None:
    source = camera(f"gst: videotestsrc num-buffers=12 pattern=red ! video/x-raw,width=200,height=100,framerate=30/1 {end}")
    frames, damaged = read(source)
    assert len(frames) == 12 and not damaged and source.live
    assert frames[3].shape == (100, 200, 3) and np.abs(frames[3].astype(int) - (255, 0, 0)).max() < 6


@pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="GStreamer's tools are not installed")
def test_a_pipeline_that_gst_refuses_is_lost(capfd: pytest.CaptureFixture[str]) -> None:
    source = camera("gst: nosuchelement ! appsink")
    with pytest.raises(LostError, match="GStreamer pipeline cannot be opened"):
        source.open()
    source.close()
    assert "nosuchelement" in capfd.readouterr().err


def test_a_silent_stream_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasktok_edge.runtimes.video.OPEN_S", 0.5)

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(2)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(LostError):
            Video(f"http://127.0.0.1:{one.server_address[1]}/", "silent", live=True).open()
        assert time.monotonic() - begun < 1.9
        one.shutdown()
