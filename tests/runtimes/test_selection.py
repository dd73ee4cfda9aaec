"""The choice of a device, on an engine that is made up: several devices, each with its own fault."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tasktok_edge import runtimes
from tasktok_edge.bundle import Bundle
from tasktok_edge.errors import DeviceError, UsageError
from tasktok_edge.runtimes import Device, Session, load, selection
from tasktok_edge.runtimes.selection import PSNR_LIMIT_DB, psnr_db
from tests.helpers_bundle import NOT_RUN, PASSED, frames, hollow_bundle, outputs_of, random_answers

FRAME = frames(1)[0]


class MadeUp:
    """Knows the golden frames by heart; `noise` is added to its answers, `slow_s` to its time, by a clock of its own."""

    TARGET = EXTRA = "onnx"

    def __init__(self, **devices: dict[str, Any]) -> None:
        self.made = devices
        self.now_s = 0.0
        self.closed: list[str] = []
        self.calls: list[tuple[str, tuple[str, ...]]] = []

    def version(self) -> str:
        return "1"

    def devices(self) -> list[Device]:
        return [
            Device("onnx", d["kind"], name, name.upper(), usable="absent" not in d, reason=d.get("absent"))
            for name, d in self.made.items()
        ]

    def open(self, bundle: Bundle, device: Device, *, threads: int | None, tasks: Sequence[str]) -> "MadeUpRunning":
        if "broken" in self.made[device.native]:
            raise DeviceError(self.made[device.native]["broken"])
        return MadeUpRunning(self, device.native)


class MadeUpRunning:
    effective_precision = "fp32"

    def __init__(self, engine: MadeUp, name: str) -> None:
        self.engine, self.name, self.how = engine, name, engine.made[name]
        self.effective_device = name

    def run(self, functions: tuple[str, ...], batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        self.engine.calls.append((self.name, functions))
        self.engine.now_s += self.how.get("slow_s", 1e-6)
        if "fails" in self.how:
            raise DeviceError(self.how["fails"])
        if "breaks" in self.how:
            raise RuntimeError(self.how["breaks"])
        known = [i for i, f in enumerate(frames()) if np.array_equal(f, batch[0])]
        i = known[0] if known else 0
        noise = self.how.get("noise", 0.0) if self.how.get("only", functions) == functions else 0.0
        names = [o for f in functions for o in outputs_of(f)]
        found = {name: random_answers()[name][i : i + 1] + np.float32(noise) for name in names}
        return self.how.get("bent", lambda answers: answers)(found)

    def close(self) -> None:
        self.engine.closed.append(self.name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hollow_bundle(tmp_path / "b")


def given(monkeypatch: pytest.MonkeyPatch, **devices: dict[str, Any]) -> MadeUp:
    made = MadeUp(**devices)
    monkeypatch.setattr(runtimes, "engine", lambda target: made)
    monkeypatch.setattr(selection, "time", SimpleNamespace(perf_counter=lambda: made.now_s))
    return made


def verdicts(session: Session) -> dict[str, str]:
    return {t.device.native: t.verdict for t in session.report.trials}


def test_the_fastest_that_answers_rightly_is_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = given(
        monkeypatch,
        npu0={"kind": "npu", "noise": 1e-2},
        gpu0={"kind": "gpu"},
        gpu1={"kind": "gpu", "absent": "no driver"},
        gpu2={"kind": "gpu", "broken": "out of memory"},
        gpu3={"kind": "gpu", "fails": "lost"},
        cpu0={"kind": "cpu", "slow_s": 2e-3},
    )
    with load(folder) as session:
        assert verdicts(session) == {
            "npu0": "refused",
            "gpu0": "chosen",
            "gpu1": "unusable",
            "gpu2": "unusable",
            "gpu3": "unusable",
            "cpu0": "proven",
        }
        reasons = {t.device.native: t.reason or "" for t in session.report.trials}
        assert "answers the golden frames wrongly: restore/cls 40.0 dB" in reasons["npu0"]
        assert "(floor 100)" in reasons["npu0"]
        assert reasons["gpu1"] == "no driver"
        assert reasons["gpu2"] == "out of memory"
        assert reasons["gpu3"] == "lost"
        assert sorted(made.closed) == ["cpu0", "gpu3", "npu0"]
    assert sorted(made.closed) == ["cpu0", "gpu0", "gpu3", "npu0"]


def _turned(answers: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Rightly the same numbers, where the reader does not look for them."""
    return {n: v.reshape(*v.shape[:1], *v.shape[:0:-1]) if n == "restore_cls" else v for n, v in answers.items()}


def _torn(answers: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """NaN in a value that golden.npz does not hold."""
    for name in answers.keys() & {"predict_seg"}:
        answers[name] = answers[name].copy()
        answers[name].reshape(-1)[1] = np.nan
    return answers


def test_what_the_golden_sample_does_not_hold_counts_as_well(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bent = {"gpu0": {"kind": "gpu", "bent": _turned}, "gpu1": {"kind": "gpu", "bent": _torn}}
    given(monkeypatch, **bent, cpu0={"kind": "cpu", "slow_s": 1e-3})
    with load(folder) as session:
        assert session.device.native == "cpu0"
        reasons = {t.device.native: t.reason or "" for t in session.report.trials}
    assert "restore/cls -200.0 dB" in reasons["gpu0"] and "predict/seg -200.0 dB" in reasons["gpu1"]


def test_power_prefers_npu_then_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, cpu0={"kind": "cpu"}, gpu0={"kind": "gpu", "slow_s": 1e-3}, npu0={"kind": "npu", "noise": 1.0})
    with load(folder, policy="power") as session:
        assert session.device.native == "gpu0"
    with load(folder, policy="latency") as session:
        assert session.device.native == "cpu0"


@pytest.mark.parametrize("device", ["cpu", "cpu1", "CPU1"])
def test_a_named_device_alone_is_tried(folder: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    made = given(monkeypatch, gpu0={"kind": "gpu"}, cpu1={"kind": "cpu", "slow_s": 1e-3})
    with load(folder, device) as session:
        assert verdicts(session) == {"gpu0": "skipped", "cpu1": "chosen"}
    assert {name for name, _ in made.calls} == {"cpu1"}


@pytest.mark.parametrize("device", ["npu", "gpu", "tpu", "CPU.7"])
def test_an_absent_device_is_an_error_that_lists_what_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    given(monkeypatch, gpu0={"kind": "gpu", "absent": "no driver"}, cpu0={"kind": "cpu"})
    with pytest.raises(DeviceError) as caught:
        load(folder, device)
    for word in (f"'{device}'", "There is: cpu (cpu0)", "gpu (gpu0): no driver"):
        assert word in str(caught.value)
    assert caught.value.exit_code == 5


def test_wrong_everywhere_is_an_error_with_the_figures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = given(monkeypatch, gpu0={"kind": "gpu", "noise": np.nan}, cpu0={"kind": "cpu", "noise": 0.1})
    with pytest.raises(DeviceError) as caught:
        load(folder)
    assert "gpu0 answers the golden frames wrongly: restore/cls -200.0 dB" in str(caught.value)
    assert "cpu0 answers the golden frames wrongly: restore/cls 20.0 dB" in str(caught.value)
    assert sorted(made.closed) == ["cpu0", "gpu0"]


def test_judges_may_measure_what_is_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, cpu0={"kind": "cpu", "noise": 0.1})
    with load(folder, proof="measured") as session:
        chosen = session.report.chosen
        assert chosen is not None
        assert chosen.psnr_db["restore/seg"] == pytest.approx(20, abs=0.1)
        assert "wrongly" in (chosen.reason or "")
        session.restore(FRAME, "seg")


def test_a_call_that_was_not_proven_at_load_is_proven_before_it_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = given(monkeypatch, cpu0={"kind": "cpu", "noise": 0.1, "only": ("restore/seg",)})
    with load(folder) as session:
        session(FRAME, "seg")
        session.predict(FRAME, "seg")
        with pytest.raises(DeviceError, match="wrongly"):
            session.restore(FRAME, "seg")
        made.calls.clear()
        session.predict(FRAME, "seg")
        assert made.calls == [("cpu0", ("predict/seg",))]  # once is enough
        with pytest.raises(DeviceError, match="wrongly"):
            session.warm_up()


def test_nan_in_an_answer_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = given(monkeypatch, cpu0={"kind": "cpu"})
    with load(folder) as session:
        session.warm_up()
        made.made["cpu0"]["noise"] = np.nan
        for call in (session.restore, session.predict, session):
            with pytest.raises(DeviceError, match="NaN"):
                call(FRAME, "seg")


def test_an_error_that_is_nobodys_closes_everything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = given(monkeypatch, gpu0={"kind": "gpu"}, cpu0={"kind": "cpu", "breaks": "unheard of"})
    with pytest.raises(RuntimeError, match="unheard of"):
        load(folder)
    assert sorted(made.closed) == ["cpu0", "gpu0"]


@pytest.mark.parametrize("parity", [NOT_RUN, PASSED.model_copy(update={"status": "failed", "reason": "51 dB"})])
def test_an_unverified_bundle_loads_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parity: Any) -> None:
    given(monkeypatch, cpu0={"kind": "cpu"})
    with load(hollow_bundle(tmp_path / "b", parity=parity)) as session:
        (note,) = session.report.notes
        assert note.startswith("unverified")
        assert parity.reason in note
        assert note in str(session.report)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"tasks": ["sgm"]}, "did you mean 'seg'"),
        ({"tasks": []}, "list of names"),
        ({"tasks": "seg"}, "list of names"),
        ({"threads": 0}, "1 or more"),
        ({"policy": "latencey"}, "did you mean 'latency'"),
        ({"proof": "none"}, "required"),
    ],
)
def test_wrong_words(folder: Path, monkeypatch: pytest.MonkeyPatch, words: dict[str, Any], message: str) -> None:
    made = given(monkeypatch, cpu0={"kind": "cpu"})
    with pytest.raises(UsageError, match=message):
        load(folder, **words)
    assert not made.calls


def test_psnr() -> None:
    a = np.zeros((2, 2), np.float32)
    assert psnr_db(a, a, 1.0) == PSNR_LIMIT_DB
    assert psnr_db(a + np.float32(0.1), a, 1.0) == pytest.approx(20)
    assert psnr_db(a + np.float32(0.1), a, 10.0) == pytest.approx(40)
    assert psnr_db(a[:1], a, 1.0) == psnr_db(a * np.float32(np.nan), a, 1.0) == -PSNR_LIMIT_DB
