"""Core ML's packages: evaluated on this machine, and what an exporter could get wrong is found and named."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tasktok_edge.bundle import read_bundle
from tasktok_edge.diagnose import diagnose
from tasktok_edge.errors import DeviceError, UsageError
from tasktok_edge.export import coreml
from tasktok_edge.export.graph import Deployed, Function
from tasktok_edge.manifest import Precision
from tasktok_edge.model.checkpoint import load_checkpoint, save_checkpoint
from tasktok_edge.model.config import preset
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.parity import Exported, export_verified
from tasktok_edge.reference import Reference as PyTorch
from tasktok_edge.runtimes import load
from tasktok_edge.runtimes.evaluator import Evaluator
from tasktok_edge.runtimes.mlprogram import Function as MilFunction
from tasktok_edge.runtimes.mlprogram import Operator, Package, Reference, Typed
from tasktok_edge.runtimes.neural_engine import expectations, expected
from tests.conftest import shake

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "darwin", reason="there Core ML itself is measured")]


def export(checkpoint: Path, out: Path, precision: Precision = "fp32", tasks: tuple[str, ...] = ("cls",)) -> Exported:
    return export_verified(load_checkpoint(checkpoint), "coreml", out, tasks=tasks, precision=precision)


@pytest.fixture(scope="module")
def half(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = export(tiny_checkpoint, tmp_path_factory.mktemp("coreml") / "half", "fp16", ("cls", "det"))
    assert done.manifest.verified and done.manifest.parity.device == "REFERENCE"
    return done.path


@pytest.fixture(scope="module")
def restoring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without its task networks: one function for a task, half the work."""
    config, folder = preset("tiny"), tmp_path_factory.mktemp("restoring")
    tasks = {task: part.model_copy(update={"net": "none"}) for task, part in config.tasks.items()}
    save_checkpoint(folder, shake(TaskTok(config.model_copy(update={"tasks": tasks}))), facts={})
    return folder


def test_it_is_evaluated_only_where_that_is_asked_for(half: Path, tiny_checkpoint: Path) -> None:
    for device in ("auto", "cpu"):
        with pytest.raises(
            DeviceError, match=r"Core ML runs on macOS.*There is|There is: cpu \(REFERENCE, where it is named\)"
        ):
            load(half, device)
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    reference = PyTorch(load_checkpoint(tiny_checkpoint).model)
    with load(half, "reference") as session:
        assert session.device.native == "REFERENCE" and session.report.pick("latency") is None
        assert np.abs(session.restore(frame, "det").astype(int) - reference.restore(frame, "det")).max() <= 1
        assert session.placement("cls")["REFERENCE, float16"] > 20
        with pytest.raises(DeviceError, match="no function"):
            session._running._packages["model.mlpackage"].function("restore_nothing")  # type: ignore[union-attr]


def test_intermediates_are_shown_and_rounded_as_declared(half: Path) -> None:
    package = Package(half / "model.mlpackage")
    evaluator = Evaluator(package.function("predict_det"))
    seen: dict[str, np.dtype] = {}  # type: ignore[type-arg]
    batch = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    outputs = evaluator(
        {"frame": package.image("predict_det", batch)}, lambda o, r: seen.update({o.results[0].name: r[0].dtype})
    )
    assert list(outputs) == ["predict_det_boxes", "predict_det_scores"] and len(seen) > 40
    assert {str(dtype) for dtype in seen.values()} == {"float16", "float32"}  # the scaling of the image is in 32 bits


def test_diagnose_finds_nothing_in_what_is_right(half: Path, tiny_checkpoint: Path) -> None:
    loaded = load_checkpoint(tiny_checkpoint)
    found = diagnose(half, loaded, loaded.model)
    assert [d.function for d in found] == ["restore/cls", "predict/cls", "restore/det", "predict/det"]
    for one in found:
        assert one.first is None and not one.notes
        assert len(one.compared) > 0.7 * len(one.steps)
    with pytest.raises(UsageError, match="did you mean 'restore/cls'"):
        diagnose(half, loaded, loaded.model, ["restore/clt"])


def test_the_package_says_what_it_is(half: Path, tiny_checkpoint: Path) -> None:
    import coremltools as ct

    about = ct.utils.load_spec(str(half / "model.mlpackage")).description.metadata
    model = load_checkpoint(tiny_checkpoint).model
    assert "(tiny, fp16, exact)" in about.shortDescription and about.author and about.license
    assert json.loads(about.userDefined["labels.cls"]) == list(model.config.tasks["cls"].labels)
    assert about.userDefined["tokens.det"] == ",".join(map(str, model.switch.selected("det")))


def test_the_swift_file_names_what_the_package_has(half: Path) -> None:
    import coremltools as ct

    text = (half / "Restorer.swift").read_text()
    described = {
        f.name: [o.name for o in f.output] for f in ct.utils.load_spec(str(half / "model.mlpackage")).description.functions
    }
    cases = dict(re.findall(r'case (\w+) = "(\w+)"', text))
    assert sorted(cases.values()) == sorted(described)
    outputs = {case: re.findall(r'"(\w+)"', names) for case, names in re.findall(r"case \.(\w+): return \[(.*)\]", text)}
    assert {cases[case]: names for case, names in outputs.items()} == described
    assert 'dictionary: ["frame":' in text and "static let size = 32 " in text
    assert text.count("{") == text.count("}") and text.count("(") == text.count(")") and text.count("[") == text.count("]")


def test_for_older_systems_each_function_has_a_package(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import coremltools as ct

    loaded = load_checkpoint(tiny_checkpoint)
    options = {"deployment_target": "iOS16"}
    done = export_verified(loaded, "coreml", tmp_path / "b", tasks=("cls",), precision="fp16", options=options)
    assert done.manifest.verified and done.manifest.parity.device == "REFERENCE"
    assert [(f.file, f.entry) for f in done.manifest.functions] == [
        ("restore_cls.mlpackage", "main"),
        ("predict_cls.mlpackage", "main"),
    ]
    for function in done.manifest.functions:
        spec = ct.utils.load_spec(str(done.path / function.file))
        assert spec.specificationVersion == ct.target.iOS16 and not spec.description.functions
        assert json.loads(spec.description.metadata.userDefined["labels.cls"])
    text = (done.path / "Restorer.swift").read_text()
    assert "iOS 16 or macOS 13" in text and "functionName" not in text
    assert 'var package: String { "\\(rawValue).mlpackage" }' in text
    assert [d.first for d in diagnose(done.path, loaded, loaded.model)] == [None, None]
    with read_bundle(done.path) as bundle:
        assert list(expectations(bundle)) == ["restore/cls", "predict/cls"]
    with load(done.path, "reference") as session:
        assert session.placement("cls")["REFERENCE, float16"] > 20


def test_a_deployment_target_must_be_one_and_take_the_precision() -> None:
    with pytest.raises(UsageError, match="did you mean 'iOS18'"):
        coreml.check_target("iOS19", "fp16")
    with pytest.raises(UsageError, match="int8 needs iOS17 or newer, not iOS16"):
        coreml.check_target("iOS16", "int8")
    assert {getattr(ct_target, "name", "") for ct_target in coreml.ct.target} >= set(coreml.DEPLOYMENT_TARGETS)


def test_where_operators_are_expected_is_by_rules_and_multiply_adds_are_right(half: Path, tiny_checkpoint: Path) -> None:
    package = Package(half / "model.mlpackage")
    ((_, exported),) = coreml.graphs(load_checkpoint(tiny_checkpoint).model, [Function("predict", "det")], precision="fp16")
    with FlopCounterMode(display=False) as counted:  # which counts the CPU's attention kernel as nought
        exported.module()(torch.zeros(1, 3, 32, 32))
    found = expected(package.function("predict_det"))
    attention = [p.macs for p in found.placed if p.operator == "scaled_dot_product_attention"]
    assert sum(found.macs().values()) - sum(attention) == counted.get_total_flops() // 2
    config = load_checkpoint(tiny_checkpoint).model.config
    tokens, width = config.tokenizer.tokens, config.refiner.width
    assert 2 * tokens**2 * width in attention  # scores and weighted sums of all the refiner's tokens
    elsewhere = {p.operator for p in found.placed if p.unit != "Neural Engine"}
    assert elsewhere == {"gather", "mul"}  # the rows of a task, and the image's scale, which is in 32 bits
    assert {p.operator for p in found.breaks} == {"gather"}
    whole = found.placed
    assert all(source.startswith(("Apple", "community")) for p in whole for _, source in p.rules)


@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "unit"),
    [
        ("add", "FLOAT16", (1, 8, 4, 64), "Neural Engine"),
        ("add", "FLOAT32", (1, 8, 4, 64), "GPU"),
        ("topk", "FLOAT16", (1, 8), "CPU"),
        ("cast", "INT32", (1, 8), "CPU"),
        ("add", "FLOAT16", (1, 2, 3, 4, 5, 6), "CPU"),
        ("add", "FLOAT16", (1, 8, 4, 20000), "GPU"),
        ("gather", "FLOAT16", (1, 8), "unsure"),
        ("gather", "FLOAT32", (1, 8), "GPU"),
    ],
)
def test_the_rules(kind: str, dtype: str, shape: tuple[int, ...], unit: str) -> None:
    operator = Operator(kind, {"x": [Reference("x")]}, (Typed("y", dtype, shape),))
    (placed,) = expected(MilFunction("f", (Typed("x", "FLOAT16", shape),), (operator,), ("y",))).placed
    assert placed.unit == unit and placed.macs == 0


class Transposed(Deployed):
    """The tokens' axes exchanged on the way to the decoder."""

    def __init__(self, model: TaskTok, functions: Sequence[Function], **kind: bool) -> None:
        super().__init__(model, functions, **kind)  # type: ignore[arg-type]
        for switch in self.switches.values():
            switch.register_forward_hook(lambda _, __, z: z.transpose(1, 2).reshape(z.shape))


class Large(Deployed):
    """Pixels on their way past what 16 bits hold, and back."""

    def _image(self, frame: Tensor) -> Tensor:
        return super()._image((frame + 1) * 1e5) * 1e-5


class Confused(Deployed):
    """Asked for one task, it takes the tokens of another."""

    def only(self, function: Function) -> Deployed:
        part = super().only(function)
        other = next(task for task in ("cls", "seg", "det") if task != function.task)
        part.switches[function.choice] = self.model_of.static_switch(other)
        return part

    def __init__(self, model: TaskTok, functions: Sequence[Function], **kind: bool) -> None:
        super().__init__(model, functions, **kind)  # type: ignore[arg-type]
        self.__dict__["model_of"] = model


def stale(model: TaskTok) -> TaskTok:
    old = deepcopy(model)
    with torch.no_grad():
        old.refiner.conv_in.weight.mul_(0.5)
    return old


def _faulty(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "scale":
        whole = coreml.ct.ImageType
        monkeypatch.setattr(coreml.ct, "ImageType", lambda *a, **k: whole(*a, **{**k, "scale": 1.0}))
    elif fault == "stale":
        graphs: Callable[..., Iterator[object]] = coreml.graphs
        monkeypatch.setattr(
            coreml, "graphs", lambda model, functions, precision: graphs(stale(model), functions, precision=precision)
        )
    else:
        monkeypatch.setattr(coreml, "Deployed", {"transposed": Transposed, "large": Large, "function": Confused}[fault])


@pytest.mark.parametrize(
    ("fault", "precision", "named"),
    [
        ("transposed", "fp32", "linear"),  # the decoder's first
        ("scale", "fp32", "transpose"),  # the first at all
        ("function", "fp32", "gather"),
        ("large", "fp16", "cast"),
        ("stale", "fp32", "linear"),
    ],
)
def test_what_an_exporter_gets_wrong_fails_and_is_named(
    fault: str, precision: Precision, named: str, restoring: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        _faulty(fault, patched)
        done = export(restoring, tmp_path / "b", precision)
    assert done.manifest.parity.status == "failed", done.manifest.parity
    loaded = load_checkpoint(restoring)
    (found,) = diagnose(done.path, loaded, loaded.model, ["restore/cls"])
    assert found.first is not None and found.first.operator == named


def test_a_failed_verdict_exits_3(restoring: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasktok_edge.cli import run

    _faulty("scale", monkeypatch)
    words = ["export", "--target", "coreml", "--task", "cls", "--checkpoint", str(restoring), "--out", str(tmp_path)]
    assert run(words) == 3
    (bundle,) = tmp_path.glob("*-coreml-fp32")
    monkeypatch.undo()
    assert run(["diagnose", str(bundle), "--checkpoint", str(restoring), "--function", "restore/cls"]) == 3
