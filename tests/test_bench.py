"""The arithmetic of a comparison; no test looks at a speed."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from tasktok_edge.alternatives import bicubic
from tasktok_edge.bench import Comparison, regressions, save
from tasktok_edge.cli import run
from tasktok_edge.costs import energy_j, peak_macs, peak_memory
from tasktok_edge.errors import DeviceError, UsageError
from tasktok_edge.model.checkpoint import save_checkpoint
from tasktok_edge.model.config import preset
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.timing import BURST, WARM_UP, Latency, measure
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
        (["--against", "nonsense"], "unknown peer 'nonsense': There are: compiled, plain"),
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
    # ExecuTorch's export takes half a minute.
    monkeypatch.setattr("tasktok_edge.plain.AGAINST", {"plain": ("ONNX Runtime", "OpenVINO")})
    config = preset("tiny")
    model = shake(TaskTok(config.model_copy(update={"tasks": {"cls": config.tasks["cls"]}})))
    server, file = str(tmp_path / "server"), tmp_path / "bench.json"
    save_checkpoint(Path(server), model, facts={})
    assert run(["export", "--target", "onnx", "--checkpoint", server, "--out", str(tmp_path)]) == 0
    words = ["bench", str(tmp_path / "tiny-onnx-fp32"), "--checkpoint", server, "--against", "plain", "--runs", "3"]
    words += ["--frames", "4", "--scaling"]
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
        assert set(table["macs"]["cls"]) == set(names) and table["peak_macs"]["fp32"] > 1e8
        assert [part["name"] for part in table["parts"]][1:] == ["pre-restorer", "encoder", "refiner", "decoder", "cls network"]
        (cost,) = table["costs"]
        assert cost["macs"]["predict/cls"] > cost["macs"]["restore/cls"] > 0
        assert cost["peak_memory_bytes"] > 30 << 20 and cost["bytes"] > 10_000
    first, second = saved["tables"]
    assert set(first["accuracy"]["cls"]) == {f"{server}, PyTorch", "tiny-onnx-fp32"} and not second["accuracy"]
    assert first["accuracy"]["cls"]["tiny-onnx-fp32"] == first["accuracy"]["cls"][f"{server}, PyTorch"]
    ways = [(one["what"], one["value"]) for one in saved["scaling"]]
    assert ways[:6] == [*(("frame", s) for s in ("32x32", "64x64", "128x64", "128x128")), ("batch", "2"), ("batch", "4")]
    assert file.with_suffix(".png").stat().st_size > 5000
    again = [
        *words[:4],
        "--runs",
        "3",
        "--frames",
        "0",
        "--threads",
        "1",
        "--out",
        str(tmp_path / "again.json"),
        "--compare",
        str(file),
    ]
    monkeypatch.setattr("tasktok_edge.bench.WORSE", 1e9)  # no speed decides here
    assert run(again) == 0
    monkeypatch.setattr("tasktok_edge.bench.WORSE", 0.0)
    assert run(again) == 3
    assert "slower than in" in capsys.readouterr().err


def comparison(ratio: float, name: str = "ours") -> Comparison:
    first = Latency("server", 10, 11, 12, 1, 1, 1)
    return Comparison(1, {"cls": [first, Latency(name, 10 * ratio, 11, 12, ratio, ratio * 0.98, ratio * 1.02)]})


def test_what_became_slower_beside_the_first_is_told(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    save([comparison(0.1)], file, server="server", runs=9)
    assert regressions(file, [comparison(0.1)]) == regressions(file, [comparison(0.1, "another")]) == []
    (told,) = regressions(file, [comparison(0.2)])
    assert told == "ours, cls, 1 thread: 0.20 of the first, was 0.10"
    assert regressions(file, [comparison(0.05)]) == []


@pytest.mark.parametrize(
    "text", [None, "", "{}", '{"tables": [1]}', '{"tables": [{"threads": 1, "latency": {"cls": [1, 2]}}]}']
)
def test_a_file_without_figures_is_refused(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError, match="no file" if text is None else "holds no figures of bench"):
        regressions(file, [])


def test_pairs_that_differ_much_are_called_noisy() -> None:
    assert not Latency("a", 1, 1, 1, 1, 0.9, 1.1).noisy
    assert Latency("a", 1, 1, 1, 1, 0.8, 1.3).noisy


def test_energy_is_of_the_processors_counter_or_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasktok_edge.costs.ENERGY_S", 0.02)
    assert energy_j(lambda: None, folder=tmp_path) is None
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir()
    counter.write_text("1000000\n")

    def frame() -> None:
        time.sleep(0.002)
        counter.write_text(str(int(counter.read_text()) + 250_000))

    assert energy_j(frame, folder=tmp_path) == pytest.approx(0.25)
    counter.write_text("1000000")
    assert energy_j(lambda: counter.write_text("5"), folder=tmp_path) is None  # it began again


def test_products_and_a_bundle_that_does_not_load(tmp_path: Path) -> None:
    assert peak_macs("bf16", threads=1) is None
    for precision in ("fp32", "int8"):
        found = peak_macs(precision, threads=1)
        assert found is not None and found > 1e8
    with pytest.raises(DeviceError, match=r"could not be loaded by a process of its own: .*there is no such folder"):
        peak_memory(tmp_path / "nothing", "auto", threads=1)


def test_bicubic_takes_noise_away_and_keeps_the_size() -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (31, 48, 3), np.uint8)
    assert bicubic(noisy).shape == noisy.shape and bicubic(noisy).std() < noisy.std()
