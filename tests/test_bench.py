"""The arithmetic of a comparison; no test looks at a speed."""

import json
import time
from pathlib import Path

import pytest

from tasktok_edge.bench import BURST, WARM_UP, measure
from tasktok_edge.cli import run
from tasktok_edge.model.checkpoint import save_checkpoint
from tasktok_edge.model.config import preset
from tasktok_edge.model.tasktok import TaskTok
from tests.conftest import shake


def test_candidates_run_in_turn_and_are_compared_pair_by_pair() -> None:
    calls: list[str] = []

    def candidate(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    first, second = measure({"a": lambda: candidate("a", 0.001), "b": lambda: candidate("b", 0.02)}, runs=9)
    assert calls == ["a"] * WARM_UP + ["b"] * WARM_UP + (["a"] * (BURST + 1) + ["b"] * (BURST + 1)) * 9
    assert first.ratio == pytest.approx(1.0) and first.ratio_low == first.ratio_high == pytest.approx(1.0)
    assert second.p50_ms >= 20 and second.p90_ms >= second.p50_ms
    assert second.ratio_low <= second.ratio <= second.ratio_high
    assert first.to_peer is None


def test_peers_are_compared_by_the_fastest_of_them() -> None:
    slept = {"server": 0.004, "slow peer": 0.01, "peer": 0.005, "ours": 0.001}
    found = {
        one.name: one
        for one in measure({n: lambda s=s: time.sleep(s) for n, s in slept.items()}, runs=5, peers=["slow peer", "peer"])
    }
    to_peer = {name: one.to_peer for name, one in found.items()}
    assert to_peer["peer"] is not None and to_peer["peer"].low == to_peer["peer"].high == 1
    assert to_peer["ours"] is not None and to_peer["ours"].median < 1
    assert to_peer["slow peer"] is not None and to_peer["slow peer"].median > 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--against", "nonsense"], "unknown peer 'nonsense': There are: plain"),
        (["--against", "plane"], "did you mean 'plain'"),
        (["--threads", "1", "--threads", "0"], "--threads"),
        (["--out", "."], "is a folder"),
        (["--out", "no/where.json"], "there is no folder no"),
    ],
)
def test_mistakes_are_told_before_any_work(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error


@pytest.mark.slow
def test_against_plain_measures_the_peers_at_every_number_of_threads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasktok_edge.bench.OVERHEAD_RUNS", 3)
    monkeypatch.setattr("tasktok_edge.bench.TOOLS", ["ONNX Runtime", "OpenVINO"])  # ExecuTorch's export takes half a minute
    config = preset("tiny")
    model = shake(TaskTok(config.model_copy(update={"tasks": {"cls": config.tasks["cls"]}})))
    server, file = str(tmp_path / "server"), tmp_path / "bench.json"
    save_checkpoint(Path(server), model, facts={})
    assert run(["export", "--target", "onnx", "--checkpoint", server, "--out", str(tmp_path)]) == 0
    words = ["bench", str(tmp_path / "tiny-onnx-fp32"), "--checkpoint", server, "--against", "plain", "--runs", "3"]
    assert run([*words, "--threads", "1", "--threads", "2", "--threads", "1", "--out", str(file)]) == 0
    assert "2 threads each; torch" in " ".join(capsys.readouterr().out.split())
    saved = json.loads(file.read_text())
    assert [table["threads"] for table in saved["tables"]] == [1, 2] and saved["versions"]["openvino"]
    for table in saved["tables"]:
        (figures,) = table["latency"].values()
        names = [one["name"] for one in figures]
        assert names[0] == f"{server}, PyTorch" and names[-1] == "tiny-onnx-fp32" and len(names) == 4
        assert names[1] == f"{server}, plain ONNX Runtime, fp32" and names[2].startswith(f"{server}, plain OpenVINO, ")
        assert set(names) == set(table["runs_on"]) and all(one["to_peer"] for one in figures)
