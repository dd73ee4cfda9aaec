"""`tasktok-edge camera` as a person types it on a box without a screen."""

import json
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
    ):
        assert run([*words, *more]) == 2
        assert told in capsys.readouterr().err
    monkeypatch.setattr(camera, "has_windows", lambda: False)
    assert run([*words, str(clip), "--task", "seg"]) == 2
    assert "add --headless" in capsys.readouterr().err
