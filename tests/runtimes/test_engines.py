"""Each engine on a real tiny bundle, through the shim and against the torch module it was made from."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tasktok_edge.bundle import Target, read_bundle
from tasktok_edge.errors import DeviceError, PackageError
from tasktok_edge.runtimes import ENGINES, devices, engine, load
from tasktok_edge.runtimes import onnx as onnx_engine
from tasktok_edge.runtimes.onnx_parts import keep_outputs
from tasktok_edge.runtimes.selection import psnr_db
from tests.helpers_bundle import NOT_RUN, PASSED, SHAPES, SIZE, finish, frames, hollow_bundle, outputs_of, reference

FUNCTIONS = [f"{kind}/{task}" for task in ("cls", "seg", "det") for kind in ("restore", "predict")]
ROOT = Path(__file__).parents[2]


def test_every_function_answers_as_the_module_does(bundle: Path, target: Target) -> None:
    batch = frames(2, seed=7)
    want = reference(batch)
    with load(bundle, "cpu", threads=1) as session:
        assert (session.engine, session.precision, session.device.kind) == (target, "fp32", "cpu")
        for calls in (*[(f,) for f in FUNCTIONS], ("restore/seg", "predict/seg"), tuple(FUNCTIONS)):
            for i in range(2):
                found = session.run_raw(calls, batch[i : i + 1])
                assert sorted(found) == sorted(o for f in calls for o in outputs_of(f))
                for name, value in found.items():
                    assert value.shape == SHAPES[name]
                    assert psnr_db(value, want[name][i : i + 1], 1.0) > 100, name


def test_raw_answers_are_not_overwritten_by_the_next_frame(bundle: Path) -> None:
    batch = frames(2, seed=3)
    with load(bundle, threads=1) as session:
        first = session.run_raw(("restore/seg",), batch[:1])["restore_seg"]
        kept = first.copy()
        session.run_raw(("restore/seg",), batch[1:])
        np.testing.assert_array_equal(first, kept)


def test_read_only_and_flipped_frames(bundle: Path) -> None:
    frame = frames(1)[0]
    locked = frame.copy()
    locked.flags.writeable = False
    with load(bundle, threads=1, tasks=["seg"]) as session:
        want = session.restore(frame)
        np.testing.assert_array_equal(session.restore(locked), want)
        bgr = np.ascontiguousarray(frame[..., ::-1])
        np.testing.assert_array_equal(session.restore(bgr[..., ::-1]), want)


def test_the_report_says_what_ran(bundle: Path, target: Target) -> None:
    with load(bundle, threads=1) as session:
        chosen = session.report.chosen
        assert chosen is not None
        assert chosen.device == session.device
        assert set(chosen.psnr_db) == set(FUNCTIONS)
        assert min(chosen.psnr_db.values()) > 100
        assert chosen.latency_ms is not None
        assert chosen.latency_ms > 0
        assert chosen.effective_device
        assert f"tiny on {target}" in str(session.report)


def test_wrong_golden_answers_are_refused(bundle: Path, target: Target, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "b"))
    wrong = reference(frames())
    wrong["predict_seg"] = wrong["predict_seg"] + np.float32(0.01)
    finish(folder, target, read_bundle(bundle).manifest.functions[0].file, answers=wrong)
    with pytest.raises(DeviceError, match=r"wrongly: predict/seg \d\d\.\d dB \(floor 100\)"):
        load(folder, threads=1)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, target: Target) -> None:
    if target == "executorch":
        pytest.skip("ExecuTorch ends the process on a file that is not its own; hashes keep that from happening")
    file = "model.xml" if target == "openvino" else "model.onnx"
    with pytest.raises(DeviceError, match="no device runs") as caught:
        load(hollow_bundle(tmp_path / "b", target=target, file=file))
    assert "\n" not in str(caught.value)


def test_a_model_without_the_outputs_is_refused(built: Callable[[Target], Path], tmp_path: Path) -> None:
    for target, file in (("openvino", "model.xml"), ("onnx", "model.onnx"), ("executorch", "model.pte")):
        folder = tmp_path / target
        folder.mkdir()
        for source in built(target).glob("model.*"):  # type: ignore[arg-type]
            text = source.read_bytes()
            change = text.replace(b"predict_seg", b"perdict_gse") if target != "executorch" else text
            (folder / source.name).write_bytes(change)
        finish(folder, target, file, answers=reference(frames()))  # type: ignore[arg-type]
        if target == "executorch":
            data = (folder / "manifest.json").read_text()
            (folder / "manifest.json").write_text(data.replace('"entry": "predict_seg"', '"entry": "nothing"'))
        with pytest.raises(DeviceError) as caught:
            load(folder, threads=1)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["openvino", "onnxruntime", "executorch.runtime"])
def test_a_missing_engine_names_its_extra(
    built: Callable[[Target], Path], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    target: Target = {"openvino": "openvino", "onnxruntime": "onnx"}.get(package, "executorch")  # type: ignore[assignment]
    folder = built(target)
    module = engine(target)
    cached = getattr(module, "_core", None)
    if cached is not None:
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PackageError, match=rf'pip install "tasktok-edge\[{target}\]"') as caught:
        load(folder)
    assert caught.value.exit_code == 4
    assert [d.reason for d in devices() if d.engine == target] == [str(caught.value)]


def test_devices_lists_every_engine() -> None:
    found = devices()
    assert {d.engine for d in found} == set(ENGINES)
    assert all(d.usable or d.reason for d in found)
    assert {d.engine for d in found if d.usable and d.kind == "cpu"} >= {"openvino", "onnx", "executorch"}
    assert not any("Azure" in d.native or d.native.startswith("AUTO") for d in found)


class RecordedOrt:
    """ONNX Runtime where it has more providers than here: what it lists, takes and assigns, as 1.31 does."""

    __version__ = "1.31.1"

    def __init__(self, assigned: dict[str, str]) -> None:
        import onnxruntime

        self.real, self.assigned, self.asked = onnxruntime, assigned, list[Any]()
        self.SessionOptions = lambda: SimpleNamespace(
            add_session_config_entry=lambda *_: None, add_provider_for_devices=lambda devices, _: self.asked.append(devices)
        )

    def get_available_providers(self) -> list[str]:
        names = ("CUDA", "CoreML", "QNN", "OpenVINO", "Dml", "Xnnpack", "WebGpu", "Azure", "CPU")
        return [f"{name}ExecutionProvider" for name in names]

    def get_ep_devices(self) -> list[Any]:
        device = SimpleNamespace(type="OrtHardwareDeviceType.NPU", vendor="Qualcomm")
        built_in = SimpleNamespace(ep_name="CPUExecutionProvider", ep_vendor="Microsoft", device=device)
        return [built_in, SimpleNamespace(ep_name="onnxruntime_qnn", ep_vendor="Qualcomm", device=device)]

    def InferenceSession(self, model: bytes, options: Any, **words: Any) -> Any:  # noqa: N802
        asked = self.asked.pop()[0].ep_name if "providers" not in words else words["providers"][0]
        assert words["enable_fallback"] == 0
        session = self.real.InferenceSession(model, providers=["CPUExecutionProvider"])
        part = SimpleNamespace(ep_name=self.assigned.get(asked, asked), get_nodes=lambda: [1, 2, 3])
        return SimpleNamespace(run=session.run, get_provider_graph_assignment_info=lambda: [part])


def test_onnx_runtimes_other_providers(built: Callable[[Target], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    # QNN as it was seen: registered, listed, and every node on the CPU.
    ort = RecordedOrt({"QNNExecutionProvider": "CPUExecutionProvider"})
    monkeypatch.setattr(onnx_engine, "_onnxruntime", lambda: ort)
    found = {d.native: d.kind for d in onnx_engine.devices()}
    assert found == {
        "CUDAExecutionProvider": "gpu",
        "CoreMLExecutionProvider": "npu",
        "QNNExecutionProvider": "npu",
        "OpenVINOExecutionProvider": "cpu",
        "DmlExecutionProvider": "gpu",
        "XnnpackExecutionProvider": "cpu",
        "WebGpuExecutionProvider": "gpu",
        "CPUExecutionProvider": "cpu",
        "onnxruntime_qnn:0": "npu",
    }
    with load(built("onnx"), threads=1) as session:
        trials = {t.device.native: t for t in session.report.trials}
        assert trials.keys() == found.keys()
        assert trials["QNNExecutionProvider"].reason == "ONNX Runtime put all nodes on the CPU, none on QNNExecutionProvider"
        assert all(t.verdict in ("chosen", "proven") for name, t in trials.items() if name != "QNNExecutionProvider")
    with load(built("onnx"), "onnxruntime_qnn:0") as session:
        assert session.placement("seg") == {"onnxruntime_qnn": 3}
    with load(built("onnx"), "npu", policy="power") as session:
        assert session.device.kind == "npu"


def test_onnx_computes_what_is_asked_alone(built: Callable[[Target], Path]) -> None:
    model = (built("onnx") / "model.onnx").read_bytes()
    one, all_of_them = keep_outputs(model, ["restore_seg"]), keep_outputs(model, list(SHAPES))
    assert len(one) < len(all_of_them) <= len(model)
    assert b"predict_det" not in one
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(one, providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["restore_seg"]
    batch = frames(1)
    np.testing.assert_allclose(session.run(None, {"frame": batch})[0], reference(batch)["restore_seg"], atol=1e-6)


def test_onnx_branches_keep_what_they_read_from_outside() -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    agraph (float[2] x, bool c) => (float[2] y, float[2] z) <float[2] w = {1.0, 2.0}, float[2] v = {5.0, 5.0}>
    {
        a = Add(x, w)
        b = Mul(x, v)
        y = If (c) <
            then_branch = t () => (float[2] p) { p = Identity(a) },
            else_branch = e () => (float[2] q) { q = Sub(a, x) }
        >
        z = Identity(b)
    }"""
    model = onnx.parser.parse_model(text)
    part = keep_outputs(model.SerializeToString(), ["y"])
    kept = onnx.load_from_string(part)
    onnx.checker.check_model(kept)
    assert [n.op_type for n in kept.graph.node] == ["Add", "If"]
    assert [i.name for i in kept.graph.initializer] == ["w"]
    session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
    x = np.array([10, 20], np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x, "c": np.array(False)})[0], [1, 2])


@pytest.mark.parametrize("name", ["openvino", "onnx"])
def test_running_a_bundle_imports_no_torch(built: Callable[[Target], Path], name: Target) -> None:
    code = f"""
import sys, numpy as np
from tasktok_edge.runtimes import load
with load({str(built(name))!r}, threads=1) as session:
    for task in session.tasks:
        session(np.zeros((50, 70, 3), np.uint8), task)
heavy = {{"torch", "onnx", "executorch", "coremltools", "tasktok_edge.model", "tasktok_edge.export"}} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_the_shim_is_light() -> None:
    code = """
import sys, tasktok_edge.runtimes
heavy = {"torch", "onnxruntime", "openvino", "executorch", "coremltools", "typer", "PIL"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_openvino_reports_home_to_nobody(tmp_path: Path) -> None:
    code = "import tasktok_edge.runtimes as r; r.engine('openvino').devices()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={"HOME": str(tmp_path), "PATH": "/bin"})
    assert not (tmp_path / "intel").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is there on a Mac")
def test_coreml_is_refused_elsewhere_with_the_reason(tmp_path: Path) -> None:
    folder = hollow_bundle(tmp_path / "b", target="coreml", file="model.mlpackage/Manifest.json", parity=NOT_RUN)
    for device in ("auto", "npu"):
        with pytest.raises(DeviceError, match="Core ML runs on macOS 13 or newer; this is Linux"):
            load(folder, device)


def test_coreml_calls_coremltools_as_its_source_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for coremltools; its signatures are held against the real one's where that is installed."""
    import inspect

    real = pytest.importorskip("coremltools")
    assert {"compute_units", "function_name"} <= set(inspect.signature(real.models.MLModel.__init__).parameters)
    assert {"CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY"} <= {u.name for u in real.ComputeUnit}
    opened: list[tuple[str, object, str]] = []

    class MLModel:
        def __init__(self, path: str, *, compute_units: object, function_name: str) -> None:
            opened.append((Path(path).name, compute_units, function_name))
            self.outputs = outputs_of(function_name.replace("_", "/", 1))

        def predict(self, data: dict[str, object]) -> dict[str, object]:
            answers = reference(np.asarray(data["frame"])[None])
            return {name: answers[name].astype(np.float64) for name in self.outputs}

    here = [type(n, (), {})() for n in ("MLCPUComputeDevice", "MLNeuralEngineComputeDevice")]
    compute = SimpleNamespace(MLComputeDevice=SimpleNamespace(get_all_compute_devices=lambda: here))
    fake = SimpleNamespace(
        __version__="9.0",
        ComputeUnit=real.ComputeUnit,
        models=SimpleNamespace(MLModel=MLModel, compute_device=compute),
    )
    coreml = engine("coreml")
    monkeypatch.setattr(coreml, "_coremltools", lambda: fake)
    monkeypatch.setattr(coreml, "_why_not", lambda: None)
    folder = tmp_path / "b"
    (folder / "model.mlpackage").mkdir(parents=True)
    (folder / "model.mlpackage" / "Manifest.json").write_text("{}")
    finish(folder, "coreml", "model.mlpackage", answers=reference(frames()))
    with load(folder, policy="power") as session:
        assert [(t.device.kind, t.verdict) for t in session.report.trials] == [
            ("npu", "chosen"),
            ("gpu", "unusable"),
            ("cpu", "proven"),
            ("cpu", "skipped"),  # the reference evaluator, which nobody named
        ]
        assert ("model.mlpackage", real.ComputeUnit.CPU_AND_NE, "restore_seg") in opened
        raw = session.run_raw(("predict/det",), frames(1))
        assert {v.dtype for v in raw.values()} == {np.dtype(np.float32)}
        assert session(frames(1)[0], "det").frame.shape == (SIZE, SIZE, 3)


def test_threads_and_tasks_are_kept_to(bundle: Path) -> None:
    with load(bundle, threads=1, tasks=["seg"]) as session:
        assert session.tasks == ("seg",)
        chosen = session.report.chosen
        assert chosen is not None
        assert set(chosen.psnr_db) == {"restore/seg", "predict/seg"}


def test_a_zipped_bundle_runs_and_its_folder_goes(bundle: Path, tmp_path: Path) -> None:
    from tasktok_edge.bundle import pack

    file = pack(bundle, tmp_path / "tiny.ttk")
    with load(file, threads=1, tasks=["cls"]) as session:
        inside = session.bundle.path
        session.predict(frames(1)[0])
    assert not inside.exists()


def test_bundles_are_left_as_they_were(bundle: Path) -> None:
    assert read_bundle(bundle).manifest.parity == PASSED  # after all of the above
