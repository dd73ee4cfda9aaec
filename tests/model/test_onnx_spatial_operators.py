"""The ONNX operators over pixels: convolution, pooling, resizing and padding over drawn attributes, against other runtimes."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from tasktok_edge.model.onnx_net import OnnxNet
from tests.model.helpers_onnx import EXAMPLES, SIZE, check, floats, ints, model_of, with_output

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
paddings = st.tuples(*[st.integers(0, 2)] * 4)


@EXAMPLES
@given(
    pairs, pairs, pairs, paddings, st.sampled_from([1, 3]), st.booleans(),
    st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
)  # fmt: skip
def test_convolution(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, ...],
    group: int,
    bias: bool,
    auto_pad: str,
) -> None:
    same_dilated = auto_pad.startswith("SAME") and dilations != (1, 1)
    assume(not same_dilated)  # onnx's reference forgets the dilation there
    constants = {"w": floats(6, 3 // group, *kernel)} | ({"b": floats(6)} if bias else {})
    where = {"pads": pads} if auto_pad == "NOTSET" else {"auto_pad": auto_pad}
    check("Conv", constants, strides=strides, dilations=dilations, group=group, **where)


@EXAMPLES
@given(pairs, pairs, pairs, paddings, pairs, st.sampled_from([1, 3]), st.booleans())
def test_transposed_convolution(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, ...],
    more: tuple[int, int],
    group: int,
    bias: bool,
) -> None:
    output_padding = [min(m, s, d) - 1 if max(s, d) > 1 else 0 for m, s, d in zip(more, strides, dilations, strict=True)]
    constants = {"w": floats(3, 2, *kernel)} | ({"b": floats(2 * group)} if bias else {})
    check(
        "ConvTranspose", constants, judge="runtime", strides=strides, dilations=dilations, pads=pads, group=group,
        output_padding=output_padding,
    )  # fmt: skip


@EXAMPLES
@given(pairs, pairs, pairs, paddings, st.booleans(), st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
def test_max_pooling(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, ...],
    ceil: bool,
    auto_pad: str,
) -> None:
    pads = tuple(min(p, k - 1) for p, k in zip(pads, kernel * 2, strict=True))
    where = {"pads": pads, "ceil_mode": int(ceil)} if auto_pad == "NOTSET" else {"auto_pad": auto_pad}
    assume(auto_pad == "NOTSET" or dilations == (1, 1))
    assume(auto_pad in ("NOTSET", "VALID") or all(k >= s for k, s in zip(kernel, strides, strict=True)))  # the runtime fails
    check("MaxPool", judge="runtime", kernel_shape=kernel, strides=strides, dilations=dilations, **where)


@EXAMPLES
@given(pairs, pairs, paddings, st.booleans(), st.booleans(), st.sampled_from(["NOTSET", "SAME_UPPER", "VALID"]))
def test_average_pooling(
    kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, ...], ceil: bool, include: bool, auto_pad: str
) -> None:
    pads = tuple(min(p, k - 1) for p, k in zip(pads, kernel * 2, strict=True))
    where = {"pads": pads, "ceil_mode": int(ceil)} if auto_pad == "NOTSET" else {"auto_pad": auto_pad}
    assume(auto_pad in ("NOTSET", "VALID") or all(k >= s for k, s in zip(kernel, strides, strict=True)))  # the runtime fails
    check("AveragePool", judge="runtime", kernel_shape=kernel, strides=strides, count_include_pad=int(include), **where)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["nearest", "linear", "cubic"]),
    st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]),
    st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]),
    st.one_of(st.tuples(*[st.integers(1, 20)] * 2), st.tuples(*[st.sampled_from([0.4, 0.5, 1.0, 1.5, 2.0, 3.0])] * 2)),
    st.booleans(),
)
def test_resizing(
    mode: str, coordinates: str, rounding: str, target: tuple[int, int] | tuple[float, float], outside: bool
) -> None:
    by_size = isinstance(target[0], int)
    constants = {"roi": floats(0), "scales": np.array([] if by_size else [1, 1, *target], np.float32)}
    constants |= {"sizes": np.array([1, 3, *target], np.int64)} if by_size else {}
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    attributes |= {"exclude_outside": 1} if outside and mode == "cubic" else {}  # type: ignore[dict-item]
    check("Resize", constants, judge="runtime", opset=13, **attributes)


def test_resizing_as_torch_writes_it_stays_torchs_own() -> None:
    for mode, coordinates in (("nearest", "asymmetric"), ("linear", "half_pixel"), ("linear", "align_corners")):
        constants = {"roi": floats(0), "scales": np.array([1, 1, 2, 2], np.float32)}
        node = helper.make_node(
            "Resize", ["x", *constants], ["y"], mode=mode, coordinate_transformation_mode=coordinates, nearest_mode="floor"
        )
        with TemporaryDirectory() as folder:
            onnx.save(with_output(model_of([node], constants), (1, 3, 2 * SIZE, 2 * SIZE)), Path(folder) / "net.onnx")
            assert not list(OnnxNet(Path(folder) / "net.onnx", image_size=SIZE).parameters())


@EXAMPLES
@given(st.tuples(*[st.integers(-2, 3)] * 4), st.sampled_from(["constant", "reflect", "edge"]), st.booleans())
def test_padding(pads: tuple[int, ...], mode: str, by_axes: bool) -> None:
    if mode != "constant":
        pads = tuple(max(p, 0) for p in pads)
    top, left, bottom, right = pads
    constants = {"pads": ints(0, 0, top, left, 0, 0, bottom, right), "value": np.array(0.5, np.float32)}
    if by_axes:
        constants |= {"pads": ints(left, top, right, bottom), "axes": ints(-1, 2)}
    check("Pad", constants, judge="runtime", mode=mode)
