"""Distillation: the student takes over the switch, learns, and comes out as a checkpoint of its own."""

from pathlib import Path

import pytest
import torch

from tasktok_edge.errors import UsageError
from tasktok_edge.model.checkpoint import load_checkpoint
from tasktok_edge.quantize.distill import distill, distill_recipe
from tests.conftest import build_tiny


@pytest.mark.slow
def test_a_student_comes_out_and_is_weighed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasktok_edge import shrunk
    from tasktok_edge.cli import run

    monkeypatch.setattr(shrunk, "FAST_TARGETS", ("onnx",))  # ExecuTorch's export takes half a minute
    out = tmp_path / "edge"
    words = ["quantize", "--method", "distill", "--checkpoint", str(tiny_checkpoint), "--preset", "tiny", "--recipe", "tiny"]
    assert run([*words, "--out", str(out), "--workers", "1", "--frames", "2"]) == 0
    shown = capsys.readouterr().out
    assert "2 held-out degraded frames" in shown and "after distill" in shown
    assert "times faster" in shown and "onnx" in shown
    student, server = load_checkpoint(out / "checkpoint").model, load_checkpoint(tiny_checkpoint).model
    for task in server.config.tasks:
        assert student.switch.selected(task) == server.switch.selected(task)
    assert not torch.equal(student.refiner.conv_in.weight, server.refiner.conv_in.weight)


def test_a_preset_of_other_shapes_is_refused_before_any_work(tmp_path: Path) -> None:
    steps = distill(build_tiny(), "scenes-edge", distill_recipe("tiny"), tmp_path / "run")
    with pytest.raises(UsageError, match="image size 32 against 128"):
        next(steps)
    assert not (tmp_path / "run").exists()


def test_unknown_words() -> None:
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        distill_recipe("tinny")
