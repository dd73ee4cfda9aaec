"""The model: level `exact` is the full model, identity where it says so, gradients where TaskTok has them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasktok_edge.errors import UsageError
from tasktok_edge.export.graph import Deployed, functions_of
from tasktok_edge.model.config import PRESETS, TaskTokConfig, preset
from tasktok_edge.model.tasktok import StaticSwitch, TaskTok
from tests.conftest import build_tiny

N = PRESETS["tiny"].tokenizer.tokens


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, N - 1)), st.integers(1, 3))
def test_exact_equals_the_full_model_for_any_choice_of_tokens(chosen: set[int], batch: int) -> None:
    model = build_tiny()
    logits = torch.full((N,), -1.0)
    logits[list(chosen)] = 1.0
    model.switch.logits["cls"].copy_(logits)
    z = torch.randn(batch, N, model.config.tokenizer.channels)
    static = StaticSwitch(model.refiner, model.switch.selected("cls"), tokens=N)
    torch.testing.assert_close(static(z, model.refiner.trunk(z)), model.replace_selected(z, "cls"), atol=1e-5, rtol=1e-5)


def test_only_selected_tokens_change(tiny: TaskTok) -> None:
    z = torch.randn(1, N, tiny.config.tokenizer.channels)
    changed = (tiny.replace_selected(z, "seg") - z).abs().sum(2)[0] > 1e-6
    assert torch.nonzero(changed).flatten().tolist() == tiny.switch.selected("seg")


def test_a_logit_of_zero_is_not_selected(tiny: TaskTok) -> None:
    tiny.switch.logits["cls"].zero_()
    assert tiny.switch.selected("cls") == []


def test_half_of_the_tokens_start_selected(tiny: TaskTok) -> None:
    for task in tiny.config.tasks:
        assert len(tiny.switch.selected(task)) == N // 2


def test_the_most_important_tokens_start_selected(tiny: TaskTok) -> None:
    tiny.switch.start_from_order("det", [5, 4, 3, 2, 1, 0])
    assert tiny.switch.selected("det") == [0, 1, 2]


def test_the_switch_gives_hard_values_and_soft_gradients(tiny: TaskTok) -> None:
    z, refined = torch.zeros(1, N, 2), torch.ones(1, N, 2)
    z.requires_grad_(True)
    refined.requires_grad_(True)
    tiny.switch.requires_grad_(True)
    mixed = tiny.switch(z, refined, "cls")
    assert set(mixed.detach().flatten().tolist()) <= {0.0, 1.0}
    mixed.sum().backward()
    p = tiny.switch.probabilities("cls").detach()
    assert z.grad is not None and refined.grad is not None
    torch.testing.assert_close(refined.grad[0, :, 0], p)  # unselected tokens train the refiner too
    torch.testing.assert_close(z.grad[0, :, 0], 1 - p)
    gradient = tiny.switch.logits["cls"].grad
    assert gradient is not None and (gradient > 0).all()


def test_refined_tokens_do_not_depend_on_the_task(tiny: TaskTok) -> None:
    image = torch.rand(1, 3, 32, 32)
    z = tiny.encode(image)
    refined = tiny.refiner(z)
    for task in tiny.config.tasks:
        chosen = tiny.switch.selected(task)
        torch.testing.assert_close(tiny.replace_selected(z, task)[:, chosen], refined[:, chosen], atol=1e-6, rtol=0)


def test_pre_restorer_and_refiner_start_as_the_identity() -> None:
    model = TaskTok(preset("tiny")).eval()
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.prerestorer(image), image)
    z = torch.randn(2, N, model.config.tokenizer.channels)
    assert torch.equal(model.refiner(z), z)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_answers_every_task(name: str) -> None:
    model = TaskTok(preset(name)).eval()
    size = model.config.image_size
    frame = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        outputs = Deployed(model, functions_of(list(model.config.tasks)))(frame)
    assert [tuple(o.shape) for o in outputs[:2]] == [(1, size, size, 3), (1, 8)]
    assert all(torch.isfinite(o).all() for o in outputs)


def test_the_official_shapes_are_a_configuration_of_the_same_classes() -> None:
    """TiTok-bl64: 390.0 M parameters with its unused codebook of 8192 x 64, as its checkpoint has."""
    official = TaskTokConfig.model_validate(
        {
            "preset": "bl64",
            "image_size": 512,
            "prerestorer": {"width": 8, "blocks": 0, "unshuffle": 8},
            "tokenizer": {
                "image_size": 256, "patch": 16, "tokens": 64, "channels": 64,
                "encoder": {"width": 768, "layers": 12, "heads": 12},
                "decoder": {"width": 1024, "layers": 24, "heads": 16},
            },
            "refiner": {"width": 512, "layers": 6, "heads": 8},
            "tasks": {},
        }
    )  # fmt: skip
    with torch.device("meta"):
        model = TaskTok(official)
    count = sum(p.numel() for p in model.tokenizer.parameters())
    assert count + 8192 * 64 == 390_016_148
    assert sum(p.numel() for p in model.refiner.parameters()) == 19_015_424 - 3 * 64  # without the three switches


def test_unknown_words_are_refused(tiny: TaskTok) -> None:
    with pytest.raises(UsageError, match="did you mean 'seg'"):
        tiny.restore(torch.rand(1, 3, 32, 32), "sag")
    with pytest.raises(UsageError, match="scenes-server"):
        preset("scenes-sever")


def test_a_config_that_does_not_fit_is_refused() -> None:
    data = PRESETS["tiny"].model_dump()
    data["image_size"] = 33
    with pytest.raises(ValueError, match="image_size 33 is not a multiple"):
        TaskTokConfig.model_validate(data)
