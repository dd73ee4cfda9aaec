"""The command line as a person types it: the path from checkpoint to answer, and one clear line for every mistake."""

import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from tasktok_edge.cli import run

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_from_checkpoint_to_answer(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Export by the documented command, load in a fresh interpreter without torch, restore, answer."""
    out = tmp_path / "out"
    words = ["--target", "openvino", "--checkpoint", str(tiny_checkpoint), "--out", str(out)]
    command = [sys.executable, "-m", "tasktok_edge.export", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "passed" in done.stdout
    program = f"""
import sys
import numpy as np
from tasktok_edge.runtimes import load
session = load({str(out / "tiny-openvino-fp32")!r})
frame = np.zeros((48, 64, 3), np.uint8)
print(session.restore(frame, task="seg").shape, session.predict(frame, task="cls").label)
assert "torch" not in sys.modules
"""
    used = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert used.returncode == 0, used.stderr
    assert used.stdout.startswith("(48, 64, 3) ")
    assert run(["export", *words]) == 2
    error = capsys.readouterr().err
    assert "--overwrite" in error and error.count("\n") == 1


VERBS = ("bench", "convert", "demo", "diagnose", "export", "greedy", "inspect", "quantize", "train", "validate")


@pytest.mark.parametrize("module", VERBS)
def test_a_verbs_module_is_the_verb(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as left, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it is imported already
        runpy.run_module(f"tasktok_edge.{module}", run_name="__main__")
    assert left.value.code == 0
    assert f"Usage: tasktok-edge {module} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["exprt"], 2, "did you mean 'export'"),
        (["export"], 2, "--target"),
        (["export", "--target", "openvin"], 2, "did you mean 'openvino'"),
        (["export", "--target", "onnx", "--precision", "fp61"], 2, "did you mean 'fp16'"),
        (["export", "--target", "onnx", "--deployment-target", "iOS17"], 2, "is for --target coreml"),
        (["export", "--target", "onnx", "--checkpoint", "nowhere"], 2, "no checkpoint at 'nowhere'"),
        (["export", "--target", "onnx", "--colour"], 2, "--colour"),
        (["train", "--recipe", "scene-server"], 2, "did you mean 'scenes-server'"),
        (["quantize", "--method", "distil", "--out", "x"], 2, "did you mean 'distill'"),
        (["validate", "--bundle", "nowhere", "--degradation", "snw"], 2, "did you mean 'snow'"),
        (["run", "nowhere", "nothing.png"], 2, "nothing.png"),
        (["devices", "nowhere"], 2, "nowhere"),
    ],
)
def test_mistakes_get_one_line(words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and told in error


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    verbs = [
        "export",
        "train",
        "quantize",
        "validate",
        "bench",
        "demo",
        "devices",
        "run",
        "scenes",
        "greedy",
        "inspect",
        "convert",
    ]
    for verb in verbs:
        assert verb in shown


@pytest.mark.slow
def test_an_unknown_task_is_refused_before_the_export(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["export", "--target", "onnx", "--checkpoint", str(tiny_checkpoint), "--task", "dett", "--out", str(out)]
    assert run(words) == 2
    assert "did you mean 'det'" in capsys.readouterr().err
    assert not out.exists()


def test_scenes_draws_a_contact_sheet(tmp_path: Path) -> None:
    picture = tmp_path / "new" / "scenes.png"
    assert run(["scenes", "--out", str(picture)]) == 0
    data = np.fromfile(picture, np.uint8)
    assert data[:4].tobytes() == b"\x89PNG"
