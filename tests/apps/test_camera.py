"""`tasktok-edge camera` as a person types it on a box without a screen."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

from tasktok_edge.apps import camera
from tasktok_edge.cli import run
from tasktok_edge.recording import Recording
from tests.helpers_bundle import build

pytest.importorskip("openvino")
FRAMES = 12
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("out") / "b", "openvino")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 25, (60, 40))
    for i in range(FRAMES):
        writer.write(np.full((40, 60, 3), 20 * i, np.uint8))
    writer.release()
    return file


def test_a_clip_becomes_a_video_answers_and_a_recording(
    bundle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["camera", "--source", str(clip), "--bundle", str(bundle), "--task", "seg", "--headless", "--policy", "every"]
    outputs = {"--out": tmp_path / "a.mp4", "--answers": tmp_path / "a.jsonl", "--record": tmp_path / "record"}
    assert run([*words, *(str(word) for pair in outputs.items() for word in pair)]) == 0
    told = capsys.readouterr()
    assert (
        "12 answered, 0 still, 0 dropped, 0 too old, 0 damaged, 0 refused of 12 frames" in told.err
        and f"saved {tmp_path / 'a.mp4'}" in told.out
    )
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(FRAMES))
    assert all(line["end_to_end_ms"] >= line["inference_ms"] > 0 and line["answer"]["shares"] for line in lines)
    video, shown = cv2.VideoCapture(str(tmp_path / "a.mp4")), 0
    while video.grab():
        shown += 1
    assert shown == FRAMES and video.get(cv2.CAP_PROP_FRAME_WIDTH) == 2 * 576 and video.get(cv2.CAP_PROP_FRAME_HEIGHT) == 384
    recording = Recording(tmp_path / "record")
    frame, found = recording.read(3)
    assert len(recording) == FRAMES and frame.shape == (40, 60, 3) and found["seg"][1] is not None


def test_it_ends_when_its_time_is_over(bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["camera", "--source", str(clip), "--bundle", str(bundle), "--task", "cls", "--headless", "--duration", "0.3"]
    assert run([*words, "--max-staleness", "60000"]) == 0
    assert " answered, " in capsys.readouterr().err


def test_moving_scenes_are_a_camera_without_one(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["camera", "--source", "scenes:snow:4", "--bundle", str(bundle), "--task", "det", "--headless", "--duration", "1"]
    assert run([*words, "--answers", str(tmp_path / "a.jsonl"), "--still", "0"]) == 0
    assert "opened: scenes:snow:4" in capsys.readouterr().err
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) > 3


def test_a_still_clip_is_answered_once(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((40, 60, 3), 90 + i // 4, np.uint8))  # a level is no change
    words = ["camera", "--source", str(tmp_path), "--bundle", str(bundle), "--task", "cls", "--headless", "--policy", "every"]
    assert run(words) == 0
    assert "1 answered, 7 still" in capsys.readouterr().err
    assert run([*words, "--still", "0"]) == 0
    assert "8 answered, 0 still" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_does_not_stop_the_camera(bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["camera", "--source", str(clip), "--bundle", str(bundle), "--task", "seg", "--headless", "--policy", "every"]
    assert run([*words, "--answers", "/dev/full"]) == 0
    told = capsys.readouterr()
    assert told.err.count("No space left on device") == 1 and f"saved /dev/full, without {FRAMES} results" in told.out


def test_ctrl_c_ends_it_cleanly_and_soon(bundle: Path, tmp_path: Path) -> None:
    words = ["--source", "scenes", "--bundle", str(bundle), "--task", "seg", "--serve", "0", "--out", str(tmp_path / "a.mp4")]
    command = [sys.executable, "-m", "tasktok_edge.apps.camera", *words]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background of a shell would not hear it
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, cwd=ROOT, preexec_fn=heard) as camera:  # type: ignore[call-overload]
        assert camera.stderr is not None and camera.stdout is not None
        for line in camera.stderr:
            if line.startswith("opened"):
                break
        time.sleep(1)
        begun = time.monotonic()
        camera.send_signal(signal.SIGINT)
        told = camera.stderr.read()
        assert camera.wait(20) == 0 and time.monotonic() - begun < 10  # a second, on a quiet machine
        assert "Traceback" not in told and " answered, " in told and "a.mp4" in camera.stdout.read()
    video = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert video.grab()


def test_a_file_that_is_no_video_is_told(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_bytes(b"none" * 50)
    words = ["camera", "--source", str(tmp_path / "a.mp4"), "--bundle", str(bundle), "--task", "seg", "--headless"]
    assert run(words) == 2
    assert f"error: {tmp_path / 'a.mp4'} cannot be opened" in capsys.readouterr().err


def test_mistakes_are_told_before_a_camera_is_opened(
    bundle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["camera", "--bundle", str(bundle), "--source"]
    for more, told in (
        ([str(clip), "--headless"], "name the task, this bundle has 3"),
        ([str(clip), "--headless", "--task", "sge"], "did you mean 'seg'"),
        ([str(clip), "--headless", "--policy", "lates"], "did you mean 'latest'"),
        ([str(clip), "--headless", "--answers", str(tmp_path / "no" / "a.jsonl")], "there is no folder"),
        ([str(tmp_path / "none.mp4"), "--headless"], "no camera, file, folder or URL"),
        (["scenes:snwo", "--headless"], "did you mean 'snow'"),
        (["scenes:snow:9", "--headless"], "severity 9"),
        ([str(clip), "--headless", "--bundle", str(bundle)], "several bundles are for --serve"),
        ([str(clip), "--headless", "--fps", "5", "--tokens", "3"], "give one of them"),
        ([str(clip), "--task", "seg", "--serve", "80x"], "give PORT"),
    ):
        assert run([*words, *more]) == 2
        assert told in capsys.readouterr().err
    monkeypatch.setattr(camera, "has_windows", lambda: False)
    assert run([*words, str(clip), "--task", "seg"]) == 2
    assert "add --headless" in capsys.readouterr().err
