"""An engine in a process of its own: the same answers, and whatever happens there is one error here."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tasktok_edge.bundle import Target
from tasktok_edge.errors import BundleError, DeviceError, UsageError
from tasktok_edge.runtimes import Session, load
from tasktok_edge.runtimes.isolated import IsolatedRunning
from tests.helpers_bundle import BUILDERS, finish, frames, reference

FRAME = frames(1, seed=5)[0]


@pytest.fixture
def session(built: Callable[[Target], Path]) -> Iterator[Session]:
    with load(built("onnx"), threads=1, isolate=True, time_limit=2.0) as opened:
        opened.restore(FRAME, "seg")
        yield opened


def running(session: Session) -> IsolatedRunning:
    assert isinstance(session._running, IsolatedRunning)
    return session._running


def pid(session: Session) -> int:
    child = running(session)._child
    assert child is not None
    return child._process.pid


@pytest.mark.parametrize("target", BUILDERS)
def test_it_answers_as_the_engine_here_does(built: Callable[[Target], Path], target: Target) -> None:
    with load(built(target), threads=1) as here, load(built(target), threads=1, isolate=True) as there:
        for frame in frames(3, seed=7):
            for task in ("cls", "seg", "det"):
                np.testing.assert_array_equal(here.restore(frame, task), there.restore(frame, task))
            for name, found in here.run_raw(("restore/det", "predict/det"), frame[None]).items():
                again = there.run_raw(("restore/det", "predict/det"), frame[None])[name]
                np.testing.assert_array_equal(found, again)
                assert again.dtype == np.float32
        assert here.placement("seg") == there.placement("seg") and sum(here.placement("seg").values()) > 0
        assert there.precision == here.precision
        chosen = there.report.chosen
        assert chosen is not None and chosen.effective_device == here.report.chosen.effective_device  # type: ignore[union-attr]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_crash_is_an_error_and_the_next_frame_is_answered(session: Session) -> None:
    want = session.restore(FRAME, "seg")
    dead = pid(session)
    os.kill(dead, signal.SIGSEGV)
    with pytest.raises(DeviceError, match=r"crashed \(SIGSEGV\)"):
        session.restore(FRAME, "seg")
    np.testing.assert_array_equal(session.restore(FRAME, "seg"), want)
    assert pid(session) != dead


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_one_that_hangs_is_ended_in_time(session: Session) -> None:
    want = session.restore(FRAME, "seg")
    os.kill(pid(session), signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(DeviceError, match="took more than 2 s"):
        session.restore(FRAME, "seg")
    assert time.monotonic() - start < 60
    np.testing.assert_array_equal(session.restore(FRAME, "seg"), want)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks for processes in /proc")
def test_nothing_is_left_behind(built: Callable[[Target], Path]) -> None:
    opened = load(built("onnx"), threads=1, isolate=True)
    child, folder = pid(opened), Path(running(opened)._folder.name)
    assert Path(f"/proc/{child}").exists() and folder.is_dir()
    opened.close()
    assert not Path(f"/proc/{child}").exists() and not folder.exists()
    with pytest.raises(UsageError, match="closed"):
        opened.restore(FRAME, "seg")


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    finish(tmp_path, "onnx", "model.onnx")
    with pytest.raises(DeviceError, match="ONNX Runtime cannot open"):
        load(tmp_path, isolate=True)
    with pytest.raises(UsageError, match="time_limit"):
        load(tmp_path, isolate=True, time_limit=0)


@pytest.mark.slow
@pytest.mark.parametrize("target", BUILDERS)
def test_hostile_models_with_right_hashes_harm_nobody(built: Callable[[Target], Path], tmp_path: Path, target: Target) -> None:
    draw = random.Random(target)
    for i in range(2 if target == "executorch" else 6):  # whose start takes seconds
        folder = tmp_path / str(i)
        shutil.copytree(built(target), folder)
        file = max((f for f in folder.iterdir() if f.name.startswith("model.")), key=lambda f: f.stat().st_size)
        data = bytearray(file.read_bytes())
        for _ in range(draw.choice((1, 30, 3000))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        file.write_bytes(data[: draw.choice((len(data), len(data), len(data) // 2))])
        finish(folder, target, {"openvino": "model.xml", "onnx": "model.onnx", "executorch": "model.pte"}[target],
               answers=reference(frames()))  # fmt: skip
        try:
            with load(folder, threads=1, tasks=["seg"], isolate=True, time_limit=20) as session:
                found = session.run_raw(("restore/seg",), FRAME[None])["restore_seg"]
                assert np.abs(found - reference(FRAME[None])["restore_seg"]).max() < 1e-3
        except (BundleError, DeviceError) as error:
            assert str(error)
