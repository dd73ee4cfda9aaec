import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import psutil
import pytest

from tasktok_edge.bundle import Target
from tasktok_edge.errors import FrameError, UsageError
from tasktok_edge.frames import as_rgb, blend, crop_resize, resize, windows
from tasktok_edge.runtimes import Classification, Detections, Segmentation, Session, load
from tasktok_edge.runtimes.session import QUEUED
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


def test_several_tasks_in_one_call_are_those_of_each(session: Session) -> None:
    for frame in (FRAME, np.random.default_rng(2).integers(0, 256, (20, 50, 3), np.uint8)):
        together = session(frame, tasks=("cls", "seg", "det"))
        assert list(together) == ["cls", "seg", "det"]
        for task, result in together.items():
            alone = session(frame, task)
            np.testing.assert_array_equal(result.frame, alone.frame)
            assert type(result.answer) is type(alone.answer)
        both = session.predict(frame, tasks=["seg", "cls"])
        mask, label = both["seg"], both["cls"]
        assert isinstance(mask, Segmentation) and isinstance(label, Classification)
        alone_mask, alone_label = session.predict(frame, "seg"), session.predict(frame, "cls")
        assert isinstance(alone_mask, Segmentation) and isinstance(alone_label, Classification)
        np.testing.assert_array_equal(mask.mask, alone_mask.mask)
        np.testing.assert_allclose(label.scores, alone_label.scores, atol=1e-6)
    for wrong in ("seg", ()):
        with pytest.raises(UsageError, match="give one task"):
            session.predict(FRAME, tasks=wrong)
    with pytest.raises(UsageError, match="unknown task"):
        session.predict(FRAME, tasks=("cls", "sge"))


def test_submitted_frames_are_answered_in_order_and_copied(built: Callable[[Target], Path]) -> None:
    many = frames(12, seed=3)
    with load(built("onnx"), threads=1) as shared:
        want = [shared.restore(frame, "seg") for frame in many]
        buffer, done = np.empty_like(many[0]), []
        futures = []
        for i, frame in enumerate(many):
            buffer[:] = frame
            futures.append(shared.submit(buffer, "seg"))
            futures[-1].add_done_callback(lambda _, i=i: done.append(i))
        for future, image in zip(futures, want, strict=True):
            np.testing.assert_array_equal(future.result(60).frame, image)
        assert done == sorted(done)
        wrong = shared.submit(np.zeros((8, 8), np.uint8), "seg")
        with pytest.raises(FrameError):
            wrong.result(60)
    with pytest.raises(UsageError, match="closed"):
        shared.submit(FRAME, "seg")


def test_the_queue_is_bounded_and_closing_cancels(built: Callable[[Target], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    shared = load(built("onnx"), threads=1)
    free, entered, submitted = threading.Event(), threading.Semaphore(0), []
    real = shared._ask

    def slow(functions: tuple[str, ...], batch: np.ndarray) -> object:  # type: ignore[type-arg]
        entered.release()
        free.wait(60)
        return real(functions, batch)

    shared.restore(FRAME, "seg")
    shared(FRAME, "seg")
    monkeypatch.setattr(shared, "_ask", slow)
    producer = threading.Thread(target=lambda: [submitted.append(shared.submit(FRAME, "seg")) for _ in range(QUEUED + 2)])
    producer.start()
    until = time.monotonic() + 60
    while len(submitted) < QUEUED and time.monotonic() < until:
        time.sleep(0.01)
    producer.join(0.5)
    assert producer.is_alive() and len(submitted) == QUEUED
    free.set()
    producer.join(60)
    assert len(submitted) == QUEUED + 2 and all(f.result(60).frame.shape == FRAME.shape for f in submitted)
    free.clear()
    for _ in submitted:
        entered.acquire()
    rest = [shared.submit(FRAME, "seg") for _ in range(QUEUED)]
    assert entered.acquire(timeout=60)  # the first one runs: what close() waits for, the others it cancels
    closing = threading.Thread(target=shared.close)
    closing.start()
    for future in rest[1:]:
        with pytest.raises(CancelledError):
            future.result(60)
    assert closing.is_alive() and not rest[0].done()
    free.set()
    closing.join(60)
    assert rest[0].result(60) and not closing.is_alive()


def test_a_batch_is_its_frames(session: Session) -> None:
    many = [FRAME, np.zeros((9, 20, 3), np.uint8)]
    for result, frame in zip(session.batch(many, "seg"), many, strict=True):
        np.testing.assert_array_equal(result.frame, session.restore(frame, "seg"))
    assert len(session.batch(frames(3), "cls")) == 3


def test_cameras_give_other_pixels(session: Session, built: Callable[[Target], Path]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (36, 40, 3), np.uint8)
    with load(built("onnx"), threads=1, pixels="bgr") as other:
        bgr = frame[..., ::-1]
        np.testing.assert_array_equal(other.restore(bgr, "seg"), session.restore(frame, "seg")[..., ::-1])
        assert other(bgr, tasks=("seg",))["seg"].frame.flags.c_contiguous
    planes = np.random.default_rng(1).integers(0, 256, (36, 40), np.uint8)
    planes.flags.writeable = False
    for pixels in ("nv12", "i420"):
        with load(built("onnx"), threads=1, pixels=pixels) as other:  # type: ignore[arg-type]
            np.testing.assert_array_equal(other.restore(planes, "seg"), session.restore(as_rgb(planes, pixels), "seg"))
            with pytest.raises(FrameError, match=f"a frame of {pixels}"):
                other.restore(frame, "seg")
    with pytest.raises(UsageError, match="did you mean 'nv12'"):
        load(built("onnx"), pixels="nv21")  # type: ignore[arg-type]


@pytest.mark.slow
def test_many_sessions_leave_nothing(built: Callable[[Target], Path]) -> None:
    process = psutil.Process()

    def held() -> tuple[int, int]:
        return process.num_fds(), process.num_threads()

    def cycle(n: int) -> None:
        for _ in range(n):
            with load(built("onnx"), threads=1, tasks=["cls"]) as one:
                one.submit(FRAME).result(60)

    cycle(20)
    before = held()
    cycle(80)
    assert all(now <= then + 2 for now, then in zip(held(), before, strict=True))
