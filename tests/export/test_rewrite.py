"""Exact rewrites: each gives the same numbers as what it stands for, with fewer multiply-adds."""

from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tasktok_edge.export import Target
from tasktok_edge.export.executorch import delegated
from tasktok_edge.export.graph import Deployed, model_functions
from tasktok_edge.export.rewrite import (
    FoldedDecoder,
    FoldedEncoder,
    FoldedWindowAttention,
    PhaseUpsample,
    Resize,
    sharing_copy,
)
from tasktok_edge.macs import count
from tasktok_edge.model.checkpoint import load_checkpoint, save_checkpoint
from tasktok_edge.model.config import SwinIRConfig, TaskTokConfig, preset
from tasktok_edge.model.swinir import SwinIR, Upsample, WindowAttention, shifted_mask
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.parity import export_verified
from tasktok_edge.published import Published, candidates
from tests.conftest import shake
from tests.official_files import VARIANTS

TIGHT = {"atol": 2e-5, "rtol": 1e-5}


def official_kind() -> TaskTok:
    """A model with all that the official ones have and the scenes' have not: SwinIR, bicubic resizing, no task networks."""
    tiny = preset("tiny")
    config = TaskTokConfig(
        preset="tiny-official",
        image_size=32,
        prerestorer=SwinIRConfig(width=12, depths=(2,), heads=2, window=4, unshuffle=4, head_width=8),
        tokenizer=tiny.tokenizer.model_copy(update={"image_size": 16, "patch": 4}),
        refiner=tiny.refiner,
        tasks={t: c.model_copy(update={"net": "none"}) for t, c in tiny.tasks.items()},
        resize="bicubic",
    )
    torch.manual_seed(0)
    return shake(TaskTok(config))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
def test_phase_convolutions_equal_nearest_and_convolution(n_in: int, n_out: int, height: int, width: int) -> None:
    upsample = Upsample(n_in, n_out)
    x = torch.randn(1, n_in, height, width)
    torch.testing.assert_close(PhaseUpsample(upsample)(x), upsample(x), **TIGHT)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(1, 40), st.sampled_from(["bicubic", "bilinear"]))
def test_resizing_as_two_products(source: int, target: int, mode: Literal["bicubic", "bilinear"]) -> None:
    x = torch.rand(1, 3, source, source)
    wanted = F.interpolate(x, size=(target, target), mode=mode, align_corners=False, antialias=False)
    torch.testing.assert_close(Resize(source, target, mode)(x), wanted, **TIGHT)


def test_constant_rows_are_folded_exactly(tiny: TaskTok) -> None:
    encoder, decoder = tiny.tokenizer.encoder, tiny.tokenizer.decoder
    image, z = torch.rand(1, 3, 32, 32), torch.randn(1, 6, 10)
    torch.testing.assert_close(FoldedEncoder(encoder)(image), encoder(image), **TIGHT)
    torch.testing.assert_close(FoldedDecoder(decoder).features(z), decoder.features(z), **TIGHT)


@pytest.mark.parametrize("masked", [False, True])
def test_window_attention_as_3d_products(masked: bool) -> None:
    attention = WindowAttention(12, 2, 4)
    nn.init.normal_(attention.relative_position_bias_table)
    x, mask = torch.randn(4, 16, 12), shifted_mask(8, 4, 2) if masked else None
    torch.testing.assert_close(FoldedWindowAttention(attention)(x, mask), attention(x, mask), **TIGHT)


def test_the_mask_keeps_apart_what_the_shift_brought_together() -> None:
    net = shake(SwinIR(SwinIRConfig(width=12, depths=(2,), heads=2, window=4, unshuffle=4, head_width=8), image_size=32))
    a, b = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    c = torch.cat([a[..., :4], b[..., 4:]], -1)  # only the left edge differs from b
    # Where the windows wrapped around, the right edge would see the left one.
    moved = (net.groups(net.conv_first(F.pixel_unshuffle(c, 4)).permute(0, 2, 3, 1))
             - net.groups(net.conv_first(F.pixel_unshuffle(b, 4)).permute(0, 2, 3, 1))).abs().amax((0, 1, 3))  # fmt: skip
    assert moved[0] > 1e-4 and moved[-1] == 0


@pytest.mark.parametrize("form", ["one graph", "delegated"])
def test_the_deployed_graph_is_the_full_model(form: str) -> None:
    model = official_kind()
    functions = model_functions(model.config)
    assert [f.name for f in functions] == ["restore/cls", "restore/seg", "restore/det"]
    graph = Deployed(model, functions).eval()
    if form == "delegated":
        graph = delegated(graph)
    frame = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    for function, found in zip(functions, graph(frame), strict=True):
        wanted = model.restore(frame.permute(0, 3, 1, 2) / 255, function.task).permute(0, 2, 3, 1)
        torch.testing.assert_close(found, wanted, **TIGHT)
        torch.testing.assert_close(graph.only(function)(frame)[0], found)


def test_a_sharing_copy_leaves_the_original_alone(tiny: TaskTok) -> None:
    half = sharing_copy(tiny, torch.float16)
    assert all(p.dtype == torch.float32 for p in tiny.parameters())
    assert all(p.dtype == torch.float16 for p in half.parameters())
    same = sharing_copy(tiny)
    assert [p.data_ptr() for p in same.parameters()] == [p.data_ptr() for p in tiny.parameters()]


def test_multiply_adds_are_the_published_ones_and_fewer_as_exported() -> None:
    selected = {task: list(range(16)) for task in ("cls", "det", "seg")}
    published = {"bl64": (44.34, 29.32, 1.24, 102.21), "sl256": (44.34, 15.18, 5.25, 168.08)}
    for variant, wanted in published.items():
        costs = count(VARIANTS[variant], selected)
        assert [round(c.trained / 1e9, 2) for c in costs] == pytest.approx(wanted, abs=0.006)
        total, exported = (sum(getattr(c, which) for c in costs) for which in ("trained", "exported"))
        assert 0.04 < 1 - exported / total < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "openvino", "executorch", "coreml"])
def test_official_parts_pass_every_converter(target: Target, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "ckpt", official_kind(), facts={}, exact=True)
    loaded = load_checkpoint(tmp_path / "ckpt")
    done = export_verified(loaded, target, tmp_path / "out", tasks=("seg",), precision="fp32")
    parity = done.manifest.parity
    assert parity.status == "passed", parity
    assert done.manifest.input.resize == "bicubic" and [f.name for f in done.manifest.functions] == ["restore/seg"]
    assert parity.psnr_db["restore/seg"] > 100


def test_the_published_forward_is_the_model() -> None:
    model = official_kind()
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(Published(model).restore(image, "det"), model.restore(image, "det"), **TIGHT)
    first, second = (run() for run in candidates(model, "cls").values())
    assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    torch.testing.assert_close(second, first.permute(0, 2, 3, 1), **TIGHT)
