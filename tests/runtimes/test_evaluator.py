"""The reference evaluator of Core ML's programs: each operator against PyTorch, and packages that are not what they declare."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tasktok_edge.errors import DeviceError
from tasktok_edge.runtimes.evaluator import Evaluator
from tasktok_edge.runtimes.mil_operators import OPERATORS
from tasktok_edge.runtimes.mlprogram import MODEL, Package
from tests.helpers_mil import error, evaluated
from tests.mil_cases import CASES

ct = pytest.importorskip("coremltools")
SEEDS = 2  # `python -m tests.mil_cases` tries as many as one likes


def test_every_operator_has_cases() -> None:
    assert CASES.keys() == OPERATORS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_operators_give_what_pytorch_gives(name: str, tmp_path: Path) -> None:
    for seed in range(SEEDS):
        case = CASES[name](np.random.default_rng(seed))
        assert error(evaluated(name, case, tmp_path / str(seed)), case.wanted) < 2e-6


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear layer in fp16, its weights large enough to lie in a file."""
    from coremltools.converters.mil import Builder as mb  # noqa: N813

    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(32, 8)).astype(np.float32), rng.normal(size=32).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 8))], opset_version=ct.target.iOS18)
    def program(x):  # type: ignore[no-untyped-def]
        return mb.exp(x=mb.linear(x=x, weight=weight, bias=bias))

    model = ct.convert(
        program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT16
    )
    path = tmp_path_factory.mktemp("program") / "linear.mlpackage"
    model.save(str(path))
    return path


def copied(package: Path, folder: Path) -> Path:
    return Path(shutil.copytree(package, folder / "p.mlpackage"))


def test_what_16_bits_cannot_hold_is_infinite(package: Path) -> None:
    evaluator = Evaluator(Package(package).function("main"))
    (small,) = evaluator({"x": np.zeros((1, 8), np.float32)}).values()
    (large,) = evaluator({"x": np.full((1, 8), 30.0, np.float32)}).values()
    assert np.array_equal(small, small.astype(np.float16)) and np.isfinite(small).all() and np.isinf(large).any()


def test_another_shape_than_declared_is_refused(package: Path) -> None:
    evaluator = Evaluator(Package(package).function("main"))
    with pytest.raises(DeviceError, match=r"the input gives x as float32 \(1, 9\), it is declared"):
        evaluator({"x": np.zeros((1, 9), np.float32)})
    with pytest.raises(DeviceError, match="no function other, only main"):
        Package(package).function("other")
    with pytest.raises(DeviceError, match="does not take one image"):
        Package(package).image("main", np.zeros((1, 8, 8, 3), np.uint8))


def test_weights_that_are_not_as_declared_are_refused(package: Path, tmp_path: Path) -> None:
    for at, told in ((64, "holds at 64 no weight"), (68, "holds at 64 no weight"), (72, "no weight"), (80, "within a weight")):
        damaged = copied(package, tmp_path / str(at))
        (weights,) = damaged.rglob("weight.bin")
        data = bytearray(weights.read_bytes())
        data[at : at + 4] = b"\xff\xff\xff\x7f"
        weights.write_bytes(data)
        with pytest.raises(DeviceError, match=told):
            Package(damaged).function("main")
    cut = copied(package, tmp_path / "cut")
    (weights,) = cut.rglob("weight.bin")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DeviceError, match=r"has 100 bytes|within a weight"):
        Package(cut).function("main")


def test_programs_that_are_none_are_refused(package: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    broken = copied(package, tmp_path / "broken")
    whole = (broken / MODEL).read_bytes()
    for i in range(60):
        data = bytearray(whole)
        if i % 2:
            data = data[: int(rng.integers(0, len(data)))]
        else:
            for place in rng.integers(0, len(data), 4):
                data[place] = int(rng.integers(0, 256))
        (broken / MODEL).write_bytes(bytes(data))
        try:
            Evaluator(Package(broken).function("main"))({"x": np.zeros((1, 8), np.float32)})
        except DeviceError as refused:
            assert str(refused)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda op: setattr(op, "type", "hologram"), "uses hologram, which this evaluator does not know"),
        (lambda op: op.inputs["x"].arguments[0].__setattr__("name", "nothing"), "reads nothing, which nothing computes"),
        (lambda op: op.inputs["hologram"].CopyFrom(op.inputs["x"]), "linear .*hologram"),
    ],
)
def test_programs_that_no_one_could_run_are_refused(package: Path, tmp_path: Path, change: object, told: str) -> None:
    from coremltools.proto import Model_pb2

    changed = copied(package, tmp_path)
    model = Model_pb2.Model()
    model.ParseFromString((changed / MODEL).read_bytes())
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    (linear,) = (op for op in block.operations if op.type == "linear")
    change(linear)  # type: ignore[operator]
    (changed / MODEL).write_bytes(model.SerializeToString())
    with pytest.raises(DeviceError, match=told):
        Evaluator(Package(changed).function("main"))({"x": np.zeros((1, 8), np.float32)})


def test_weights_outside_the_package_are_not_read(package: Path, tmp_path: Path) -> None:
    changed = copied(package, tmp_path)
    data = (changed / MODEL).read_bytes()
    name = b"@model_path/weights/weight.bin"
    assert name in data
    (changed / MODEL).write_bytes(data.replace(name, b"@model_path/../../../../w.binx"))
    with pytest.raises(DeviceError, match="outside the package"):
        Package(changed).function("main")
