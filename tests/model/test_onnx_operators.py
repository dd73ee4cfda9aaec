"""Each ONNX operator over drawn attributes, against onnx's own reference, or ONNX Runtime where that one is known to err.

Those over pixels are in test_onnx_spatial_operators.py.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tasktok_edge.errors import UsageError
from tasktok_edge.model.onnx_net import OnnxNet
from tests.model.helpers_onnx import EXAMPLES, SIZE, Array, answers, check, floats, image, ints, model_of, same, with_output


@EXAMPLES
@given(
    st.lists(st.tuples(st.integers(-12, 12), st.integers(-12, 12), st.sampled_from([-3, -2, -1, 1, 2])), min_size=1, max_size=3)
)
def test_slicing(cuts: list[tuple[int, int, int]]) -> None:
    starts, ends, steps = zip(*cuts, strict=True)
    axes = [3, -2, 1][: len(cuts)]
    shape = (1, 3, SIZE, SIZE)
    assume(all(len(range(shape[a])[s:e:t]) for a, (s, e, t) in zip(axes, cuts, strict=True)))
    check("Slice", {"starts": ints(*starts), "ends": ints(*ends), "axes": ints(*axes), "steps": ints(*steps)})


def test_slicing_from_the_end_and_to_infinity() -> None:
    most = np.iinfo(np.int64).max
    check("Slice", {"starts": ints(most), "ends": ints(-most), "axes": ints(2), "steps": ints(-1)})
    check("Slice", {"starts": ints(1, 2), "ends": ints(most, most), "axes": ints(2, 3)})


@pytest.mark.parametrize("opset", [11, 13, 18, 20])
@pytest.mark.parametrize("axes", [[2, 3], [-1], [1], None])
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2"])
def test_reductions(op: str, axes: list[int] | None, opset: int) -> None:
    by_input = opset >= (13 if op == "ReduceSum" else 18)
    for keepdims in (0, 1):
        if axes is None:
            check(op, opset=opset, keepdims=keepdims)
        elif by_input:
            check(op, {"axes": ints(*axes)}, opset=opset, keepdims=keepdims)
        else:
            check(op, opset=opset, keepdims=keepdims, axes=axes)


OF_ONE = (
    "Abs Ceil Cos Dropout Elu Erf Exp Flatten Floor Gelu GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity "
    "LeakyRelu LogSoftmax Mish Neg Reciprocal Relu Round Sigmoid Sin Softmax Softplus Tanh"
)


@pytest.mark.parametrize("op", OF_ONE.split())
def test_of_one_input(op: str) -> None:
    check(op, opset=20)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Elu", {"alpha": 0.3}),
        ("Gelu", {"approximate": "tanh"}),
        ("HardSigmoid", {"alpha": 1 / 6}),
        ("HardSigmoid", {"alpha": 0.4, "beta": 0.3}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("Softmax", {"axis": 1}),
        ("LogSoftmax", {"axis": -2}),
        ("Flatten", {"axis": 0}),
        ("Flatten", {"axis": -1}),
        ("Transpose", {"perm": [0, 2, 3, 1]}),
        ("Transpose", {}),
        ("SpaceToDepth", {"blocksize": 3}),
    ],
)
def test_of_one_input_with_attributes(op: str, attributes: dict[str, Any]) -> None:
    check(op, opset=20, **attributes)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_softmax_before_opset_13_is_over_the_rest(op: str, axis: int) -> None:
    check(op, opset=11, judge="runtime", axis=axis)


FORMS = [
    (op, shape, swapped)
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mod", "Pow", "PRelu", "Sum", "MatMul")
    for shape in ((), (1,), (3, 1, 1), (1, 3, SIZE, SIZE), (SIZE, SIZE))
    for swapped in (False, True)
    if not (op == "MatMul" and SIZE not in shape) and not (op == "PRelu" and swapped)
]


@pytest.mark.parametrize(("op", "shape", "swapped"), FORMS)
def test_of_two_inputs(op: str, shape: tuple[int, ...], swapped: bool) -> None:
    other, inputs = np.abs(floats(*shape)) + 0.5, ["p", "c"]
    nodes = [helper.make_node("Abs", ["x"], ["p"])]
    nodes.append(helper.make_node(op, inputs[::-1] if swapped else inputs, ["y"], **({"fmod": 1} if op == "Mod" else {})))
    same(model_of(nodes, {"c": other.astype(np.float32)}))


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons_and_choices(op: str) -> None:
    nodes = [
        helper.make_node("Round", ["x"], ["r"]),
        helper.make_node(op, ["r", "zero"], ["a"]),
        helper.make_node("Greater", ["x", "zero"], ["b"]),
        helper.make_node("Not", ["b"], ["c"]),
        helper.make_node("And", ["a", "c"], ["d"]),
        helper.make_node("Or", ["d", "b"], ["e"]),
        helper.make_node("Where", ["e", "x", "zero"], ["f"]),
        helper.make_node("Cast", ["a"], ["g"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "g"], ["y"]),
    ]
    same(model_of(nodes, {"zero": np.array(0, np.float32)}))


@pytest.mark.parametrize("given", ["both", "low", "high", "none"])
def test_clipping(given: str) -> None:
    low, high = ("low" if given in ("both", "low") else ""), ("high" if given in ("both", "high") else "")
    constants = {"low": np.array(-0.5, np.float32), "high": np.array(0.7, np.float32)}
    same(
        model_of([helper.make_node("Clip", ["x", low, high], ["y"])], {k: v for k, v in constants.items() if k in (low, high)})
    )


def test_normalisation() -> None:
    stats = {"s": floats(3), "b": floats(3), "m": floats(3), "v": np.abs(floats(3)) + 0.1}
    check("BatchNormalization", stats, epsilon=1e-3)
    check("BatchNormalization", stats, opset=11, judge="runtime", momentum=0.8)  # onnx's reference would train here
    check("InstanceNormalization", {"s": floats(3), "b": floats(3)}, epsilon=1e-3)
    check("LayerNormalization", {"s": floats(SIZE), "b": floats(SIZE)}, epsilon=1e-3)
    check("LayerNormalization", {"s": floats(SIZE, SIZE)}, axis=2)
    check("GroupNormalization", {"s": floats(3), "b": floats(3)}, opset=21, num_groups=3)
    check("GroupNormalization", {"s": floats(3), "b": floats(3)}, opset=21, num_groups=1)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("c", [(5,), (3, 5), (1, 5), (), None])
def test_gemm(alpha: float, beta: float, trans_a: int, trans_b: int, c: tuple[int, ...] | None) -> None:
    n, rows = 3 * SIZE * SIZE // 3, 3
    constants = {"shape": ints(n, rows) if trans_a else ints(rows, n), "b": floats(5, n) if trans_b else floats(n, 5)}
    constants |= {} if c is None else {"c": floats(*c)}
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["a"]),
        helper.make_node(
            "Gemm", ["a", "b", *(["c"] if c is not None else [])], ["y"], alpha=alpha, beta=beta, transA=trans_a, transB=trans_b
        ),
    ]
    same(model_of(nodes, constants))


def test_shapes() -> None:
    check("Reshape", {"shape": ints(0, -1, 3)})
    check("Reshape", {"shape": ints(1, 3, -1)}, opset=14, allowzero=1)
    check("Expand", {"shape": ints(2, 1, 1, 1)})
    check("Tile", {"repeats": ints(1, 2, 1, 3)})
    check("Unsqueeze", {"axes": ints(0, -1)})
    check("Unsqueeze", opset=11, axes=[1, 3])
    check("Squeeze", {"axes": ints(0)})
    check("Squeeze", opset=11, axes=[0])
    check("Squeeze")
    check("Einsum", equation="bchw->bhc")
    for axis, indices in ((1, ints(2, 0, -1)), (2, np.array([[0, 1], [-1, 4]])), (3, np.array(-2)), (-1, np.array([3]))):
        check("Gather", {"i": indices}, axis=axis)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    nodes = [
        helper.make_node("Concat", ["x"] * 4, ["c"], axis=1),
        helper.make_node("DepthToSpace", ["c"], ["y"], blocksize=2, mode=mode),
    ]
    same(model_of(nodes, {}))


@pytest.mark.parametrize(
    ("opset", "constants", "attributes"),
    [
        (11, {}, {"split": [4, 5]}),
        (13, {"s": ints(4, 5)}, {}),
        (18, {"s": ints(4, 5)}, {}),
        (18, {}, {"num_outputs": 2}),
    ],
)
def test_splitting(opset: int, constants: dict[str, Array], attributes: dict[str, Any]) -> None:
    nodes = [
        helper.make_node("Split", ["x", *constants], ["a", "b"], axis=2, **attributes),
        helper.make_node("Concat", ["b", "a"], ["y"], axis=2),
    ]
    same(model_of(nodes, constants, opset=opset), judge="runtime")


def test_equal_parts_are_told_by_the_outputs() -> None:
    nodes = [helper.make_node("Split", ["x"], ["a", "b", "c"], axis=1), helper.make_node("Sub", ["c", "a"], ["y"])]
    same(model_of(nodes, {}, opset=13))


def test_arithmetic_with_shapes_becomes_constants() -> None:
    """As the TorchScript exporter writes x.reshape(x.shape[0], -1, x.shape[3] // 2 + 1) and torch.arange(x.shape[2])."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "i0"], ["n"]),
        helper.make_node("Gather", ["shape", "i3"], ["w"]),
        helper.make_node("Constant", [], ["four"], value_int=4),
        helper.make_node("Div", ["w", "four"], ["q"]),
        helper.make_node("Add", ["q", "one"], ["r"]),
        helper.make_node("Unsqueeze", ["n"], ["n1"], axes=[0]),
        helper.make_node("Unsqueeze", ["r"], ["r1"], axes=[0]),
        helper.make_node("Concat", ["n1", "minus", "r1"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["reshaped"]),
        helper.make_node("Cast", ["r"], ["limit"], to=TensorProto.FLOAT),
        helper.make_node("Range", ["zero", "limit", "step"], ["ramp"]),
        helper.make_node("ConstantOfShape", ["r1"], ["twos"], value=numpy_helper.from_array(np.array([2], np.float32))),
        helper.make_node("Pow", ["ramp", "twos"], ["squares"]),
        helper.make_node("Add", ["reshaped", "squares"], ["y"]),
    ]
    constants = {"i0": np.array(0), "i3": np.array(3), "one": np.array(1), "minus": ints(-1)}
    constants |= {"zero": np.array(0, np.float32), "step": np.array(1, np.float32)}
    model = model_of(nodes, constants, opset=12)
    same(model)
    with TemporaryDirectory() as folder:
        onnx.save(with_output(model, (1, 81, 3)), Path(folder) / "net.onnx")
        net = OnnxNet(Path(folder) / "net.onnx", image_size=SIZE)
    assert [step.outputs for step in net._steps] == [("reshaped",), ("y",)]


@pytest.mark.parametrize(
    ("op", "constants", "attributes", "told"),
    [
        ("Conv", {"w": floats(4, 2, 3, 3)}, {}, "Conv 'y' does not fit"),
        ("Conv", {"w": floats(4, 3, 3)}, {}, "two dimensions"),
        ("Conv", {"w": floats(4, 3, 3, 3)}, {"strides": [0, 1]}, "not positive"),
        ("MaxPool", {}, {"kernel_shape": [0, 0]}, "not positive"),
        ("MaxPool", {}, {"kernel_shape": [2, 2], "storage_order": 1}, "MaxPool with storage_order=1"),
        ("AveragePool", {}, {"kernel_shape": [2, 2], "dilations": [2, 2]}, "dilations"),
        ("Reshape", {"shape": ints(7, 7)}, {}, "Reshape"),
        ("Tile", {"repeats": ints(1, 1 << 20, 1 << 20, 1)}, {}, "more than"),
        ("Expand", {"shape": ints(1 << 40, 1, 1, 1)}, {}, "more than"),
        ("Pad", {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1)}, {"mode": "mirror"}, "mirror"),
        ("Pad", {"pads": ints(0, 0, 1 << 30, 1, 0, 0, 1 << 30, 1)}, {}, "more than"),
        ("Resize", {"roi": floats(0), "s": np.array([1, 1, 2, 2], np.float32)}, {"antialias": 1}, "Resize with antialias=1"),
        ("Resize", {"roi": floats(0), "s": np.array([1, 1, 1e8, 2], np.float32)}, {}, "is not taken"),
        ("Resize", {"roi": floats(0), "s": np.array([1, 1, 2, 2], np.float32)},
         {"coordinate_transformation_mode": "tf_crop_and_resize"}, "tf_crop_and_resize"),
        ("BatchNormalization", {n: floats(3) for n in "sbmv"}, {"training_mode": 1}, "training_mode=1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_one_line(
    op: str, constants: dict[str, Array], attributes: dict[str, Any], told: str
) -> None:
    model = model_of([helper.make_node(op, ["x", *constants], ["y"], **attributes)], constants)
    with pytest.raises(UsageError, match=told) as caught:
        answers(with_output(model, (1, 3, SIZE, SIZE)), image())
    assert "\n" not in str(caught.value)
