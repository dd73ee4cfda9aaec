"""`tasktok-edge run`, as a person types it, on a bundle made for the purpose."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tasktok_edge import runtimes
from tasktok_edge.cli import run
from tests.helpers_bundle import RESTORE_ONLY, StandIn, build, golden, hollow_bundle, twisted


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("out") / "b", "openvino")


@pytest.mark.slow
def test_pictures_are_restored_and_answered(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "café.png"
    picture.write_bytes(cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))[1].tobytes())
    out = tmp_path / "restored"
    for task, key in (("cls", "label"), ("seg", "shares"), ("det", "boxes")):
        assert run(["run", str(bundle), str(picture), "--task", task, "--out", str(out), "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert key in row["answer"] and row["said"]
        assert cv2.imread(row["restored"]).shape == (50, 70, 3)


def test_a_bundle_without_task_networks_restores_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtimes, "engine", lambda target: StandIn(twisted))
    folder = hollow_bundle(tmp_path / "b", answers=golden(RESTORE_ONLY), functions=RESTORE_ONLY)
    picture = tmp_path / "p.png"
    picture.write_bytes(cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))[1].tobytes())
    command = ["run", str(folder), str(picture), "--task", "seg", "--out", str(tmp_path / "o")]
    assert run([*command, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["answer"] is None and "no task network" in row["said"]
    assert cv2.imread(row["restored"]).shape == (50, 70, 3)
    assert run(command) == 0


@pytest.mark.slow
def test_bad_pictures_give_one_line_and_exit_2(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("a.txt", "empty.png", "absent.png"):
        assert run(["run", str(bundle), str(tmp_path / name), "--task", "cls", "--out", str(tmp_path / "o")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "o").exists()
