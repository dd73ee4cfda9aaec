"""Slimming: what is cut out equals what is masked, the config tells the widths, and the rest of the house takes the model."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from tasktok_edge.errors import UsageError
from tasktok_edge.export.graph import Deployed, model_functions
from tasktok_edge.macs import count
from tasktok_edge.model.checkpoint import load_checkpoint, save_checkpoint
from tasktok_edge.model.config import preset
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.quantize.axes import axes_of, sizes
from tasktok_edge.quantize.layers import Kept, choose_blocks, silence_blocks, stacks_of, without_blocks
from tasktok_edge.quantize.slim import Importance, Shares, cut, mask, plan, probe
from tests.conftest import shake

SHARES = Shares(heads=0.75, hidden=0.5, prerestorer=0.5, task_nets=0.5)


def wide(seed: int = 0, name: str = "tiny") -> TaskTok:
    """A tiny model with enough channels to lose some."""
    torch.manual_seed(seed)
    config = preset(name)
    stem = 0 if config.tasks["cls"].patch else 16
    tasks = {task: c.model_copy(update={"stem": stem, "widths": (16, 24, 32), "head": 16}) for task, c in config.tasks.items()}
    pre = config.prerestorer.model_copy(update={"width": 16})
    model = shake(TaskTok(config.model_copy(update={"tasks": tasks, "prerestorer": pre})))
    for module in model.modules():  # statistics that do something
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def random_importance(model: TaskTok, seed: int) -> Importance:
    torch.manual_seed(seed)
    return {group: torch.rand(n) for group, n in sizes(model, axes_of(model)).items()}


def answers(model: TaskTok, image: torch.Tensor) -> list[torch.Tensor]:
    found = [model.restore(image, task) for task in model.config.tasks]
    for task in model.config.tasks:
        answer = model(image, task)
        found += answer if isinstance(answer, tuple) else [answer]
    return found


@pytest.mark.parametrize(("seed", "name"), [(0, "tiny"), (1, "tiny"), (2, "tiny"), (3, "tiny"), (0, "tiny-edge")])
def test_cut_equals_mask(seed: int, name: str) -> None:
    model = wide(seed, name)
    chosen = plan(model, random_importance(model, seed), SHARES)
    masked, smaller = deepcopy(model), cut(model, chosen)
    mask(masked, chosen)
    image = torch.rand(2, 3, 32, 32)
    for a, b, full in zip(answers(smaller, image), answers(masked, image), answers(model, image), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)
        assert not torch.allclose(a, full, atol=1e-3), "the mask did nothing"


@pytest.mark.parametrize("name", ["tiny", "tiny-edge"])
@pytest.mark.parametrize("stay", [[0], [1]])
def test_a_model_without_blocks_is_one_whose_blocks_add_nothing(name: str, stay: list[int]) -> None:
    model = wide(0, name)
    pre = model.config.prerestorer.model_copy(update={"blocks": 2})
    model = shake(TaskTok(model.config.model_copy(update={"prerestorer": pre})))
    kept = dict.fromkeys(stacks_of(model), stay)  # tiny-edge has stacks of one
    assert len(kept) == (4 if name == "tiny" else 2)
    silenced, smaller = deepcopy(model), without_blocks(model, kept)
    silence_blocks(silenced, kept)
    assert smaller.config.refiner.layers == smaller.config.prerestorer.blocks == 1
    image = torch.rand(2, 3, 32, 32)
    for a, b, full in zip(answers(smaller, image), answers(silenced, image), answers(model, image), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)
        assert not torch.allclose(a, full, atol=1e-3), "the blocks did nothing"


def test_the_blocks_that_matter_least_go_first() -> None:
    model = wide()
    silence_blocks(model, {"refiner.transformer.blocks": [1]})  # block 0 adds nothing: it goes first
    image = torch.rand(2, 3, 32, 32)
    wanted = [a.detach() for a in answers(model, image)]

    def loss(smaller: TaskTok) -> float:
        return sum(float((a - b).detach().square().mean()) for a, b in zip(answers(smaller, image), wanted, strict=True))

    def chosen(share: float) -> Kept:
        steps = choose_blocks(model, loss, share)
        try:
            while True:
                next(steps)
        except StopIteration as end:
            kept: Kept = end.value
            return kept

    full = {name: [0, 1] for name in stacks_of(model)}
    assert chosen(1.0) == full
    assert chosen(5 / 6) == {**full, "refiner.transformer.blocks": [1]}
    assert all(len(stay) == 1 for stay in chosen(0.01).values())


def test_every_group_is_read_and_made() -> None:
    model = wide()
    axes = axes_of(model)
    made, read = ({a.group for a in axes if a.made is made} for made in (True, False))
    assert made == read
    names = {name for name, p in model.named_parameters() if p.ndim >= 2 and (".fc." in name or "conv" in name)}
    cut_axes = {a.tensor for a in axes}
    free = ("patch_embed", "decoder.conv_out", "encoder.conv_out", "refiner.conv")
    assert {n for n in names if not any(f in n for f in free)} <= cut_axes


def test_the_widths_are_in_the_config(tmp_path: Path) -> None:
    model = wide()
    smaller = cut(model, plan(model, random_importance(model, 0), SHARES))
    config = smaller.config
    # three of four heads stay, one of two runs of 32 hidden units of each block: in all, whichever block has them
    for vit in (config.tokenizer.encoder, config.tokenizer.decoder, config.refiner):
        assert sum(h for h, _ in vit.kept) == 3 and sum(m for _, m in vit.kept) == 64
    assert config.prerestorer.width == 8 and config.tasks["seg"].widths == (8, 16, 16) and config.tasks["seg"].head == 8
    save_checkpoint(tmp_path, smaller, facts={}, exact=True)
    image = torch.rand(1, 3, 32, 32)
    again = load_checkpoint(tmp_path).model
    for a, b in zip(answers(smaller, image), answers(again, image), strict=True):
        assert torch.equal(a, b)
    before, after = (sum(p.exported for p in count(m.config, {})) for m in (model, smaller))
    assert after < 0.6 * before


@pytest.mark.parametrize("name", ["tiny", "tiny-edge"])
def test_the_exported_graph_of_a_slim_model_is_the_model(name: str) -> None:
    model = wide(0, name)
    model = without_blocks(model, {stack: [0] for stack in stacks_of(model)})
    smaller = cut(model, plan(model, random_importance(model, 1), SHARES))
    frame = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    graph = Deployed(smaller, model_functions(smaller.config)).eval()(frame)
    wanted = smaller.restore(frame.permute(0, 3, 1, 2) / 255, "cls").permute(0, 2, 3, 1)
    torch.testing.assert_close(graph[0], wanted, atol=1e-5, rtol=1e-5)


def test_the_probe_finds_what_matters() -> None:
    model = wide().requires_grad_(True)
    with torch.no_grad():  # a unit that nobody reads does nothing
        model.get_submodule("refiner.transformer.blocks.0.proj").weight[:, 5] = 0
    image = torch.rand(4, 3, 32, 32)
    steps = probe(model, (model.restore(image, task).square().mean() for task in ("cls", "seg")), n=2)
    seen = []
    try:
        while True:
            seen.append(next(steps))
    except StopIteration as end:
        importance = end.value
    assert [s.done for s in seen] == [1, 2]
    hidden = importance["refiner.transformer.blocks.0/hidden"]
    assert hidden[5] == 0 and (hidden > 0).sum() > 48
    assert set(importance) == {g for g in sizes(model, axes_of(model)) if not g.startswith("task_nets")}


def test_a_task_may_keep_more_than_the_others() -> None:
    model = wide()
    importance = random_importance(model, 0)
    shares = Shares(task_nets=0.5, tasks={"det": 1.0})
    config = cut(model, plan(model, importance, shares)).config
    assert config.tasks["seg"].widths == (8, 16, 16) and config.tasks["det"].widths == (16, 24, 32)
    with pytest.raises(UsageError, match="above 0 and at most 1, not det 0"):
        Shares(tasks={"det": 0})


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_shares_out_of_range(share: float) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        Shares(hidden=share)
