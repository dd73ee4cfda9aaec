"""Networks that PyTorch's two exporters wrote answer as they did before; damaged and hostile files get one line."""

import os
import random
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tasktok_edge.errors import UsageError
from tasktok_edge.model.deeplab import DeepLabV3
from tasktok_edge.model.onnx_net import OnnxNet
from tasktok_edge.model.resnet import ResNet18

SIZE = 64


class UNet(nn.Module):
    """Segmenter: pooling down, a transposed convolution and resizing up, odd sizes in between."""

    def __init__(self) -> None:
        super().__init__()
        self.down_1, self.down_2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.norm, self.bottom = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=2)
        self.up_1 = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.up_2, self.head = nn.Conv2d(12, 6, 1), nn.Conv2d(9, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.leaky_relu(self.down_1(image * 2 - 1), 0.1)
        side = F.max_pool2d(x, 3, 2, 1)
        y = F.silu(self.norm(self.down_2(side)))
        y = y + F.gelu(self.bottom(F.pad(y, (0, 1, 1, 0))))[:, :, 1:, :-1]
        y = F.hardswish(self.up_2(torch.cat([self.up_1(y), side], 1)))
        y = F.interpolate(y, size=image.shape[2:], mode="bilinear", align_corners=False)
        z = F.interpolate(F.avg_pool2d(image, 4), scale_factor=4, mode="nearest")
        return self.head(torch.cat([y, z], 1))


class Cells(nn.Module):
    """Anchor-free detector: distances to four sides for each cell of a grid that it makes itself, and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(2, 8)
        self.sides, self.heat = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 5, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.stem(image))
        x = x * torch.sigmoid(x.amax((2, 3), keepdim=True)) + self.norm(x)
        rows = (torch.arange(x.shape[2]) + 0.5) * 4
        y, w = torch.meshgrid(rows, rows, indexing="ij")
        centres = torch.stack([w, y], -1).reshape(1, -1, 2)
        near, far = (F.softplus(self.sides(x)).flatten(2).transpose(1, 2) * 4).chunk(2, -1)
        boxes = torch.cat([centres - near, centres + far], -1).clamp(0, image.shape[3])
        return boxes, self.heat(x).flatten(2).transpose(1, 2)


class Transformer(nn.Module):
    """Classifier: patches, a class token, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 16, 16, 16), nn.Parameter(torch.randn(1, 1, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, activation="gelu", norm_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = self.layer(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))
        return self.head(x[:, 0])


NETS: dict[str, Callable[[], nn.Module]] = {
    "classifier": lambda: ResNet18(5),
    "segmenter": lambda: DeepLabV3(4),
    "u-net": UNet,
    "detector": Cells,
    "transformer": Transformer,
}
CASES = [("u-net", 11), ("detector", 11), ("u-net", 13), ("detector", 13), *((name, 17) for name in NETS)]


@cache
def built(name: str) -> nn.Module:
    """A network with statistics that do something."""
    torch.manual_seed(0)
    net = NETS[name]().eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and part.running_var is not None:
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return net


def write(name: str, path: Path, *, dynamo: bool, opset: int, dynamic: bool = False) -> Path:
    axes = {"image": {0: "batch", 2: "height", 3: "width"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            built(name), (torch.zeros(1, 3, SIZE, SIZE),), path, dynamo=dynamo, opset_version=opset, verbose=False,
            input_names=["image"], dynamic_axes=axes,
        )  # fmt: skip
    return path


def check(path: Path, name: str) -> None:
    """The file answers as the network did; so does what torch.export makes of it."""
    net, image = OnnxNet(path, image_size=SIZE), torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = built(name)(image), net(image)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        exported = torch.export.export(net, (image,)).module()(image)
        torch.testing.assert_close(exported, found, atol=1e-6, rtol=0)
        torch.testing.assert_close(deepcopy(net)(image), found, atol=0, rtol=0)
    assert not any(p.requires_grad for p in net.parameters()) and not net.training


@pytest.mark.parametrize(("name", "opset"), CASES)
def test_of_the_torchscript_exporter(name: str, opset: int, tmp_path: Path) -> None:
    check(write(name, tmp_path / "net.onnx", dynamo=False, opset=opset), name)


@pytest.mark.parametrize("name", ["u-net", "detector", "transformer"])
def test_with_every_size_left_open(name: str, tmp_path: Path) -> None:
    """Shapes are then computed in the graph, and here when it is read."""
    path = write(name, tmp_path / "net.onnx", dynamo=False, opset=17, dynamic=True)
    check(path, name)
    assert not [s for s in OnnxNet(path, image_size=SIZE)._steps if any(o.endswith("Shape_output_0") for o in s.outputs)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_of_the_dynamo_exporter(name: str, tmp_path: Path) -> None:
    check(write(name, tmp_path / "net.onnx", dynamo=True, opset=20 if name == "u-net" else 18), name)


def test_half_precision_files_compute_in_what_the_network_has(tmp_path: Path) -> None:
    path = write("u-net", tmp_path / "net.onnx", dynamo=False, opset=17)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, path)
    net, image = OnnxNet(path, image_size=SIZE), torch.rand(1, 3, SIZE, SIZE)
    wanted = built("u-net")(image)
    assert net(image).dtype == torch.float32
    torch.testing.assert_close(net(image), wanted, atol=1e-2, rtol=1e-2)
    assert net.to(torch.float16)(image.half()).dtype == torch.float16


def test_what_nothing_needs_is_left_out(tmp_path: Path) -> None:
    path = write("detector", tmp_path / "net.onnx", dynamo=False, opset=17)
    model = onnx.load(path)
    del model.graph.output[0]
    onnx.save(model, path)
    net, image = OnnxNet(path, image_size=SIZE), torch.rand(1, 3, SIZE, SIZE)
    torch.testing.assert_close(net(image), built("detector")(image)[1])
    assert not any(tuple(p.shape) == (4, 8, 1, 1) for p in net.parameters())


# --- files that are not what they should be


def small(path: Path, *, folder: str | None = None) -> onnx.ModelProto:
    """A convolution of the image, its weight in a file of its own where `folder` says which."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["maps"]),
        helper.make_node("ReduceMean", ["maps"], ["y"], axes=[2, 3], keepdims=0),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, SIZE, SIZE))
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4))
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(nodes, "small", [image], [answer], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if folder is not None:
        tensor = model.graph.initializer[0]
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": folder, "offset": "0", "length": str(len(raw))}.items():
            tensor.external_data.add(key=key, value=value)
        (path.parent / "weights.bin").write_bytes(raw)
    onnx.save(model, path)
    return model


def refused(path: Path, *, size: int = SIZE) -> str:
    """The one line that is told."""
    with pytest.raises(UsageError) as caught:
        OnnxNet(path, image_size=size)
    told = str(caught.value)
    assert "\n" not in told and len(told) < 700 and str(path) in told
    return told


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    small(tmp_path / "net.onnx", folder="weights.bin")
    assert OnnxNet(tmp_path / "net.onnx", image_size=SIZE)(torch.ones(1, 3, SIZE, SIZE)).tolist() == [[27, 27, 27, 27]]


@pytest.mark.parametrize("where", ["../weights.bin", "ABSOLUTE", "link.bin", "", "sub/../../weights.bin"])
def test_weights_elsewhere_are_not_read(where: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(np.ones((4, 3, 3, 3), np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    small(folder / "net.onnx", folder=str(tmp_path / "weights.bin") if where == "ABSOLUTE" else where)
    assert "outside" in refused(folder / "net.onnx") and "nothing of it was read" in refused(folder / "net.onnx")


def test_weights_that_are_missing_or_cut_are_told(tmp_path: Path) -> None:
    small(tmp_path / "net.onnx", folder="weights.bin")
    (tmp_path / "weights.bin").write_bytes(b"1234")
    assert "exceeds available data" in refused(tmp_path / "net.onnx")
    (tmp_path / "weights.bin").unlink()
    assert "copy both files" in refused(tmp_path / "net.onnx")


def test_a_constant_outside_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnx looks for those of nodes in the current directory."""
    model = small(tmp_path / "net.onnx", folder="weights.bin")
    tensor = onnx.TensorProto()
    tensor.CopyFrom(model.graph.initializer[0])
    del model.graph.initializer[0]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    onnx.save(model, tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path)
    refused(tmp_path / "net.onnx")


def test_sizes_that_lie_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    model = small(tmp_path / "net.onnx", folder="weights.bin")
    for dims in ([1 << 40, 3, 3, 3], [-4, -3, 3, 3]):
        model.graph.initializer[0].dims[:] = dims
        onnx.save(model, tmp_path / "net.onnx")
        assert "holds 432 bytes" in refused(tmp_path / "net.onnx")
    with (tmp_path / "weights.bin").open("wb") as stream:
        os.truncate(stream.fileno(), 3 << 30)  # a hole, no disk
    model.graph.initializer[0].dims[:] = [1 << 28, 3, 1, 1]
    del model.graph.initializer[0].external_data[2]
    onnx.save(model, tmp_path / "net.onnx")
    assert "larger than 1024 MiB" in refused(tmp_path / "net.onnx")


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    assert "no ONNX file at" in refused(path)
    for content in (b"", b"<html>", b"\x80\x04]\x94.", b"PK\x03\x04", bytes(1000)):
        path.write_bytes(content)
        refused(path)
    with path.open("wb") as stream:
        os.truncate(stream.fileno(), 3 << 30)
    assert "larger than" in refused(path)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32))
def test_damage_is_told_or_changes_numbers_alone(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(whole())
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path = damaged_path()
    path.write_bytes(data[: chance.choice([len(data), len(data), chance.randrange(len(data))])])
    try:
        net = OnnxNet(path, image_size=SIZE)
    except UsageError as told:
        assert "\n" not in str(told)
    else:
        net(torch.zeros(1, 3, SIZE, SIZE))


@cache
def damaged_path() -> Path:
    from tempfile import mkdtemp

    return Path(mkdtemp()) / "net.onnx"


@cache
def whole() -> bytes:
    write("u-net", damaged_path(), dynamo=False, opset=17)
    return damaged_path().read_bytes()


def test_every_unknown_operator_is_named_at_once(tmp_path: Path) -> None:
    model = small(tmp_path / "net.onnx")
    model.graph.node.extend(
        [
            helper.make_node("NonZero", ["y"], ["a"]),
            helper.make_node("FusedConv", ["image", "w"], ["b"], domain="com.microsoft"),
            helper.make_node("Resize", ["image", "", "s"], ["c"], keep_aspect_ratio_policy="not_larger", antialias=1),
        ]
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.opset_import[0].version = 18
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s"))
    model.graph.node[1].CopyFrom(helper.make_node("GlobalAveragePool", ["maps"], ["y"]))
    onnx.save(model, tmp_path / "net.onnx")
    told = refused(tmp_path / "net.onnx")
    for part in ("NonZero", "com.microsoft::FusedConv", "Resize with antialias=1", "not_larger", "package.module:callable"):
        assert part in told


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((1, 3, 32, 32), "(1, 3, 32, 32), expected (1, 3, 64, 64)"),
        ((1, SIZE, SIZE, 3), "channels first"),
        ((8, 3, SIZE, SIZE), "(8, 3,"),
        ((1, 1, SIZE, SIZE), "(1, 1,"),
        ((3, SIZE, SIZE), "(3, 64, 64)"),
        (("N", 3, "H", None), None),
    ],
)
def test_the_image_must_fit(shape: tuple[int | str | None, ...], told: str | None, tmp_path: Path) -> None:
    model = small(tmp_path / "net.onnx")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, shape))
    onnx.save(model, tmp_path / "net.onnx")
    if told is None:
        assert OnnxNet(tmp_path / "net.onnx", image_size=SIZE)(torch.ones(1, 3, SIZE, SIZE)).shape == (1, 4)
    else:
        assert told in refused(tmp_path / "net.onnx")


def test_what_is_no_image_network(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = small(path)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    onnx.save(model, path)
    assert "UINT8, expected a FLOAT image" in refused(path)
    model = small(path)
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, (1,)))
    onnx.save(model, path)
    assert "takes 2 inputs ('image', 'mask')" in refused(path)
    model = small(path)
    model.opset_import[0].version = 9
    onnx.save(model, path)
    assert "opset 9, expected 11 to" in refused(path)
    model = small(path)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 3, 3, 3)))
    onnx.save(model, path)
    assert "does not depend on the image" in refused(path)
    model = small(path)
    model.graph.initializer[0].data_type = TensorProto.STRING
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].string_data.extend([b"x"] * 108)
    onnx.save(model, path)
    assert "STRING" in refused(path)


def test_functions_are_written_out(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = small(path)

    def function(name: str, calls: str, domain: str, times: int = 1) -> onnx.FunctionProto:
        names = ["a", *(f"a{i}" for i in range(1, times)), "b"]
        body = [helper.make_node(calls, [names[i]], [names[i + 1]], domain=domain) for i in range(times)]
        return helper.make_function(
            "own", name, ["a"], ["b"], body, [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        )

    model.graph.node[0].input[0] = "changed"
    model.graph.node.insert(0, helper.make_node("F", ["image"], ["changed"], domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.extend([function("F", "G", "own"), function("G", "Neg", "")])
    onnx.save(model, path)
    assert OnnxNet(path, image_size=SIZE)(torch.ones(1, 3, SIZE, SIZE)).tolist() == [[-27, -27, -27, -27]]
    model.functions[1].CopyFrom(function("G", "F", "own"))
    onnx.save(model, path)
    refused(path)  # they call themselves
    del model.functions[:]
    model.functions.extend(function(f"F{i}" if i else "F", f"F{i + 1}", "own", 2) for i in range(40))
    model.functions.append(function("F40", "Neg", ""))
    onnx.save(model, path)
    assert "are 1099511627778 nodes" in refused(path)
