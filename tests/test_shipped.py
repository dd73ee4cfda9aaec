"""The models that come with the package: there, small enough, and good for something."""

from pathlib import Path

import pytest

from tasktok_edge.data.heldout import held_out
from tasktok_edge.model.checkpoint import SHIPPED, checkpoint_folder, load_checkpoint, load_oracles
from tasktok_edge.parity import export_verified
from tasktok_edge.reference import Reference
from tasktok_edge.scores import rate, without_restoration

FRAMES = 60


def test_they_fit_in_20_mb() -> None:
    folders = {checkpoint_folder(name) for name in SHIPPED}
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) <= 20e6


@pytest.mark.parametrize("name", SHIPPED)
def test_at_most_half_of_the_tokens_are_replaced(name: str) -> None:
    model = load_checkpoint(name).model
    for task in model.config.tasks:
        assert 0 < len(model.switch.selected(task)) <= model.config.tokenizer.tokens // 2


@pytest.mark.slow
def test_restoration_helps_every_task() -> None:
    """On few frames, so with room: the figures proper are the README's, by `tasktok-edge demo`."""
    held = list(held_out(FRAMES))
    server, edge = load_checkpoint("scenes-server").model, load_checkpoint("scenes-edge").model
    oracle = without_restoration(load_oracles(), server)
    tasks = tuple(server.config.tasks)
    columns = {}
    for name, predict, frames in (
        ("clean", oracle, [h.truth.image for h in held]),
        ("degraded", oracle, [h.degraded for h in held]),
        ("server", Reference(server).predict, [h.degraded for h in held]),
        ("edge", Reference(edge).predict, [h.degraded for h in held]),
    ):
        columns[name] = rate(name, {t: [predict(f, t) for f in frames] for t in tasks}, held).values
    assert columns["clean"]["cls"] >= 0.9
    for task in tasks:
        assert columns["server"][task] > columns["degraded"][task] + 0.03, task
        assert columns["edge"][task] > columns["degraded"][task], task


@pytest.mark.slow
def test_the_shipped_model_exports_with_parity(tmp_path: Path) -> None:
    done = export_verified(load_checkpoint(), "onnx", tmp_path / "edge", tasks=("det",), precision="fp32")
    assert done.manifest.parity.status == "passed", done.manifest.parity.reason
