"""Layers in int8 one by one: a switch is exact, and the search keeps what breaks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasktok_edge.errors import UsageError
from tasktok_edge.model.fuse import fuse
from tasktok_edge.model.int8 import ActivationQuantizer, Int8Conv2d, int8_layers
from tasktok_edge.model.task_nets import Segmenter
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.progress import Doing
from tasktok_edge.quantize.judge import Arrays, Judge, psnr_db
from tasktok_edge.quantize.ptq import quantizable, to_int8
from tasktok_edge.quantize.sensitivity import Found, Sensitivity, search, sensitivity, switchable, weight_bytes, worst
from tasktok_edge.sensitivity_picture import sensitivity_picture
from tasktok_edge.show_quantize import sensitivity_table
from tests.conftest import build_tiny

FRAMES = 8
BROKEN = {"task_nets.seg.pyramid.smooth.0", "task_nets.seg.head"}


def calibration() -> Tensor:
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def labelled(model: TaskTok, n: int = FRAMES) -> Arrays:
    """Frames of noise whose labels are what `model` answers: it scores 100 points, and each changed answer costs."""
    rng = np.random.default_rng(2)
    frames = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    boxes = np.zeros((n, 8, 4), np.float32)
    boxes[:, 0] = 4, 4, 20, 20
    kinds = np.full((n, 8), -1)
    kinds[:, 0] = 0
    with torch.inference_mode():
        label, semantic = (model(images, task).argmax(1).numpy() for task in ("cls", "seg"))
    return {
        "clean": frames, "degraded": frames[:, None], "label": label, "semantic": semantic.astype(np.uint8), "boxes": boxes,
        "box_labels": kinds,
    }  # fmt: skip


def last(steps: Iterator[Any]) -> Any:
    *others, result = steps
    assert all(isinstance(step, Doing) for step in others)
    return result


def outputs(model: TaskTok) -> list[Tensor]:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return [model.encode(images), *(model.restore(images, t) for t in model.config.tasks), model(images, "seg")]


def only(made: TaskTok, *names: str) -> TaskTok:
    for name, layer in int8_layers(made).items():
        layer.bypass(name not in names)
    return made


@pytest.fixture(scope="module")
def broken() -> TaskTok:
    """A model with a channel that is 3000 times as loud, and its reader as deaf: int8 alone minds."""
    model = build_tiny()
    net = cast(Segmenter, model.task_nets["seg"])
    norm = cast(nn.BatchNorm2d, net.pyramid.smooth[1])
    norm.weight[0] *= 3000
    norm.bias[0] = 3000.0
    net.head.weight[:, 0] /= 3000
    return model


@pytest.fixture(scope="module")
def measured(broken: TaskTok) -> Sensitivity:
    return cast(Sensitivity, last(sensitivity(broken, calibration(), labelled(broken))))


def test_all_layers_off_is_the_floating_point_model(tiny: TaskTok) -> None:
    for got, want in zip(outputs(only(switchable(tiny, calibration()))), outputs(tiny), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_all_layers_on_is_the_int8_model(tiny: TaskTok) -> None:
    sources = set(to_int8(tiny, calibration()).config.int8.values())
    assert any(s.startswith("as ") for s in sources) and any(s.startswith("after ") for s in sources)
    for got, want in zip(outputs(switchable(tiny, calibration())), outputs(to_int8(tiny, calibration())), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.encoder.patch_embed.blocks.0.conv_1",  # with a ReLU
        "task_nets.cls.backbone.stages.1.conv_2",  # reads what another layer quantises
        "task_nets.seg.backbone.stages.1.shortcut.0",  # shares another's input quantizer
        "tokenizer.encoder.transformer.blocks.0.fc",
    ],
)
def test_one_layer_on_is_that_layer_quantised_by_hand(tiny: TaskTok, name: str) -> None:
    got = only(switchable(tiny, calibration()), name)
    by_hand = only(switchable(tiny, calibration()))
    layer = int8_layers(by_hand)[name]

    def rounded(x: Tensor, by: ActivationQuantizer) -> Tensor:
        low, high = float(by.low), float(by.high)
        scale = max((high - low) / 255, 1e-8)
        zero = round(-128 - low / scale)
        return ((x / scale).round() + zero).clamp(-128, 127).sub(zero).mul(scale)

    weight = layer.weight.detach()
    scale = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1)) / 63
    before, behind = cast(ActivationQuantizer, layer.input), layer.output
    step = (before.high - before.low) / 255 * scale.flatten()
    bias = (layer.bias / step).round() * step

    def compute(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if not isinstance(layer, Int8Conv2d):
            return F.linear(x, w, b)
        y = F.conv2d(x, w, b, layer.stride, layer.padding)
        return F.relu(y) if layer.relu else y

    class ByHand(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return rounded(compute(rounded(x, before), (weight / scale).round() * scale, bias), behind)

    by_hand.set_submodule(name, ByHand())
    with torch.inference_mode():
        a, b, untouched = (reached(m, name) for m in (got, by_hand, fuse(tiny)))
    # A value between two codes may fall to either side, by the order of sums.
    assert psnr_db([a], [untouched]) < 80 and psnr_db([a], [b]) > psnr_db([a], [untouched]) + 20


def reached(model: TaskTok, name: str) -> Tensor:
    """What a layer's part makes of calibration frames, before anything else could hide what the layer did."""
    part, task = name.split(".")[:2]
    if part == "task_nets":
        return model.task_net(task).features(calibration())[-1]
    encoder = model.tokenizer.encoder
    return encoder.patch_embed(calibration()) if "patch_embed" in name else encoder(calibration())


def test_every_layer_and_the_tasks_it_touches(broken: TaskTok, measured: Sensitivity) -> None:
    assert [row.name for row in measured.rows] == quantizable(fuse(broken)) and measured.frames == FRAMES
    assert measured.points["cls"] == 100 and measured.points["seg"] == pytest.approx(100)
    by_name = {row.name: row for row in measured.rows}
    assert set(by_name["task_nets.seg.head"].drop) == set(by_name["task_nets.seg.head"].db) == {"seg"}
    assert set(by_name["tokenizer.decoder.ffn"].db) == {"frames", "cls", "seg", "det"}
    assert set(by_name["refiner.conv_in"].db) == {"tokens", "frames", "cls", "seg", "det"}
    assert by_name["tokenizer.encoder.patch_embed.conv_in"].macs == 48 * 8 * 9 * 8 * 8
    assert by_name["task_nets.cls.head"].bytes == 16 * 8 + 4 * 8
    assert {row.part for row in measured.rows} >= {"encoder", "refiner", "decoder", "det network"}
    assert all(row.worst_db <= 100 for row in measured.rows)
    assert set(worst(measured, 2)) == BROKEN


def test_a_layer_is_judged_from_its_stage_on_as_it_would_be_from_the_start(tiny: TaskTok) -> None:
    judge = Judge(tiny, labelled(tiny))
    made = switchable(tiny, calibration())
    for name in ("refiner.conv_out", "tokenizer.decoder.ffn", "task_nets.det.heat"):
        short, whole = judge(only(made, name), name), judge(made)
        assert short.points == pytest.approx({t: whole.points[t] for t in short.points}, abs=0.1)
        # The part before the layer has its batch normalisations folded in one of them: fp32's own noise.
        assert short.db == pytest.approx({k: whole.db[k] for k in short.db}, abs=0.2)


def test_search_keeps_nothing_where_all_may_be_lost(tiny: TaskTok) -> None:
    found = last(search(tiny, calibration(), labelled(tiny), max_drop=100))
    assert found.keep_fp == () and found.helps and found.bytes < 0.5 * found.fp_bytes


def test_search_keeps_what_breaks(broken: TaskTok, measured: Sensitivity) -> None:
    arrays = labelled(broken)
    drop = max(points - measured.int8_points[task] for task, points in measured.points.items())
    found = last(search(broken, calibration(), arrays, max_drop=drop / 2, known=measured))
    assert isinstance(found, Found) and found.helps and 1 <= len(found.keep_fp) <= len(BROKEN)
    assert found.keep_fp == tuple(worst(measured, len(found.keep_fp)))
    kept = to_int8(broken, calibration(), keep_fp=found.keep_fp)
    judge = Judge(broken, arrays)
    assert weight_bytes(kept) == found.bytes and judge(kept).points == found.points  # what was judged is what is made
    assert judge.points["seg"] - found.points["seg"] <= drop / 2
    one_less = to_int8(broken, calibration(), keep_fp=found.keep_fp[:-1])
    assert judge.points["seg"] - judge(one_less).points["seg"] > drop / 2


def test_search_says_when_nothing_helps(tiny: TaskTok) -> None:
    found = last(search(tiny, calibration(), labelled(tiny), max_drop=-1e-6, keep_fp=["task_nets", "tokenizer"]))
    assert not found.helps and found.points == found.fp_points and found.bytes == found.fp_bytes
    assert not any(name.startswith(("task_nets", "tokenizer")) for name in found.keep_fp)


def test_an_int8_model_is_refused(tiny: TaskTok) -> None:
    with pytest.raises(UsageError, match="in int8 already"):
        switchable(to_int8(tiny, calibration()), calibration())


def test_a_table_and_a_picture(measured: Sensitivity, tmp_path: Path) -> None:
    table = sensitivity_table(measured, top=3)
    assert table.row_count == 3 and list(table.columns[0].cells) == worst(measured, 3)
    sensitivity_picture(tmp_path / "layers.png", measured, title="tiny")
    assert (tmp_path / "layers.png").stat().st_size > 10_000
