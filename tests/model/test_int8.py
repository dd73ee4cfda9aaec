"""Int8 layers: on their grid, bit by bit through a file, batch norms folded, as near to the original as 8 bits allow."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tasktok_edge.errors import CheckpointError, UsageError
from tasktok_edge.model.checkpoint import load_checkpoint, save_checkpoint
from tasktok_edge.model.fuse import fuse
from tasktok_edge.model.int8 import ActivationQuantizer, Int8Conv2d, Int8Linear, int8_layers
from tasktok_edge.model.own_net import with_task_net
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.quantize.ptq import folded, quantizable, to_int8
from tests.conftest import build_tiny
from tests.official_files import write
from tests.quantize.test_slim import answers


def made(model: TaskTok, **options: object) -> TaskTok:
    torch.manual_seed(0)
    return to_int8(model, torch.rand(8, 3, 32, 32), **options)  # type: ignore[arg-type]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean() / b.abs().max().square()))


def test_a_quantizer_rounds_to_256_values_and_keeps_zero() -> None:
    q = ActivationQuantizer(-1.0, 3.0)
    x = torch.cat([torch.zeros(1), torch.linspace(-2, 4, 5001)])
    y = q(x)
    assert y[0] == 0
    codes = y / q.scale + q.zero_point
    torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
    assert len(y.unique()) == 256 and codes.min() == -128 and codes.max() == 127
    inside = (x > -1) & (x < 3)
    assert (y - x)[inside].abs().max() <= q.scale / 2 + 1e-6


def test_a_range_holds_zero_even_if_no_value_does() -> None:
    q = ActivationQuantizer()
    q.watching = True
    q(torch.tensor([2.0, 5.0]))
    q.watching = False
    assert float(q.low) == 0 and float(q.high) == 5
    assert float(q(torch.tensor(0.0))) == 0


def test_gradients_pass_where_values_do() -> None:
    layer = Int8Linear(4, 3)
    layer.input, layer.output = ActivationQuantizer(-1, 1), ActivationQuantizer(-50, 50)
    x = torch.tensor([[0.5, -0.5, 2.0, 0.1]], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and x.grad[0, 2] == 0 and x.grad[0, 0] != 0
    assert layer.weight.grad is not None and (layer.weight.grad[:, 0] != 0).all()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_without_gradients_sums_are_of_whole_numbers(kind: str, relu: bool) -> None:
    torch.manual_seed(0)
    layer = Int8Linear(300, 40, relu=relu) if kind == "linear" else Int8Conv2d(nn.Conv2d(30, 40, 3, padding=1), relu=relu)
    layer.input, layer.output = ActivationQuantizer(-1.3, 2.9), ActivationQuantizer(-0.7, 1.1)
    nn.init.normal_(layer.bias)
    layer.scale_weight()
    shape = (64, 300) if kind == "linear" else (2, 30, 8, 8)
    x = torch.randn(shape)
    simulated = layer(x)
    with torch.no_grad():
        found = layer(x)
        counts = (layer.input(x) / layer.input.scale).round().long()
        step = layer.input.scale * layer.weight_scale
        product, weight = nn.functional.linear if kind == "linear" else nn.functional.conv2d, layer.codes().long()
        sums = product(counts, weight) if kind == "linear" else product(counts, weight, padding=1)  # type: ignore[operator]
        across = (-1,) if kind == "linear" else (-1, 1, 1)
        sums = sums + (layer.bias / step).round().long().reshape(across)
        codes = (sums * (step / layer.output.scale).reshape(across)).round() + layer.output.zero_point
        codes = codes.clamp(int(layer.output.zero_point) if relu else -128, 127)
    assert torch.equal((found / layer.output.scale).round() + layer.output.zero_point, codes)
    off = (found - simulated).abs() / layer.output.scale
    assert off.max() < 1.01 and (off > 0.5).float().mean() < 1e-3  # a sum on a tie may have fallen to the other side


def test_folding_is_exact() -> None:
    model = build_tiny()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    only = quantizable(fuse(model))[0]  # one layer in int8, and every batch norm folded
    other = made(model, keep_fp=[n for n in quantizable(fuse(model)) if n != only])
    assert list(other.config.int8) == [only]
    other.get_submodule(only).output = nn.Identity()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in other.modules())
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        x = other.prerestorer(image)
        for task in model.config.tasks:
            for a, b in zip(other.task_net(task).features(x), model.task_net(task).features(x), strict=True):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert "task_nets.cls.backbone.stem.0.0.bias" in folded(model)


def test_a_network_of_the_users_own_stays_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.constant_(net[1].running_var, 4.0)
    model, image = with_task_net(build_tiny(), "cls", net.eval(), ("a", "b", "c", "d")), torch.rand(1, 3, 32, 32)
    wanted = net(image).detach()
    assert torch.equal(made(model).task_net("cls")(image), wanted) and torch.equal(net(image), wanted)


@pytest.mark.slow
def test_official_files_are_quantised_without_start_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, svd = load_checkpoint(write(tmp_path, "mini")).model, torch.linalg.svd

    def of_shapes(x: torch.Tensor) -> object:
        assert x.is_meta  # those of an official size take minutes
        return svd(x)

    monkeypatch.setattr(torch.linalg, "svd", of_shapes)
    other, frame = to_int8(model, torch.rand(1, 3, 512, 512)), torch.rand(1, 3, 512, 512)
    assert list(other.config.int8) == quantizable(fuse(model))
    with torch.no_grad():
        assert psnr(other.restore(frame, "seg"), model.restore(frame, "seg")) > 25


def test_it_is_near_and_comes_back_bit_by_bit(tmp_path: Path) -> None:
    model = build_tiny()
    other = made(model)
    torch.manual_seed(0)
    image = torch.rand(8, 3, 32, 32)  # what it was calibrated on
    for a, b in zip(answers(other, image), answers(model, image), strict=True):
        assert psnr(a, b) > 25
    save_checkpoint(tmp_path, other, facts={})
    again = load_checkpoint(tmp_path)
    for a, b in zip(answers(again.model, image), answers(other, image), strict=True):
        assert torch.equal(a, b)
    codes = [layer.codes() for layer in int8_layers(again.model).values()]
    assert len(codes) == len(quantizable(fuse(model))) and all(int(c.abs().max()) == 63 for c in codes)  # seven bits


def test_inputs_are_quantised_once() -> None:
    sources = made(build_tiny()).config.int8
    stage = "task_nets.seg.backbone.stages.1"
    assert sources[f"{stage}.conv_2"] == f"after {stage}.conv_1.0"
    assert sources[f"{stage}.shortcut.0"] == f"as {stage}.conv_1.0"
    assert sources["task_nets.seg.pyramid.lateral.0"] == f"as {stage}.conv_1.0"  # what stage 0 gives is read three times
    assert sources["refiner.transformer.blocks.0.fc"] == "own"


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="no layer is called refiner"):
        made(build_tiny(), keep_fp=["refiner.conv_inn"])


def test_codes_without_scales_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_checkpoint(tmp_path, made(build_tiny()), facts={})
    state = load_file(tmp_path / "model.safetensors")
    del state["refiner.conv_in.weight_scale"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no 'refiner\.conv_in\.weight_scale'"):
        load_checkpoint(tmp_path)
