"""Bundles that say how frames come to them, and bundles that only restore, through the shim and through the reference."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tasktok_edge import runtimes
from tasktok_edge.bundle import Target, read_bundle
from tasktok_edge.errors import BundleError, UsageError
from tasktok_edge.frames import lay_out, to_uint8
from tasktok_edge.manifest import Framing, Resize
from tasktok_edge.runtimes import Classification, load
from tests.helpers_bundle import (
    BUILDERS,
    RESTORE_ONLY,
    SIZE,
    StandIn,
    finish,
    frames,
    golden,
    hollow_bundle,
    reference,
    twisted,
)

SHAPES = [(SIZE, SIZE), (50, 50), (40, 101), (101, 40), (20, 25), (3, 64), (7, 1)]


def picture(shape: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(shape[0]).integers(0, 256, (*shape, 3), np.uint8)


def same(a: object, b: object) -> None:
    assert type(a) is type(b)
    for name, value in vars(a).items():
        np.testing.assert_array_equal(value, vars(b)[name])


@pytest.mark.parametrize("framing", ["windows", "pad"])
@pytest.mark.parametrize("resize", ["area", "bicubic"])
def test_the_shim_does_what_the_reference_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framing: Framing, resize: Resize
) -> None:
    pytest.importorskip("torch")
    from tasktok_edge.model.config import preset
    from tasktok_edge.model.tasktok import TaskTok
    from tasktok_edge.reference import Reference

    tiny = preset("tiny")
    tasks = {
        name: task.model_copy(update={"framing": framing, "labels": tuple(f"{name}{i}" for i in range(task.n_outputs))})
        for name, task in tiny.tasks.items()
    }
    model = Reference(TaskTok(tiny.model_copy(update={"tasks": tasks, "resize": resize})))
    functions = tuple(f"{kind}/{task}" for task in tasks for kind in ("restore", "predict"))
    runs = [model.run_raw(functions, frame[None]) for frame in frames()]
    answers = {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
    folder = hollow_bundle(tmp_path / "b", answers=answers, resize=resize, framing=dict.fromkeys(tasks, framing))
    monkeypatch.setattr(runtimes, "engine", lambda target: StandIn(model.run_raw))
    with load(folder) as session:
        for shape in SHAPES:
            for task in tasks:
                found = session(picture(shape), task)
                np.testing.assert_array_equal(found.frame, model.restore(picture(shape), task))
                same(found.answer, model.predict(picture(shape), task))


@pytest.fixture
def restore_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runtimes, "engine", lambda target: StandIn(twisted))
    return hollow_bundle(tmp_path / "b", answers=golden(RESTORE_ONLY), functions=RESTORE_ONLY)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_task_is_framed_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    monkeypatch.setattr(runtimes, "engine", lambda target: StandIn(twisted))
    both = tuple(f"{kind}/{task}" for task in ("cls", "seg", "det") for kind in ("restore", "predict"))
    folder = hollow_bundle(tmp_path / "b", answers=golden(both), resize="bicubic", framing={"det": "pad"})
    frame = picture(shape)
    with load(folder) as session:
        for task, framing in (("cls", "windows"), ("det", "pad")):
            layout = lay_out(*shape, SIZE, resize="bicubic", framing=framing)
            outputs = [twisted((f"restore/{task}",), batch)[f"restore_{task}"][0] for batch in layout.cut(frame)]
            np.testing.assert_array_equal(session.restore(frame, task), to_uint8(layout.join(outputs)))


def test_a_bundle_may_only_restore(restore_only: Path) -> None:
    with load(restore_only) as session:
        session.warm_up()
        assert session.functions == RESTORE_ONLY
        frame = picture((40, 50))
        assert session.restore(frame, "det").shape == frame.shape
        for call in (session.predict, session):
            with pytest.raises(UsageError, match="holds no predict/seg, only restore/cls, restore/seg, restore/det") as caught:
                call(frame, "seg")
            assert "session.restore(frame, 'seg')" in str(caught.value)
        with pytest.raises(UsageError, match="unknown function 'predict/seg'"):
            session.run_raw(["predict/seg"], frames(1))
    with load(restore_only, tasks=["cls"]) as one, pytest.raises(UsageError, match="holds no predict/cls, only restore/cls:"):
        one(picture((40, 50)))


def test_only_some_tasks_may_be_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "engine", lambda target: StandIn(twisted))
    functions = ("restore/cls", "predict/cls", "restore/seg", "predict/det")
    with load(hollow_bundle(tmp_path / "b", answers=golden(functions), functions=functions)) as session:
        session.warm_up()
        assert isinstance(session(frames(1)[0], "cls").answer, Classification)
        session.restore(frames(1)[0], "seg")
        session.predict(frames(1)[0], "det")
        with pytest.raises(UsageError, match=r"holds no restore/det.*session.predict"):
            session(frames(1)[0], "det")


@pytest.mark.parametrize("target", BUILDERS)
def test_engines_run_a_bundle_that_only_restores(built: Callable[[Target], Path], tmp_path: Path, target: Target) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    for file in built(target).glob("model.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    answers = {name: value for name, value in reference(frames()).items() if name.startswith("restore_")}
    file = read_bundle(built(target)).manifest.functions[0].file
    finish(folder, target, file, answers=answers, functions=RESTORE_ONLY)
    with load(folder, threads=1) as session:
        session.warm_up()
        assert session.restore(frames(1)[0], "seg").shape == (SIZE, SIZE, 3)
        with pytest.raises(UsageError, match="holds no predict/seg"):
            session(frames(1)[0], "seg")


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "manifest.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_a_manifest_says_how_frames_are_brought_to_size(tmp_path: Path) -> None:
    manifest = read_bundle(hollow_bundle(tmp_path / "b", resize="bicubic", framing={"det": "pad"})).manifest
    framing = manifest.tasks["det"].framing, manifest.tasks["seg"].framing
    assert (manifest.input.resize, *framing) == ("bicubic", "pad", "windows")


def test_a_task_without_a_function_is_a_fault(tmp_path: Path) -> None:
    folder = hollow_bundle(tmp_path / "b")
    edit(folder, lambda data: data.update(functions=[f for f in data["functions"] if f["task"] != "seg"]))
    with pytest.raises(BundleError, match="task seg has no function"):
        read_bundle(folder)


def test_the_reference_of_a_model_without_networks_only_restores() -> None:
    pytest.importorskip("torch")
    from tasktok_edge.model.config import preset
    from tasktok_edge.model.tasktok import TaskTok
    from tasktok_edge.reference import Reference

    tiny = preset("tiny")
    tasks = {name: task.model_copy(update={"net": "none"}) for name, task in tiny.tasks.items()}
    model = Reference(TaskTok(tiny.model_copy(update={"tasks": tasks})))
    assert sorted(model.run_raw(RESTORE_ONLY, frames(1))) == ["restore_cls", "restore_det", "restore_seg"]
    assert model.restore(picture((40, 50)), "cls").shape == (40, 50, 3)
    for call in (lambda: model.run_raw(["predict/cls"], frames(1)), lambda: model.predict(picture((40, 50)), "cls")):
        with pytest.raises(UsageError, match="no network for cls"):
            call()


def test_the_reference_answers_with_a_detector_that_lists_boxes() -> None:
    torch = pytest.importorskip("torch")
    from tasktok_edge.model.config import TaskConfig
    from tasktok_edge.model.faster_rcnn import Detections as Listed
    from tasktok_edge.reference import oracle_answer

    class Detector(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, *rows: tuple[float, ...]) -> None:
            super().__init__()
            self.rows = torch.tensor(rows).reshape(-1, 6)

        def forward(self, image: object) -> list[Listed]:
            return [Listed(self.rows[:, :4], self.rows[:, 4].long(), self.rows[:, 5])]

    config = TaskConfig(kind="det", labels=("a", "b"), net="fasterrcnn_mobilenet_v3_large_fpn", framing="pad")
    frame = picture((40, 80))
    net = Detector((0, 0, 8, 8, 2, 0.9), (16, 0, 24, 20, 1, 0.6), (0, 20, 9, 30, 1, 0.8))  # the last is in the padding
    found = oracle_answer(net, frame, "det", config, 32, resize="bicubic")
    np.testing.assert_allclose(found.boxes, [[0, 0, 20, 20], [40, 0, 60, 40]])
    assert (found.labels, found.scores.tolist()) == ([1, 0], pytest.approx([0.9, 0.6]))
    assert oracle_answer(Detector(), frame, "det", config, 32).labels == []
