"""Training in small: every stage runs, a stopped run goes on as if it had not stopped, and the loss goes where it should."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tasktok_edge.data.dataset import SceneDataset, StepSampler
from tasktok_edge.model.checkpoint import load_checkpoint, load_oracles
from tasktok_edge.train.loop import Group, run_stage
from tasktok_edge.train.losses import detection_loss, giou, token_loss
from tasktok_edge.train.recipe import recipe
from tasktok_edge.train.stages import STAGES, Run, start


def arrays(n: int = 6, size: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    boxes = np.zeros((n, 8, 4), np.float32)
    boxes[:, 0] = (1, 2, 5, 7)
    labels = np.full((n, 8), -1)
    labels[:, 0] = 3
    return {
        "clean": rng.integers(0, 256, (n, size, size, 3), np.uint8),
        "degraded": rng.integers(0, 256, (n, 2, size, size, 3), np.uint8),
        "label": np.arange(n),
        "semantic": rng.integers(0, 9, (n, size, size), np.uint8),
        "boxes": boxes,
        "box_labels": labels,
    }


def test_a_mirrored_sample_is_mirrored_whole() -> None:
    dataset = SceneDataset(arrays())
    plain, mirrored = dataset[2, 1, False], dataset[2, 1, True]
    for key in ("clean", "degraded", "semantic"):
        assert torch.equal(plain[key].flip(-1), mirrored[key])
    assert mirrored["boxes"][0].tolist() == [3, 2, 7, 7]
    assert torch.equal(plain["box_labels"], mirrored["box_labels"])


def test_batches_depend_on_seed_and_step_alone() -> None:
    def sampler(first: int) -> list[list[tuple[int, int, bool]]]:
        return list(StepSampler(frames=20, versions=2, batch=4, seed=1, start=first, steps=6))

    assert sampler(0)[3:] == sampler(3)
    assert sampler(0)[0] != sampler(0)[1]


def fit(folder: Path, stop_at: int | None) -> nn.Linear:
    torch.manual_seed(0)
    net = nn.Linear(3 * 8 * 8, 8)
    group = Group(list(net.parameters()), 1e-2, 260)

    def step(i: int, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        loss = nn.functional.cross_entropy(net(batch["clean"].float().flatten(1) / 255), batch["label"])
        loss.backward()
        group.update(accelerator)
        return {"loss": loss.detach()}

    accelerator = Accelerator(mixed_precision="bf16")
    progress = run_stage(
        "s", folder, accelerator=accelerator, arrays=arrays(), modules={"net": net}, groups={"g": group}, steps=260, batch=4,
        seed=3, step=step,
    )  # fmt: skip
    for at in progress:
        if at.step == stop_at:
            break
    return net


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = fit(tmp_path / "a", None) if (tmp_path / "a").mkdir() is None else None
    (tmp_path / "b").mkdir()
    fit(tmp_path / "b", 255)  # the last save was at 250
    resumed = fit(tmp_path / "b", None)
    assert whole is not None
    assert torch.equal(whole.weight, resumed.weight)


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path: Path) -> None:
    progress = run_stage(
        "s",
        tmp_path,
        accelerator=Accelerator(mixed_precision="bf16"),
        arrays=arrays(),
        modules={},
        groups={},
        steps=2,
        batch=4,
        seed=0,
        step=lambda i, batch: {"loss": torch.tensor(float("nan"))},
    )
    with pytest.raises(FloatingPointError, match="stage s, step 0"):
        list(progress)


def test_giou_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1]])
    b = torch.tensor([[1.0, 1, 3, 3], [2, 0, 3, 1]])
    # 1/7 - 2/9; and no overlap: 0 - 1/3
    torch.testing.assert_close(giou(a, b), torch.tensor([1 / 7 - 2 / 9, -1 / 3]))


def test_detection_loss_is_least_for_the_right_answer() -> None:
    y, x = torch.meshgrid(torch.arange(8) * 4.0 + 2, torch.arange(8) * 4.0 + 2, indexing="ij")
    centres = torch.stack([x, y], -1).reshape(-1, 2)
    batch = {"boxes": torch.tensor([[[4.0, 4, 16, 16], [0, 0, 0, 0]]]), "box_labels": torch.tensor([[2, -1]])}
    right = torch.full((1, 64, 8), -12.0)
    right[0, (centres - 10).abs().sum(1).argmin(), 2] = 12.0
    boxes = batch["boxes"][:, :1].expand(1, 64, 4)
    best = detection_loss(boxes, right, centres, batch)
    assert best < 0.05
    assert detection_loss(boxes, right.roll(1, 2), centres, batch) > best + 1  # another label
    assert detection_loss(boxes + 6, right, centres, batch) > best + 0.5  # another place


def test_token_loss_sees_selected_tokens_alone() -> None:
    refined, target = torch.zeros(2, 4, 3), torch.ones(2, 4, 3)
    target[:, 2] = 5.0
    assert token_loss(refined, target, torch.tensor([0.9, 0.1, 0.6, 0.5])) == pytest.approx(3.0)
    assert token_loss(refined, target, torch.zeros(4)) == 0.0


@pytest.mark.slow
def test_the_whole_recipe_in_small(tmp_path: Path) -> None:
    from tasktok_edge.cli import run

    out = tmp_path / "run"
    assert run(["train", "--recipe", "tiny", "--out", str(out), "--workers", "1"]) == 0
    model = load_checkpoint(out / "checkpoint").model
    n = model.config.tokenizer.tokens
    assert all(0 <= len(model.switch.selected(task)) <= n for task in model.config.tasks)
    assert set(load_oracles(out / "checkpoint")) == set(model.config.tasks)
    # A second call finds every stage done and gives the same checkpoint.
    before = (out / "checkpoint" / "model.safetensors").read_bytes()
    assert run(["train", "--recipe", "tiny", "--out", str(out), "--workers", "1"]) == 0
    assert (out / "checkpoint" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_joint_training_moves_what_it_should_and_nothing_else(tmp_path: Path) -> None:
    run: Run | None = None
    for step in start(recipe("tiny"), tmp_path, workers=1):
        if isinstance(step, Run):
            run = step
    assert run is not None
    for stage in STAGES[:-1]:
        list(stage(run))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    list(STAGES[-1](run))
    moved = {name.split(".")[0] + "." + name.split(".")[1] for name, value in run.model.state_dict().items()
             if not torch.equal(value, before[name])}  # fmt: skip
    assert {"tokenizer.decoder", "refiner.conv_out", "switch.logits"} <= moved
    assert not any(name.startswith(("prerestorer", "tokenizer.encoder")) for name in moved)
