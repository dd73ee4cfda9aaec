"""Checkpoints: whole round trips, and one clear line for everything that is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasktok_edge.errors import CheckpointError
from tasktok_edge.model.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import build_tiny


def test_round_trip_keeps_the_model_to_fp16(tiny_checkpoint: Path) -> None:
    loaded, original = load_checkpoint(tiny_checkpoint).model, build_tiny()
    assert loaded.config == original.config
    for task in original.config.tasks:
        assert loaded.switch.selected(task) == original.switch.selected(task)
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loaded.restore(image, "cls"), original.restore(image, "cls"), atol=2e-2, rtol=0)
    again = load_checkpoint(tiny_checkpoint).model.restore(image, "cls")
    assert torch.equal(again, loaded.restore(image, "cls"))


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_such_folder(tmp_path: Path) -> None:
    assert "scenes-edge" in refused(tmp_path / "nowhere")


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "lacks model.safetensors" in refused(copy)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff" * 64])
def test_damaged_weights(copy: Path, damage: bytes) -> None:
    (copy / "model.safetensors").write_bytes(damage)
    assert "model.safetensors" in refused(copy)


def test_cut_weights(copy: Path) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "not a whole safetensors file" in refused(copy)


def test_wrong_shapes_missing_and_unexpected_tensors_are_told_together(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    state["refiner.conv_in.weight"] = torch.zeros(2, 2)
    state["stray"] = torch.zeros(1)
    del state["refiner.conv_out.weight"]
    save_file(state, copy / "model.safetensors")
    message = refused(copy)
    assert "no 'refiner.conv_out.weight'" in message
    assert "unexpected 'stray'" in message
    assert "'refiner.conv_in.weight' is (2, 2)" in message


def test_nan_in_the_weights(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    state["refiner.conv_in.bias"][0] = float("nan")
    save_file(state, copy / "model.safetensors")
    assert "NaN" in refused(copy)


def test_a_config_with_unknown_words(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["colour"] = "green"
    (copy / "config.json").write_text(json.dumps(config))
    assert "colour" in refused(copy)


def test_a_loaded_model_survives_its_file_being_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, build_tiny(), facts={}, exact=True)
    loaded = load_checkpoint(tmp_path).model
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    save_checkpoint(tmp_path, build_tiny(seed=1), facts={}, exact=True)
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    assert not (tmp_path / "model.safetensors.partial").exists()
