"""Int8 on every engine: the codes of PyTorch's simulation, computed in integers, with int8 weights in the file."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tasktok_edge.cli import run
from tasktok_edge.errors import UsageError
from tasktok_edge.export.executorch import delegated, lower
from tasktok_edge.export.graph import Deployed, Function, model_functions
from tasktok_edge.export.int8 import Form, in_codes
from tasktok_edge.model.checkpoint import load_checkpoint, save_checkpoint
from tasktok_edge.model.int8 import Int8Conv2d, Int8Linear, int8_layers
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.parity import Exported, export_verified
from tasktok_edge.quantize import ptq
from tasktok_edge.reference import Reference
from tasktok_edge.runtimes import load
from tasktok_edge.runtimes.selection import psnr_db
from tests.conftest import build_tiny, build_tiny_edge
from tests.export.test_rewrite import official_kind

FORMS: list[Form] = ["int8", "uint8", "fake"]
# ExecuTorch takes long to lower a function, whatever its size.
CASES: list[Any] = [
    ("onnx", ("cls", "seg", "det")),
    ("openvino", ("cls", "seg", "det")),
    pytest.param(("executorch", ("det",)), marks=pytest.mark.large),
]
FP = ["tokenizer.encoder.conv_out", "tokenizer.decoder.ffn"]


def quantised(model: TaskTok) -> TaskTok:
    """The int8 form of a model, two of its layers left as they are."""
    frames = torch.rand(4, 3, model.config.image_size, model.config.image_size, generator=torch.Generator().manual_seed(0))
    return ptq.to_int8(model, frames, keep_fp=FP)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    save_checkpoint(folder, quantised(build_tiny_edge()), facts={})
    return folder


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def exported(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    target, tasks = request.param
    out = tmp_path_factory.mktemp("out") / target
    return export_verified(load_checkpoint(checkpoint), target, out, tasks=tasks, precision="int8")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [build_tiny, build_tiny_edge, official_kind])
def test_every_form_is_the_simulation(form: Form, kind: Any) -> None:
    model = quantised(kind())
    graph = Deployed(model, model_functions(model.config)).eval()
    frame = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(in_codes(graph, form)(frame), graph(frame), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", [build_tiny, build_tiny_edge, official_kind])
def test_layers_taken_apart_keep_their_codes(kind: Any) -> None:
    model = quantised(kind())
    graph = Deployed(model, model_functions(model.config)).eval()
    frame = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    wanted = model.restore(frame.permute(0, 3, 1, 2) / 255, "cls").permute(0, 2, 3, 1)
    for found in (graph(frame)[0], in_codes(delegated(graph), "int8")(frame)[0]):
        assert (found - wanted).abs().mean() < 1e-3  # a code on the border of two may fall to the other side
        assert (found - wanted).abs().median() < 1e-5


@pytest.mark.slow
def test_parity_passes_and_the_bundle_says_what_is_int8(exported: Exported, checkpoint: Path) -> None:
    manifest, model = exported.manifest, load_checkpoint(checkpoint).model
    assert manifest.verified, manifest.parity.reason
    assert min(db for name, db in manifest.parity.psnr_db.items() if name.startswith("restore")) >= 45
    tasks = tuple(f"task_nets.{task}." for task in manifest.tasks)
    inside = {name for name in model.config.int8 if name.startswith(tasks) or not name.startswith("task_nets.")}
    assert manifest.precision == "int8" and manifest.quantization == dict.fromkeys(inside, "w8a8")
    assert not set(FP) & set(manifest.quantization)
    with load(exported.path) as session:
        assert session.precision.startswith("int8")


@pytest.mark.slow
def test_engines_give_the_codes_of_pytorch(exported: Exported, checkpoint: Path) -> None:
    # A rounding that an engine leaves out (OpenVINO's fusions would, before a sum) moves every frame's answers, to 35 dB.
    reference = Reference(load_checkpoint(checkpoint).model)
    with load(exported.path) as session:
        for function in session.bundle.manifest.functions:
            name, figures = function.outputs[0].name, []
            for seed in range(9):
                frame = np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), np.uint8)
                want = reference.run_raw((function.name,), frame)[name]
                figures.append(psnr_db(session.run_raw((function.name,), frame)[name], want, float(np.abs(want).max())))
            assert np.median(figures) > 90, (name, figures)


@pytest.mark.slow
@pytest.mark.parametrize("exported", CASES[:1], indirect=True, ids=["onnx"])
def test_onnx_runtime_computes_in_integers(exported: Exported, checkpoint: Path, tmp_path: Path) -> None:
    import onnxruntime as ort

    model = load_checkpoint(checkpoint).model
    plain = onnx.load(exported.path / "model.onnx")
    kept = {tuple(model.get_submodule(name).weight.shape) for name in FP}  # type: ignore[union-attr]
    shapes = {tuple(i.dims) for i in plain.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) > 1}
    whole = {n: tuple(layer.weight.shape) for n, layer in int8_layers(model).items() if not n.endswith(".qkv")}
    assert shapes >= set(whole.values())
    for name, layer in int8_layers(model).items():  # queries may stand apart from keys and values, or be constants
        rows, columns = layer.weight.shape[:2]
        assert name in whole or {(rows, columns), (2 * rows // 3, columns)} & shapes, name
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    ort.InferenceSession(exported.path / "model.onnx", options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    linears, convs = (sum(isinstance(x, kind) for x in int8_layers(model).values()) for kind in (Int8Linear, Int8Conv2d))
    assert found["QGemm"] >= linears and found["QLinearConv"] >= convs  # more, for some have their rows taken apart
    assert found["Gemm"] + found["Conv"] + found["FusedConv"] <= 3 * len(kept)  # for each task: the decoder runs once for each


@pytest.mark.slow
def test_openvino_computes_in_integers(checkpoint: Path, tmp_path: Path) -> None:
    from tasktok_edge.export import openvino as target

    model = load_checkpoint(checkpoint).model
    target.build(model, [Function("predict", "det")], tmp_path, precision="int8", say=lambda _: None)
    import openvino as ov

    compiled = ov.Core().compile_model(tmp_path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ran = Counter()
    for node in compiled.get_runtime_model().get_ops():
        kind, precision = (node.get_rt_info()[key].astype(str) for key in ("layerType", "runtimePrecision"))
        if kind in ("Convolution", "FullyConnected"):
            ran[precision in ("u8", "i8")] += 1
    # Tiny convolutions of few channels stay in floating point there: the plugin finds integers slower.
    assert ran[True] >= 20 and ran[False] <= len(FP) + 4, ran
    weights = sum(layer.weight.numel() for layer in int8_layers(model).values())
    floats = sum(p.numel() * 4 for name, p in model.named_parameters() if name.removesuffix(".weight") not in model.config.int8)
    assert (tmp_path / "model.bin").stat().st_size < 1.5 * (weights + floats)


@pytest.mark.large
def test_xnnpack_takes_every_layer_and_every_rounding(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint).model
    function = Function("predict", "det")
    edge = lower(model, [function], precision="int8", say=lambda _: None)
    left = [str(n.target) for n in edge.exported_program(function.entry).graph.nodes if n.op == "call_function"]
    assert any("executorch_call_delegate" in name for name in left)
    assert not [n for n in left if any(word in n for word in ("quantize", "linear", "addmm", "aten.mm", "convolution"))]


@pytest.mark.slow
def test_core_ml_has_codes_for_weights_and_activations(checkpoint: Path, tmp_path: Path) -> None:
    import coremltools as ct

    from tasktok_edge.export import coreml as target

    model = load_checkpoint(checkpoint).model
    target.build(model, [Function("predict", "det")], tmp_path, precision="int8", say=lambda _: None)
    spec = ct.models.MLModel(str(tmp_path / "model.mlpackage"), skip_model_load=True).get_spec()
    blocks = [b for f in spec.mlProgram.functions.values() for b in f.block_specializations.values()]
    found = Counter(op.type for block in blocks for op in block.operations)
    run = [n for n in model.config.int8 if not n.startswith(("task_nets.cls", "task_nets.seg"))]
    assert found["constexpr_blockwise_shift_scale"] >= len(run)
    assert min(found["quantize"], found["dequantize"]) >= len(run)


def test_a_float_model_is_quantised_and_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptq, "CALIBRATION_FRAMES", 2)
    told: list[str] = []
    made = ptq.at_precision(build_tiny(), "int8", told.append)
    assert made.config.int8 and len(told) == 1 and "post-training quantization on 2 scenes" in told[0]
    assert ptq.at_precision(made, "int8", told.append) is made and len(told) == 1


def test_an_int8_model_is_refused_as_floating_point(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="computes in int8, not in fp16"):
        ptq.at_precision(load_checkpoint(checkpoint).model, "fp16", lambda _: None)
    assert run(["export", "--target", "onnx", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    assert "computes in int8, not in fp32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
