"""What training starts from: our checkpoints and official files, and everything that is missing told at once."""

from pathlib import Path

import pytest
import torch

from tasktok_edge.errors import CheckpointError
from tasktok_edge.model.config import ViTConfig
from tasktok_edge.model.task_nets import build_task_net
from tasktok_edge.train.start import load_start
from tests import official_files
from tests.train import helpers_joint as helpers

REFINER = ViTConfig(width=64, layers=1, heads=1)


def write_oracles(folder: Path) -> None:
    for task, file in (("cls", "resnet18-f37072fd.pth"), ("det", "detnet_oracle.pt"), ("seg", "segnet_oracle.pt")):
        torch.manual_seed(ord(task[0]))
        torch.save(build_task_net(helpers.CONFIG.tasks[task], image_size=64).state_dict(), folder / file)


def test_a_checkpoint_of_ours(init: Path) -> None:
    start = load_start(init)
    model = helpers.build()[0]
    assert start.switches_are_fresh
    for name, value in model.state_dict().items():
        assert torch.equal(start.model.state_dict()[name], value), name
    for name, value in model.task_nets.named_parameters():
        assert torch.equal(start.oracles.state_dict()[name], value * 1.02), name
    assert list(start.sources) == ["model.safetensors", "oracles.safetensors"]
    before = start.fingerprint
    next(start.model.refiner.parameters()).data += 1
    assert start.fingerprint == before  # what moves is not in it
    next(start.oracles["seg"].parameters()).data += 1
    assert start.fingerprint != before


def test_a_model_of_the_scenes_is_refused() -> None:
    with pytest.raises(CheckpointError, match="use a recipe of the scenes"):
        load_start("scenes-edge")


@pytest.mark.slow
def test_official_files_without_a_predictor(tmp_path: Path) -> None:
    """TiTok's weights, the pre-restorer and clean networks are all it takes; refiner and switches start fresh."""
    official_files.write(tmp_path, "mini")
    (tmp_path / "token_predictor_last.pt").unlink()
    (tmp_path / "tasktok_last.pt").rename(tmp_path / "weights" / "titok_mini.pt")
    with pytest.raises(CheckpointError) as caught:
        load_start(tmp_path)
    for file in ("clsnet_oracle.pt or resnet18*.pt", "detnet_oracle.pt", "segnet_oracle.pt"):
        assert file in str(caught.value)
    write_oracles(tmp_path / "weights")
    start = load_start(tmp_path, refiner=REFINER)
    assert start.switches_are_fresh
    assert start.model.config.preset == "tasktok-32"
    assert [start.model.config.tasks[task].n_outputs for task in ("cls", "det", "seg")] == [3, 20, 21]
    z = torch.randn(1, 32, 64)
    torch.testing.assert_close(start.model.refiner(z), z)
    tensor = official_files.tensor("latent_tokens", (32, 512), 0)
    assert torch.equal(start.model.tokenizer.encoder.latent_tokens, tensor)
    # A student must not share memory with its teacher: it would move it along.
    students = {value.data_ptr() for value in start.model.state_dict().values()}
    assert not students & {value.data_ptr() for value in start.oracles.state_dict().values()}
    assert set(start.sources) >= {"titok_mini.pt", "resnet18-f37072fd.pth", "detnet_oracle.pt"}


def test_everything_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        load_start(tmp_path / "nowhere")
    with pytest.raises(CheckpointError) as caught:
        load_start(tmp_path)
    for file in ("codeformer_swinir_tiny.pt", "titok_*.pt", "clsnet_oracle.pt", "detnet_oracle.pt", "segnet_oracle.pt"):
        assert file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_oracle_of_another_kind_is_refused(init: Path, tmp_path: Path) -> None:
    for file in ("model.safetensors", "config.json"):
        (tmp_path / file).symlink_to(init / file)
    write_oracles(tmp_path)
    start = load_start(tmp_path)
    assert "resnet18-f37072fd.pth" in start.sources
    (tmp_path / "segnet_oracle.pt").write_bytes((tmp_path / "resnet18-f37072fd.pth").read_bytes())
    with pytest.raises(CheckpointError, match=r"segnet_oracle\.pt' is no deeplabv3_mobilenet_v3_large of this model: no '"):
        load_start(tmp_path)
