"""Pruning: the share of zeros asked for, exactly zero, through files and into artifacts, and kept where tuning goes on."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from tasktok_edge.errors import UsageError
from tasktok_edge.model.checkpoint import load_checkpoint, save_checkpoint
from tasktok_edge.model.int8 import int8_layers
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.parity import export_verified
from tasktok_edge.quantize.finetune import Bench, FinetuneRecipe, finetune
from tasktok_edge.quantize.levels import with_level
from tasktok_edge.quantize.prune import hold_zeros, prune, sparsity_of, zeros
from tasktok_edge.quantize.ptq import to_int8
from tasktok_edge.train.machine import accelerator_for
from tasktok_edge.zeros import bundle_zeros
from tests.conftest import build_tiny


def bench(folder: Path, steps: int = 4) -> Bench:
    """Noise for frames: what is learned does not matter here."""
    draw, n = np.random.default_rng(0), 8
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "clean": draw.integers(0, 256, (n, 32, 32, 3), np.uint8),
        "degraded": draw.integers(0, 256, (n, 1, 32, 32, 3), np.uint8),
        "label": draw.integers(0, 8, n),
        "semantic": draw.integers(0, 9, (n, 32, 32), np.uint8),
        "boxes": np.tile(np.float32([4, 4, 20, 24]), (n, 8, 1)),
        "box_labels": np.tile(np.array([3, *[-1] * 7]), (n, 1)),
    }
    recipe = FinetuneRecipe(frames=n, versions=1, steps=steps, batch=2, warm_up=0, learning_rate=1e-2)
    return Bench(folder, recipe, accelerator_for("bf16", "bf16"), arrays)


def pruned(folder: Path, sparsity: float = 0.7) -> TaskTok:
    model = build_tiny()
    for _ in prune(bench(folder), model, build_tiny(), name="prune", sparsity=sparsity):
        pass
    return model


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> TaskTok:
    return pruned(tmp_path_factory.mktemp("prune"))


@pytest.mark.parametrize("sparsity", [0.05, 0.7, 0.9])
def test_the_share_that_was_asked_for_is_zero(sparsity: float, tmp_path: Path) -> None:
    model = pruned(tmp_path, sparsity)
    found = zeros(model.refiner)
    assert len(found) == 10 and sum(z.weights for z in found) == 2 * 12 * 16**2 + 2 * 10 * 16
    assert sparsity_of(model.refiner) == pytest.approx(sparsity, abs=0.003)
    others = sum(int((p == 0).sum()) for p in model.tokenizer.parameters() if p.ndim > 1)
    assert others == sum(int((p == 0).sum()) for p in build_tiny().tokenizer.parameters() if p.ndim > 1)


def test_what_is_left_is_a_plain_model_that_learned(sparse: TaskTok) -> None:
    fresh = build_tiny()
    fresh.load_state_dict(sparse.state_dict())  # strict: no mask, no hook
    z = torch.randn(1, 6, 10)
    assert torch.equal(fresh.replace_selected(z, "cls"), deepcopy(sparse).replace_selected(z, "cls"))
    kept = sparse.refiner.conv_in.weight != 0
    assert not torch.equal(sparse.refiner.conv_in.weight[kept], build_tiny().refiner.conv_in.weight[kept])
    assert not any(p.requires_grad for p in sparse.parameters()) and not sparse.refiner.training


def test_no_zero_is_negative(sparse: TaskTok) -> None:
    assert not any(
        torch.signbit(m.weight[m.weight == 0]).any() for m in sparse.refiner.modules() if isinstance(m, torch.nn.Linear)
    )


def test_a_finished_run_gives_the_same_again(tmp_path: Path) -> None:
    first, second = pruned(tmp_path).state_dict(), pruned(tmp_path).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_zeros_pass_through_a_checkpoint(sparse: TaskTok, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", sparse, facts={})
    loaded = load_checkpoint(tmp_path / "c").model
    assert zeros(loaded.refiner) == zeros(sparse.refiner)


def test_int8_codes_of_zeros_are_zero(sparse: TaskTok) -> None:
    integer = to_int8(sparse, torch.rand(4, 3, 32, 32))
    for name, layer in int8_layers(integer.refiner).items():
        zero = sparse.refiner.get_submodule(name).weight == 0
        assert (layer.codes()[zero] == 0).all() and zero.any()


def test_zeros_stay_where_tuning_goes_on(sparse: TaskTok, tmp_path: Path) -> None:
    held, free = deepcopy(sparse), deepcopy(sparse)
    for _ in finetune(bench(tmp_path), held, build_tiny(), name="held", after_step=hold_zeros(held.refiner)):
        pass
    for _ in finetune(bench(tmp_path), free, build_tiny(), name="free"):
        pass
    assert sparsity_of(held.refiner) >= sparsity_of(sparse.refiner) > 0.69 > 0.1 > sparsity_of(free.refiner)
    assert not torch.equal(held.refiner.conv_in.weight, sparse.refiner.conv_in.weight)


def test_what_cannot_be_pruned_is_told(tmp_path: Path) -> None:
    flat = build_tiny()
    flat.refiner.conv_out.weight.zero_()
    integer = to_int8(build_tiny(), torch.rand(2, 3, 32, 32))
    for model, sparsity, told in (
        (build_tiny(), 1.0, "above 0 and below 1"),
        (build_tiny(), 0.0, "above 0 and below 1"),
        (with_level(build_tiny(), "context"), 0.5, "level exact"),
        (integer, 0.5, "int8 already"),
        (flat, 0.5, "conv_out have one magnitude"),
    ):
        with pytest.raises(UsageError, match=told):
            next(prune(bench(tmp_path), model, build_tiny(), name="p", sparsity=sparsity))


@pytest.mark.slow
def test_zeros_are_found_in_an_artifact_and_make_the_download_smaller(sparse: TaskTok, tmp_path: Path) -> None:
    found = {}
    for name, model in (("dense", build_tiny()), ("sparse", sparse)):
        save_checkpoint(tmp_path / name, model, facts={})
        checkpoint = load_checkpoint(tmp_path / name)
        export_verified(checkpoint, "onnx", tmp_path / f"{name}.b", tasks=("cls",), precision="fp32")
        found[name] = bundle_zeros(tmp_path / f"{name}.b", checkpoint.model)
        assert found[name].found == len(found[name].matrices) == 10
        assert found[name].share == pytest.approx(sparsity_of(checkpoint.model.refiner))
    assert found["sparse"].zipped_bytes < found["dense"].zipped_bytes - 3000
    assert found["sparse"].bytes == pytest.approx(found["dense"].bytes, rel=0.05)
    other = bundle_zeros(tmp_path / "dense.b", sparse)
    assert other.found == 0, "matrices that are not in the bundle were found there"
