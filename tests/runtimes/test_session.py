import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tasktok_edge.bundle import Target
from tasktok_edge.errors import FrameError, UsageError
from tasktok_edge.frames import blend, crop_resize, resize, windows
from tasktok_edge.runtimes import Classification, Detections, Segmentation, Session, load
from tests.helpers_bundle import SIZE, frames, reference

FRAME = frames(1, seed=5)[0]


@pytest.fixture(scope="module")
def session(built: Callable[[Target], Path]) -> Iterator[Session]:
    with load(built("onnx"), threads=1) as opened:
        opened.warm_up()
        yield opened


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (1, 1), (1, 9), (7, 3), (31, 33), (40, 40), (64, 64), (50, 170), (333, 90)])
@pytest.mark.parametrize("task", ["cls", "seg", "det"])
def test_any_size(session: Session, shape: tuple[int, int], task: str) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    before = frame.copy()
    result = session(frame, task)
    np.testing.assert_array_equal(frame, before)
    assert result.frame.shape == frame.shape
    assert result.frame.dtype == np.uint8
    np.testing.assert_array_equal(session.restore(frame, task), result.frame)
    alone = session.predict(frame, task)
    match alone, result.answer:
        case Classification() as a, Classification() as b:
            assert (a.index, a.label) == (b.index, f"cls{b.index}")
            assert a.scores.sum() == pytest.approx(1, abs=1e-5)
        case Segmentation() as a, Segmentation() as b:
            assert a.mask.shape == shape
            assert a.mask.max() < len(a.labels)
            np.testing.assert_array_equal(a.mask, b.mask)
        case Detections() as a, Detections() as b:
            assert a.boxes.shape == (len(a.labels), 4)
            assert len(a.scores) == len(a.labels) <= 100
            assert (a.boxes >= 0).all()
            assert (a.boxes <= [shape[1], shape[0]] * 2).all()
            np.testing.assert_array_equal(a.boxes, b.boxes)
        case _:
            pytest.fail(f"{alone} and {result.answer}")


def test_the_frame_is_what_the_module_and_the_windows_give(session: Session) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (45, 100, 3), np.uint8)
    places = windows(45, 100)
    crops = np.stack([crop_resize(frame, w, SIZE) for w in places])
    tiles = [resize(t, 45, 45) for t in reference(crops)["restore_seg"]]
    want = np.clip(np.rint(blend(tiles, places, 45, 100) * 255.0), 0, 255)
    assert np.abs(session.restore(frame, "seg").astype(int) - want).max() <= 1


def test_the_answer_at_the_function_size_is_the_modules(session: Session) -> None:
    want = reference(FRAME[None])
    mask = session.predict(FRAME, "seg")
    label = session.predict(FRAME, "cls")
    assert isinstance(mask, Segmentation)
    assert isinstance(label, Classification)
    np.testing.assert_array_equal(mask.mask, want["predict_seg"][0].argmax(0))
    assert label.index == want["predict_cls"].argmax()


@pytest.mark.parametrize("frame", [None, np.zeros((8, 8), np.uint8), np.full((8, 8, 3), np.nan), np.zeros((0, 8, 3), np.uint8)])
def test_wrong_frames(session: Session, frame: np.ndarray) -> None:  # type: ignore[type-arg]
    for call in (session.restore, session.predict, session):
        with pytest.raises(FrameError):
            call(frame, "seg")


@pytest.mark.parametrize("batch", [FRAME, np.zeros((1, SIZE, SIZE, 3), np.float32), np.zeros((2, SIZE, SIZE, 3), np.uint8)])
def test_wrong_batches(session: Session, batch: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(FrameError, match="a batch is"):
        session.run_raw(["restore/seg"], batch)


def test_wrong_words(session: Session) -> None:
    with pytest.raises(UsageError, match="name the task, this bundle has 3: cls, seg, det"):
        session.restore(FRAME)
    with pytest.raises(UsageError, match="did you mean 'seg'"):
        session(FRAME, "segg")
    with pytest.raises(UsageError, match="did you mean 'restore/seg'"):
        session.run_raw(["restore/sge"], FRAME[None])


def test_one_task_needs_no_name(built: Callable[[Target], Path]) -> None:
    with load(built("onnx"), threads=1, tasks=["cls"]) as one:
        assert isinstance(one.predict(FRAME), Classification)
        assert isinstance(one(FRAME).answer, Classification)
        with pytest.raises(UsageError, match="unknown task 'seg'"):
            one.predict(FRAME, "seg")
        with pytest.raises(UsageError, match="unknown function"):
            one.run_raw(["predict/seg"], FRAME[None])


def test_a_closed_session_says_so(built: Callable[[Target], Path]) -> None:
    opened = load(built("onnx"), threads=1)
    opened.restore(FRAME, "seg")
    opened.close()
    opened.close()
    assert "closed" in repr(opened)
    for call in (opened.restore, opened.predict, opened):
        with pytest.raises(UsageError, match="closed"):
            call(FRAME, "seg")
    with pytest.raises(UsageError, match="closed"):
        opened.run_raw(["restore/seg"], FRAME[None])


@pytest.mark.parametrize("target", ["openvino", "onnx"])
def test_threads_share_a_session(built: Callable[[Target], Path], target: Target) -> None:
    many = frames(4, seed=9)
    with load(built(target), threads=1) as shared:
        want = [shared.restore(f, "seg") for f in many]
        right = [0] * len(many)

        def work(i: int) -> None:
            for _ in range(50):
                right[i] += np.array_equal(shared.restore(many[i], "seg"), want[i])

        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
    assert right == [50] * len(many)
