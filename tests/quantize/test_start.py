"""A student of another structure starts near its server: what cannot be copied is folded or fitted."""

from typing import cast

import torch
from torch import Tensor

from tasktok_edge.model.config import TaskTokConfig, preset
from tasktok_edge.model.task_nets import Backbone
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.quantize.start import start_from
from tests.conftest import shake


def pair() -> tuple[TaskTok, TaskTok]:
    """A server, and an edge student of the same numbers."""
    torch.manual_seed(0)
    config = preset("tiny-edge")
    of_server = config.tokenizer.model_copy(update={"class_token": True, "cross": False, "smooth": True})
    config_server = TaskTokConfig.model_validate(
        config.model_copy(update={"tokenizer": of_server, "tasks": preset("tiny").tasks}).model_dump()
    )
    return shake(TaskTok(config_server)), shake(TaskTok(config))


def test_what_has_the_servers_shape_is_copied_and_class_rows_are_dropped() -> None:
    server, student = pair()
    start_from(server, student, torch.rand(8, 3, 32, 32))
    for name in ("refiner", "switch", "prerestorer", "tokenizer.encoder.transformer"):
        for a, b in zip(server.get_submodule(name).parameters(), student.get_submodule(name).parameters(), strict=True):
            assert torch.equal(a, b), name
    for part in ("encoder", "decoder"):
        key = f"tokenizer.{part}.positional_embedding"
        assert torch.equal(student.state_dict()[key], server.state_dict()[key][1:])


def test_smoothing_is_folded_exactly_inside_each_patch() -> None:
    server, student = pair()
    torch.nn.init.normal_(cast(Tensor, server.tokenizer.decoder.conv_out.weight), std=0.3)
    start_from(server, student, torch.rand(8, 3, 32, 32))
    features = torch.randn(1, 16, 16)
    wanted, found = (m.tokenizer.decoder.image(features) for m in (server, student))
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    inside = inside.repeat(4, 4)
    torch.testing.assert_close(found[..., inside], wanted[..., inside], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[..., ~inside], wanted[..., ~inside], atol=1e-3)  # which see their neighbours in the server


def test_a_stem_of_patches_is_fitted_to_the_old_one() -> None:
    """Exactly, where the old one is a linear map of each patch: no tap reaches the next one, its first ReLU is idle."""
    server, student = pair()
    stems = [cast(Backbone, m.task_nets["seg"].get_submodule("backbone")).stem for m in (server, student)]
    for i in ("0", "1"):
        weight = cast(Tensor, stems[0].get_submodule(f"{i}.0").weight)
        weight[:, :, 0] = weight[:, :, :, 0] = 0
    torch.nn.init.constant_(cast(Tensor, stems[0].get_submodule("0.1").bias), 9.0)
    seen = torch.rand(64, 3, 32, 32)
    start_from(server, student, seen)
    wanted, found = stems[0](seen), stems[1](seen)
    assert wanted.std() > 0.05
    assert (found - wanted).abs().max() < 0.01 * wanted.std()
