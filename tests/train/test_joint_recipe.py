"""The numbers of TaskTok's own training: rates over steps, which optimiser, whose steps count."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from accelerate import Accelerator

from tasktok_edge.errors import UsageError
from tasktok_edge.train.joint_recipe import JOINT_RECIPES, joint_recipe
from tasktok_edge.train.joint_run import check_processes
from tasktok_edge.train.joint_step import JointStep
from tasktok_edge.train.loop import Group, update_together
from tests.train import helpers_joint as helpers


def group(rate: float, steps: int) -> Group:
    return Group([torch.nn.Parameter(torch.zeros(1))], rate, steps)


def test_the_two_variants() -> None:
    small, large = joint_recipe("tasktok-64"), joint_recipe("tasktok-256")
    assert small.model_copy(update={"tokens": 256, "mask_weight": 0.5}) == large
    assert (small.tokens, small.mask_weight, small.steps, small.seed) == (64, 0.05, 140_000, 7777)
    assert small.batch == {"cls": 16, "det": 8, "seg": 8}
    assert [small.own_steps(task) for task in ("cls", "det", "seg")] == [70_000, 35_000, 35_000]
    assert [small.switch_steps(task) for task in ("cls", "det", "seg")] == [3500, 1750, 1750]
    assert (small.feature_weight, small.token_weight, small.drift_weight) == (1.0, 0.1, 0.5)


def test_a_cosine_from_the_rate_to_its_end() -> None:
    decoder = group(1e-5, 140_000)
    assert decoder.rate_at(0) == pytest.approx(1e-5)
    assert decoder.rate_at(35_000) == pytest.approx(1e-7 + 0.5 * (1e-5 - 1e-7) * (1 + 2**-0.5))
    assert decoder.rate_at(70_000) == pytest.approx((1e-5 + 1e-7) / 2)
    assert decoder.rate_at(140_000) == decoder.rate_at(10**6) == pytest.approx(1e-7)


@pytest.mark.parametrize(("task", "total"), [("cls", 1.751), ("det", 0.876), ("seg", 0.876)])
def test_how_far_a_switch_can_go(task: str, total: float) -> None:
    recipe = joint_recipe("tasktok-64")
    switch = group(recipe.switch_rate, recipe.switch_steps(task))
    assert sum(switch.rate_at(k) for k in range(switch.steps)) == pytest.approx(total, abs=5e-4)
    assert switch.rate_at(switch.steps) == pytest.approx(1e-7)  # and there it stays


def test_every_group_has_its_optimiser() -> None:
    model, oracles = helpers.build()
    recipe = joint_recipe("tasktok-64")
    groups = JointStep(recipe, model, oracles, helpers.alone()).groups
    names = ["decoder", "refiner", *(f"{part}-{task}" for task in ("cls", "det", "seg") for part in ("switch", "net"))]
    assert list(groups) == names
    rates = {"decoder": 1e-5, "refiner": 1e-4, "net-cls": 5e-3, "net-det": 5e-3, "net-seg": 1e-3}
    for name, found in groups.items():
        settings = found.optimizer.param_groups[0]
        assert found.rate == rates.get(name, 1e-3)
        if name.startswith("net-"):
            assert isinstance(found.optimizer, torch.optim.SGD)
            assert (settings["momentum"], settings["weight_decay"]) == (0.9, 1e-4)
        else:
            assert isinstance(found.optimizer, torch.optim.AdamW)
            assert (settings["betas"], settings["weight_decay"]) == ((0.9, 0.999), 0.01)
    learning = {id(p) for found in groups.values() for p in found.parameters}
    assert not learning & {id(p) for p in (*model.prerestorer.parameters(), *model.tokenizer.encoder.parameters())}
    # Nothing of the detector is frozen but its norms, which are buffers.
    assert {id(p) for p in model.task_nets["det"].parameters()} <= learning


def test_one_scale_for_all_that_one_backward_moves() -> None:
    """fp16: gradients are unscaled, what overflowed is not applied, and the scale falls once, not once a group."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    accelerator = cast(Accelerator, SimpleNamespace(scaler=scaler, num_processes=1))
    well, ill = (Group([torch.nn.Parameter(torch.zeros(1))], 0.5, 10, momentum=0.0) for _ in range(2))
    scaler.scale(torch.zeros(1))  # as `accelerator.backward` does
    well.parameters[0].grad, ill.parameters[0].grad = torch.tensor([8.0]), torch.tensor([float("inf")])
    update_together([ill, well], accelerator)
    assert well.parameters[0].item() == pytest.approx(-0.5)
    assert ill.parameters[0].item() == 0
    assert scaler.get_scale() == 4.0
    assert (well.updates, ill.updates) == (1, 1)
    assert well.parameters[0].grad is None


def test_batches_that_cannot_be_shared_are_refused() -> None:
    official = JOINT_RECIPES["tasktok-64"]
    for processes in (1, 2, 4):
        check_processes(official, processes)
    with pytest.raises(UsageError, match="cannot be shared by 3 processes"):
        check_processes(official, 3)
    with pytest.raises(UsageError, match="a single image of seg"):
        check_processes(official, 8)
    check_processes(official.model_copy(update={"norms_learn": False}), 8)
