"""Levels `context` and `selected`: what they compute, where they are the full model, and that a graph computes the same."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasktok_edge.export import Target
from tasktok_edge.export.executorch import delegated
from tasktok_edge.export.graph import Deployed, functions_of
from tasktok_edge.macs import count
from tasktok_edge.model.checkpoint import load_checkpoint, save_checkpoint
from tasktok_edge.model.config import Level
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.parity import export_verified
from tasktok_edge.quantize.finetune import restoration_losses
from tasktok_edge.quantize.levels import with_level
from tests.conftest import build_tiny

LEVELS: tuple[Level, ...] = ("exact", "context", "selected")
OTHERS: tuple[Level, ...] = ("context", "selected")


def tokens_of(model: TaskTok, batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, model.config.tokenizer.tokens, model.config.tokenizer.channels)


def by_hand(model: TaskTok, z: Tensor, task: str) -> Tensor:
    """Level `context`, row by row from its definition: every row passes every block, unselected ones are then put back."""
    refiner, chosen = model.refiner, model.switch.selected(task)
    embedded = refiner.ln_pre(refiner.conv_in(z) + refiner.latent_positional_embedding)
    x = embedded
    for block in refiner.transformer.blocks:
        after = block(x)
        x = embedded.clone()
        x[:, chosen] = after[:, chosen]
    mixed = z.clone()
    mixed[:, chosen] += refiner.conv_out(refiner.ln_post(x))[:, chosen]
    return mixed


@pytest.mark.parametrize("task", ["cls", "seg", "det"])
def test_context_is_what_it_is_said_to_be(task: str) -> None:
    model = with_level(build_tiny(), "context")
    z = tokens_of(model)
    torch.testing.assert_close(model.replace_selected(z, task), by_hand(model, z, task), atol=1e-5, rtol=1e-5)


def test_selected_sees_the_selected_tokens_alone() -> None:
    model = with_level(build_tiny(), "selected")
    z, chosen = tokens_of(model), model.switch.selected("cls")
    others = [i for i in range(z.shape[1]) if i not in chosen]
    moved = z.clone()
    moved[:, others] += 1
    assert torch.equal(model.replace_selected(z, "cls")[:, chosen], model.replace_selected(moved, "cls")[:, chosen])
    moved[:, chosen[0]] += 1
    assert not torch.equal(model.replace_selected(z, "cls")[:, chosen[1]], model.replace_selected(moved, "cls")[:, chosen[1]])


@pytest.mark.parametrize("level", OTHERS)
def test_unselected_tokens_pass_by(level: Level) -> None:
    model = with_level(build_tiny(), level)
    z = tokens_of(model)
    for task in model.config.tasks:
        changed = (model.replace_selected(z, task) != z).any(2).any(0)
        assert torch.nonzero(changed).flatten().tolist() == model.switch.selected(task)


def test_with_all_tokens_selected_the_levels_are_one_function() -> None:
    models = [with_level(build_tiny(), level, 1.0) for level in LEVELS]
    z = tokens_of(models[0])
    wanted = models[0].refiner(z)
    for model in models:
        torch.testing.assert_close(model.replace_selected(z, "seg"), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_with_none_selected_the_tokens_stay(level: Level) -> None:
    model = with_level(build_tiny(), level)
    model.switch.logits["cls"].fill_(-1.0)
    z = tokens_of(model)
    torch.testing.assert_close(model.replace_selected(z, "cls"), z, atol=1e-6, rtol=0)
    assert torch.isfinite(Deployed(model, functions_of(["cls"]))(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))[0]).all()


def test_the_levels_differ() -> None:
    z = tokens_of(build_tiny())
    answers = [with_level(build_tiny(), level).replace_selected(z, "cls") for level in LEVELS]
    assert all((a - b).abs().max() > 1e-3 for a in answers for b in answers if a is not b)


@pytest.mark.parametrize("share", [None, 0.34, 1.0])
@pytest.mark.parametrize("level", OTHERS)
def test_a_graph_computes_the_level_for_one_task_or_for_all(level: Level, share: float | None) -> None:
    model = with_level(build_tiny(), level, share)
    functions = functions_of(list(model.config.tasks))
    frame = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    image = frame.permute(0, 3, 1, 2).float() / 255
    for graph in (Deployed(model, functions), delegated(Deployed(model, functions))):
        outputs = dict(zip([f.name for f in functions if f.kind == "restore"], graph(frame)[::2], strict=False))
        for task in model.config.tasks:
            (alone,) = graph.only(functions_of([task])[0])(frame)
            wanted = model.restore(image, task).permute(0, 2, 3, 1)
            torch.testing.assert_close(alone, wanted, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(outputs[f"restore/{task}"], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("level", OTHERS)
def test_tuning_moves_the_refiner_and_no_switch(level: Level) -> None:
    model = with_level(build_tiny(), level).requires_grad_(True)
    frames = torch.rand(2, 3, 32, 32)
    z = model.encode(frames).detach()
    losses, _ = restoration_losses(model, "det", frames, frames, z, model.refiner(z).detach())
    (losses["tokens"] + losses["pixels"]).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.refiner.transformer.blocks[0].attn.parameters())
    assert all(p.grad is None for p in model.switch.parameters())


def test_fewer_tokens_are_less_to_compute() -> None:
    def refiner(level: Level, share: float) -> int:
        model = with_level(build_tiny(), level, share)
        costs = count(model.config, {task: model.switch.selected(task) for task in model.config.tasks})
        return next(part.exported for part in costs if part.name == "refiner")

    for level in OTHERS:
        assert refiner(level, 0.34) < refiner(level, 0.67) < refiner(level, 1.0) == refiner("exact", 1.0)
    assert refiner("selected", 0.34) < refiner("context", 0.34) < refiner("exact", 0.34)


def test_a_share_is_that_of_the_most_probable_tokens() -> None:
    model = build_tiny()
    probable = torch.sort(model.switch.logits["det"], descending=True).indices.tolist()
    for share, n in ((0.01, 1), (0.34, 2), (1.0, 6)):
        once = with_level(model, "context", share)
        assert once.switch.selected("det") == sorted(probable[:n])
        again = with_level(once, "context", 0.5)
        assert again.switch.selected("det") == with_level(model, "context", 0.5).switch.selected("det")
    assert model.config.level == "exact" and len(model.switch.selected("det")) == 3, "the given model was changed"


def test_a_checkpoint_keeps_the_level(tmp_path: Path) -> None:
    model = with_level(build_tiny(), "context", 0.34)
    save_checkpoint(tmp_path / "c", model, facts={}, exact=True)
    loaded = load_checkpoint(tmp_path / "c").model
    z = tokens_of(model)
    assert loaded.config.level == "context"
    assert torch.equal(loaded.replace_selected(z, "seg"), model.replace_selected(z, "seg"))


@pytest.mark.slow
@pytest.mark.parametrize(("level", "target"), [("context", "openvino"), ("selected", "onnx")])
def test_an_engine_computes_the_level(level: Level, target: Target, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", with_level(build_tiny(), level), facts={})
    made = export_verified(load_checkpoint(tmp_path / "c"), target, tmp_path / "b", tasks=("det",), precision="fp32")
    assert made.manifest.level == level and made.manifest.parity.status == "passed", made.manifest.parity.reason
    assert min(made.manifest.parity.psnr_db.values()) >= 100
