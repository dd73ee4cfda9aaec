"""Every target: built from the tiny model, read back, run by its engine, equal to PyTorch; failures leave nothing or say so."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tasktok_edge.bundle import read_bundle
from tasktok_edge.errors import PackageError, UsageError
from tasktok_edge.export import TARGETS, Target, package_versions, writer
from tasktok_edge.manifest import Precision
from tasktok_edge.model.checkpoint import load_checkpoint
from tasktok_edge.parity import Exported, export_verified
from tasktok_edge.runtimes import Classification, Detections, Segmentation, load

ALL: tuple[str, ...] = ("cls", "seg", "det")
Case = tuple[Target, Precision, tuple[str, ...]]
# ExecuTorch takes 20 s a function to lower, whatever its size.
CASES: list[Any] = [
    ("openvino", "fp32", ALL),
    ("openvino", "fp16", ALL),
    ("onnx", "fp32", ALL),
    ("onnx", "fp16", ALL),
    ("executorch", "fp32", ("det",)),
    pytest.param(("executorch", "fp16", ("seg",)), marks=pytest.mark.large),
]


@pytest.fixture(scope="module")
def exports(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Exported]:
    """Export once what several tests look at."""

    @cache
    def export(case: Case) -> Exported:
        target, precision, tasks = case
        out = tmp_path_factory.mktemp("out") / f"{target}-{precision}"
        return export_verified(load_checkpoint(tiny_checkpoint), target, out, tasks=tasks, precision=precision)

    return export


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def exported(request: pytest.FixtureRequest, exports: Callable[[Case], Exported]) -> Exported:
    return exports(request.param)


@pytest.mark.slow
def test_parity_is_measured_and_passes(exported: Exported) -> None:
    parity = exported.manifest.parity
    assert parity.status == "passed", parity.reason
    assert set(parity.psnr_db) == {f"{kind}/{task}" for task in exported.manifest.tasks for kind in ("restore", "predict")}
    floors = {"fp32": (100, 100), "fp16": (60, 45)}[exported.manifest.precision]
    for name, figure in parity.psnr_db.items():
        assert figure >= floors[name.startswith("predict")], name
    assert parity.device and parity.effective_precision
    assert min(parity.agreement.values()) >= 0.995
    # A graph that ignored its input would be equal to a model that does: the golden answers must differ from frame to frame.
    with read_bundle(exported.path) as bundle:
        golden = bundle.golden()
    assert all(np.abs(v[0] - v[1]).max() > 1e-5 for name, v in golden.items() if name != "frames")


@pytest.mark.slow
def test_a_session_answers_every_task_at_any_size(exported: Exported) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    with load(exported.path) as session:
        for task in session.tasks:
            result = session(frame, task)
            assert result.frame.shape == frame.shape and result.frame.dtype == np.uint8
            assert np.array_equal(result.frame, session.restore(frame, task))
            answer = session.predict(frame, task)
            assert isinstance(answer, {"cls": Classification, "seg": Segmentation, "det": Detections}[task])
            assert not isinstance(answer, Segmentation) or answer.mask.shape == frame.shape[:2]


@pytest.mark.slow
def test_the_bundle_says_what_it_is(exported: Exported, tiny_checkpoint: Path) -> None:
    with read_bundle(exported.path) as bundle:
        manifest = bundle.manifest
        assert manifest.verified and manifest.level == "exact"
        assert manifest.provenance.checkpoint_sha256 == load_checkpoint(tiny_checkpoint).sha256
        assert {"LICENSE", "README.md", "golden.npz"} <= set(manifest.files)
        model = load_checkpoint(tiny_checkpoint).model
        assert {t: list(s.selected_tokens) for t, s in manifest.tasks.items()} == {
            t: model.switch.selected(t) for t in manifest.tasks
        }


@pytest.mark.slow
def test_fp16_is_about_half_the_size(exports: Callable[[Case], Exported]) -> None:
    sizes = {}
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in precisions:
        proto = onnx.load(exports(("onnx", precision, ALL)).path / "model.onnx")
        sizes[precision] = sum(len(i.raw_data) for i in proto.graph.initializer)
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


@pytest.mark.slow
def test_core_ml_is_built_and_evaluated(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import coremltools as ct

    done = export_verified(load_checkpoint(tiny_checkpoint), "coreml", tmp_path / "c", tasks=("det",), precision="fp32")
    spec = ct.models.MLModel(str(done.path / "model.mlpackage"), skip_model_load=True).get_spec()
    described = {f.name: f for f in spec.description.functions}
    assert set(described) == {"restore_det", "predict_det"}
    for function in described.values():
        image = function.input[0].type.imageType
        assert (image.width, image.height) == (32, 32)
    assert [o.name for o in described["predict_det"].output] == ["predict_det_boxes", "predict_det_scores"]
    types = {v.type.tensorType.dataType for f in spec.mlProgram.functions.values()
             for b in f.block_specializations.values() for op in b.operations for v in op.outputs}  # fmt: skip
    half = 10  # MIL's FLOAT16
    assert half not in types  # which fp16 has, test_coreml.py
    assert done.manifest.verified
    if sys.platform != "darwin":
        assert done.manifest.parity.device == "REFERENCE"


@pytest.mark.slow
def test_a_bundle_that_fails_parity_is_kept_and_exits_3(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasktok_edge.cli import run

    monkeypatch.setitem(writer.FLOOR_DB, "fp32", 190.0)  # nothing but equal bits reaches that
    out = tmp_path / "out"
    code = run(["export", "--target", "onnx", "--checkpoint", str(tiny_checkpoint), "--out", str(out), "--task", "cls"])
    assert code == 3
    assert "parity failed" in capsys.readouterr().err
    manifest = json.loads((out / "tiny-onnx-fp32" / "manifest.json").read_text())
    assert manifest["parity"]["status"] == "failed"


def test_a_converter_that_breaks_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasktok_edge.export import onnx as target

    def half_done(model: object, functions: object, folder: Path, *, precision: str, say: object) -> None:
        (folder / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(target, "build", half_done)
    with pytest.raises(KeyboardInterrupt):
        export_verified(load_checkpoint(tiny_checkpoint), "onnx", tmp_path / "out" / "b", tasks=("cls",), precision="fp32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupted_command_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tasktok_edge.export", "--target", "onnx", "--checkpoint", str(tiny_checkpoint)]
    root, out = Path(__file__).parents[2], tmp_path / "out"
    process = subprocess.Popen(
        [*command, "--out", str(out)],
        cwd=root,
        stderr=subprocess.DEVNULL,
        # A test run started in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    deadline = time.monotonic() + 120
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert out.exists(), "the export never began to write"
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_any_work(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"x")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="mine"):
            export_verified(
                load_checkpoint(tiny_checkpoint),
                "onnx",
                tmp_path / "mine",
                tasks=("cls",),
                precision="fp32",
                overwrite=overwrite,
            )
    assert (tmp_path / "mine" / "photo.jpg").exists()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(PackageError, match=r"tasktok-edge\[export\]") as caught:
        package_versions("coreml")
    assert caught.value.exit_code == 4


def test_targets_have_one_line_each() -> None:
    assert set(TARGETS) == {"executorch", "coreml", "openvino", "onnx"}
