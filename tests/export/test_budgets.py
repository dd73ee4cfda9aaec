"""Budgets of tokens: chosen at load time from those a bundle was built with, and equal to the full model with that switch."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tasktok_edge.apps.live import AUTO, OWN, open_model
from tasktok_edge.bundle import read_bundle
from tasktok_edge.errors import BundleError, UsageError
from tasktok_edge.export import Target
from tasktok_edge.manifest import MANIFEST, parse_manifest
from tasktok_edge.model.checkpoint import load_checkpoint
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.parity import export_verified
from tasktok_edge.reference import Reference
from tasktok_edge.runtimes import load
from tasktok_edge.runtimes.cameras import Frames
from tasktok_edge.runtimes.stream import stream

TASKS = ("cls", "seg")
BUDGETS = (1, 3)


@pytest.mark.parametrize("level", ["exact", "context", "selected"])
def test_a_budget_replaces_the_tokens_of_the_highest_probability(tiny: TaskTok, level: str) -> None:
    tiny.config = tiny.config.model_copy(update={"level": level})
    z = torch.randn(2, tiny.config.tokenizer.tokens, tiny.config.tokenizer.channels, generator=torch.Generator().manual_seed(0))
    for task in TASKS:
        best = tiny.switch.logits[task].argsort(descending=True).tolist()
        for n in range(1, len(best) + 1):
            changed = (tiny.replace_selected(z, task, n) - z).abs().amax((0, 2)) > 1e-6
            assert changed.nonzero().flatten().tolist() == sorted(best[:n])
        own = tiny.switch.selected(task)
        again = tiny.replace_selected(z, task, len(own))
        torch.testing.assert_close(again, tiny.replace_selected(z, task), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Target], Path]:
    @cache
    def export(target: Target) -> Path:
        out = tmp_path_factory.mktemp("budgets") / target
        checkpoint = load_checkpoint(tiny_checkpoint)
        tasks = TASKS if target == "onnx" else TASKS[1:]  # 12 functions, or 6
        return export_verified(checkpoint, target, out, tasks=tasks, precision="fp32", budgets=BUDGETS).path

    return export


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_session_has_the_budget_it_was_loaded_with(
    exported: Callable[[Target], Path], target: Target, tiny_checkpoint: Path
) -> None:
    manifest = parse_manifest((exported(target) / MANIFEST).read_bytes())
    assert (
        manifest.verified
        and manifest.budgets == BUDGETS
        and set(manifest.parity.psnr_db) == {f.name for f in manifest.functions}
    )
    reference = Reference(load_checkpoint(tiny_checkpoint).model)
    size = manifest.input.size
    batch = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    seen = []
    for tokens in (None, *BUDGETS):
        with load(exported(target), tokens=tokens, threads=1) as session:
            assert session.tokens == tokens
            (wanted,) = reference.run_raw([f"restore/seg@{tokens}" if tokens else "restore/seg"], batch).values()
            found = session.restore(batch[0], "seg")
            assert np.abs(found - np.clip(wanted[0] * 255, 0, 255)).max() <= 0.51
            both = session(batch[0], tasks=session.tasks)
            np.testing.assert_array_equal(both["seg"].frame, found)
            np.testing.assert_array_equal(session.predict(batch[0], "seg").mask, both["seg"].answer.mask)  # type: ignore[union-attr]
            assert session.placement(session.tasks[0])
            (raw,) = session.run_raw(session.functions[:1], batch).values()
            seen.append(raw)
    assert all(np.abs(a - b).max() > 1e-5 for a, b in pairwise(seen))


@pytest.mark.slow
def test_isolated_it_is_the_same(exported: Callable[[Target], Path]) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    with (
        load(exported("onnx"), tokens=1, threads=1) as here,
        load(exported("onnx"), tokens=1, threads=1, isolate=True) as there,
    ):
        np.testing.assert_array_equal(there.restore(frame, "cls"), here.restore(frame, "cls"))


@pytest.mark.slow
def test_another_budget_is_refused_with_those_there_are(exported: Callable[[Target], Path], tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="no budget of 2 tokens, only with 1, 3"):
        load(exported("onnx"), tokens=2)
    checkpoint = load_checkpoint(tiny_checkpoint)
    for wrong in (0, checkpoint.model.config.tokenizer.tokens + 1):
        with pytest.raises(UsageError, match="a budget is from 1 to the model's"):
            export_verified(checkpoint, "onnx", exported("onnx").parent / "no", tasks=TASKS, precision="fp32", budgets=(wrong,))


@pytest.mark.slow
def test_a_manifest_has_each_budget_for_all_tasks(exported: Callable[[Target], Path], tmp_path: Path) -> None:
    with read_bundle(exported("onnx")) as bundle:
        text = (bundle.path / MANIFEST).read_text()
    for old, new, told in (
        ("restore/seg@1", "restore/seg@2", "must be restore/seg@1"),
        ('"tokens": 1', '"tokens": 2', "must be"),
    ):
        with pytest.raises(BundleError, match=told):
            parse_manifest(text.replace(old, new).encode())
    one = parse_manifest(text.encode())
    left = [f for f in one.functions if f.name != "predict/seg@3"]
    with pytest.raises(BundleError, match="task seg has not the functions"):
        parse_manifest(one.model_copy(update={"functions": tuple(left)}).model_dump_json().encode())


@pytest.mark.slow
def test_a_camera_opens_the_budgets_below_the_tasks_own_from_the_largest_on(exported: Callable[[Target], Path]) -> None:
    bundle = exported("onnx")
    model = open_model(bundle, "cpu", 1, budgets=True)
    most = max(len(task.selected_tokens) for task in model.own.bundle.manifest.tasks.values())
    assert [s.tokens for s in model.sessions] == [None, *(n for n in reversed(BUDGETS) if n < most)]
    assert model.own.bundle.budgets == BUDGETS and model.of_budget(AUTO) == model.sessions
    assert model.of_budget("1")[0].tokens == 1 and model.of_budget(OWN) == (model.own,)
    with pytest.raises(UsageError, match="unknown budget '2'"):
        model.of_budget("2")
    frames = [np.full((40, 40, 3), i, np.uint8) for i in range(3)]
    with stream(model.sessions, Frames(lambda: frames), task="seg", policy="every", fps=1000) as results:
        assert [one.session.tokens for one in results] == [None] * 3  # three are too few to leave the best
    model.close()
    fixed = open_model(bundle, "cpu", 1, tokens=3, budgets=True)
    assert [s.tokens for s in fixed.sessions] == [3]
    fixed.close()
