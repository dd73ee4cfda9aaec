"""Several bundles of one model: the best device of all engines, or of the one that was named; and what is remembered of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tasktok_edge import runtimes
from tasktok_edge.bundle import Target
from tasktok_edge.errors import DeviceError, PackageError, UsageError
from tasktok_edge.runtimes import Trial, load
from tasktok_edge.runtimes.remembered import VARIABLE
from tests.helpers_bundle import BUILDERS, finish, frames, random_answers
from tests.runtimes.test_selection import given, verdicts

FRAME = frames(1, seed=5)[0]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where decisions are kept, on."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "decisions"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model.onnx").write_bytes(b"no model")
    finish(tmp_path / "b", "onnx", "model.onnx")
    return tmp_path / "b"


def test_one_of_all_engines_is_chosen_and_all_are_told(built: Callable[[Target], Path]) -> None:
    with load([built(target) for target in BUILDERS], threads=1) as session:
        trials = session.report.trials
        assert len(trials) >= 5 and all(t.reason for t in trials if t.verdict == "unusable")
        usable = [t for t in trials if t.verdict in ("chosen", "proven")]
        assert {t.device.engine for t in usable} == set(BUILDERS)
        assert session.report.chosen == min(usable, key=lambda t: t.latency_ms or 0)
        assert session.engine == session.device.engine
        one = session.restore(FRAME, "seg")
    for target in BUILDERS:
        with load([built(t) for t in BUILDERS], engine=target, threads=1) as session:
            assert session.engine == target and {t.device.engine for t in session.report.trials} == {target}
            assert np.abs(session.restore(FRAME, "seg").astype(int) - one).max() <= 1


def test_a_bundle_whose_golden_answer_was_altered_is_refused_and_the_next_taken(
    built: Callable[[Target], Path], tmp_path: Path
) -> None:
    shutil.copytree(built("onnx"), tmp_path / "b")
    answers = random_answers()
    finish(tmp_path / "b", "onnx", "model.onnx", answers=answers)
    with load([tmp_path / "b", built("openvino")], threads=1) as session:
        assert session.engine == "openvino"
        first = session.report.trials[0]
        assert first.verdict == "refused" and "answers the golden frames wrongly: restore/cls" in str(first.reason)


def test_an_engine_that_is_not_installed_is_told_and_the_others_are_tried(
    built: Callable[[Target], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runtimes.engine("onnx")

    def absent() -> list[object]:
        raise PackageError('onnxruntime cannot be imported: pip install "tasktok-edge[onnx]"')

    monkeypatch.setattr(real, "devices", absent)
    with load([built("onnx"), built("openvino")], threads=1) as session:
        assert session.engine == "openvino"
        assert 'pip install "tasktok-edge[onnx]"' in str(session.report.trials[0].reason)
    with pytest.raises(PackageError, match="onnx"):
        load(built("onnx"))


def test_wrong_words(built: Callable[[Target], Path]) -> None:
    with pytest.raises(UsageError, match="unknown engine 'onxn': did you mean 'onnx'"):
        load(built("onnx"), engine="onxn")
    with pytest.raises(UsageError, match="no bundle for openvino was given, only for onnx"):
        load(built("onnx"), engine="openvino")
    with pytest.raises(UsageError, match="path of a bundle"):
        load([])


def test_the_choice_is_remembered(folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = given(monkeypatch, gpu0={"kind": "gpu", "slow_s": 1e-3}, gpu1={"kind": "gpu", "noise": 1}, cpu0={"kind": "cpu"})
    with load(folder) as first:
        assert not first.report.remembered
        everything = len(made.calls)
    made.calls.clear()
    with load(folder) as second:
        assert second.report.remembered and "remembered" in str(second.report)
        assert verdicts(second) == verdicts(first) == {"gpu0": "proven", "gpu1": "refused", "cpu0": "chosen"}
        assert second.report.chosen is not None and second.report.chosen.latency_ms == first.report.chosen.latency_ms  # type: ignore[union-attr]
        assert {name for name, _ in made.calls} == {"cpu0"} and len(made.calls) < everything / 3
        assert second.predict(FRAME, "det") is not None  # proven now
    made.calls.clear()
    with load(folder, remember=False) as third:
        assert not third.report.remembered and len(made.calls) == everything
    with load(folder, policy="power") as other:
        assert not other.report.remembered and other.device.native == "gpu0"


def test_what_is_no_longer_right_is_found_anew(folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = given(monkeypatch, gpu0={"kind": "gpu", "slow_s": 1e-3}, cpu0={"kind": "cpu"})
    load(folder).close()
    made.made["cpu0"]["noise"] = 1
    with load(folder) as session:
        assert not session.report.remembered and verdicts(session) == {"gpu0": "chosen", "cpu0": "refused"}
    made.made["gpu0"]["fails"] = "lost"
    with pytest.raises(DeviceError, match="lost"):
        load(folder)
    assert not list(kept.iterdir())


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'[{"device": {}}]', b"\xff" * 20, b'[{"verdict": "chosen"}]'])
def test_damaged_memories_are_none(folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    given(monkeypatch, cpu0={"kind": "cpu"})
    load(folder).close()
    (file,) = kept.iterdir()
    assert json.loads(file.read_text())[0]["verdict"] == "chosen"
    file.write_bytes(damage)
    with load(folder) as session:
        assert not session.report.remembered
    assert [Trial(**t).verdict for t in json.loads(file.read_text())] == ["chosen"]


def test_nothing_is_kept_where_the_variable_is_empty(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, cpu0={"kind": "cpu"})
    monkeypatch.setenv(VARIABLE, "")
    for _ in range(2):
        with load(folder) as session:
            assert not session.report.remembered
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))  # no folder can be made there
    load(folder).close()


def test_openvino_compiles_once(built: Callable[[Target], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    answers, kept = [], []
    for _ in range(2):
        with load(built("openvino"), threads=1, tasks=["seg"]) as session:
            answers.append(session.restore(FRAME, "seg"))
        kept.append({file: file.stat().st_mtime_ns for file in (tmp_path / "openvino").rglob("*.blob")})
    assert kept[0] and kept[0] == kept[1]
    np.testing.assert_array_equal(*answers)
