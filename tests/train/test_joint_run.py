"""Runs of TaskTok's own training: stopped and resumed, validated, on two processes, and as a person types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasktok_edge.cli import run
from tasktok_edge.errors import UsageError
from tasktok_edge.model.checkpoint import load_checkpoint, load_oracles
from tasktok_edge.train.evaluate import restore
from tasktok_edge.train.joint_recipe import JointRecipe
from tasktok_edge.train.joint_run import STATE, JointRun, begin, train
from tasktok_edge.train.start import Start
from tests.train import helpers_joint as helpers

ROOT = Path(__file__).parents[2]


def begin_small(recipe: JointRecipe, folder: Path, trees: Path, seed: int = 0) -> JointRun:
    model, oracles = helpers.build(seed)
    return begin(recipe, folder, Start(model, oracles, {}), helpers.data(trees), orders=helpers.orders(), facts={})


def fit(run: JointRun, until: int | None = None) -> JointRun:
    for at in train(run):
        if at.stage == "joint" and at.step == until:
            break
    return run


@pytest.fixture
def no_checkpoints(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Note what would be written."""
    written: list[tuple[str, int]] = []
    monkeypatch.setattr("tasktok_edge.train.joint_run._snapshot", lambda run, name: written.append((name, run.step)))
    return written


def test_a_stopped_run_goes_on_bit_for_bit(trees: Path, tmp_path: Path, no_checkpoints: list[tuple[str, int]]) -> None:
    recipe = helpers.quick(validate_frames=1)
    whole = fit(begin_small(recipe, tmp_path / "whole", trees))
    assert {whole.plan.task(i)[0] for i in range(3, 6)} >= {"cls", "det"}  # what goes on has been there before
    stopped = fit(begin_small(recipe, tmp_path / "stopped", trees), until=3)
    assert stopped.step == 3
    assert any(not torch.equal(a, b) for a, b in zip(stopped.model.parameters(), whole.model.parameters(), strict=True))
    resumed = begin_small(recipe, tmp_path / "stopped", trees)
    assert resumed.step == 3
    for task, logits in stopped.model.switch.logits.items():
        assert torch.equal(resumed.model.switch.logits[task], logits)  # and not the order's again
    torch.manual_seed(99)  # where the global generator stands must not matter
    fit(resumed)
    assert resumed.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    for name, group in whole.steps.groups.items():
        other = resumed.steps.groups[name]
        assert other.updates == group.updates
        for key, moments in group.optimizer.state_dict()["state"].items():
            for what, value in moments.items():
                assert value is None or torch.equal(other.optimizer.state_dict()["state"][key][what], value)
    one = [("checkpoint", 3), ("best", 6), ("checkpoint", 6)]
    assert no_checkpoints == [*one, one[0], *one[1:]]
    # Another recipe or other teachers are no continuation.
    with pytest.raises(UsageError, match="another recipe"):
        begin_small(helpers.quick(validate_frames=1, steps=7), tmp_path / "stopped", trees)
    with pytest.raises(UsageError, match="other files"):
        begin_small(recipe, tmp_path / "stopped", trees, seed=1)
    (tmp_path / "stopped" / STATE).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(UsageError, match="no whole state"):
        begin_small(recipe, tmp_path / "stopped", trees)


def test_only_a_better_mean_replaces_the_best(trees: Path, tmp_path: Path, no_checkpoints: list[tuple[str, int]]) -> None:
    small = begin_small(helpers.quick(steps=2, validate_every=1, save_every=9, validate_frames=1), tmp_path, trees)
    small.history.append({"step": 0.0, "cls": 1.0, "det": 1.0, "seg": 0.9, "mean": 2.9 / 3})
    fit(small)
    assert [row["step"] for row in small.history] == [0, 1, 2]
    assert no_checkpoints == [("checkpoint", 2)]
    assert small.best is not None
    assert small.best["step"] == 0
    for row in small.history[1:]:
        assert row["mean"] == pytest.approx((row["cls"] + row["det"] + row["seg"]) / 3)


def test_frames_that_are_not_square_are_restored_whole() -> None:
    model, _ = helpers.build()
    model.eval()
    for task, order in helpers.orders().items():
        model.switch.start_from_order(task, order)
    image = torch.rand(1, 3, 70, 93)
    with torch.no_grad():
        assert restore(model, image, "seg").shape == image.shape
        square = torch.rand(2, 3, 64, 64)
        assert torch.equal(restore(model, square, "seg"), model.restore(square, "seg"))


def train_words(init: Path, trees: Path, orders: Path, out: Path) -> list[str]:
    words = ["train", "--recipe", "tasktok-mini", "--init", init, "--orders", orders, "--out", out, "--workers", 0]
    return [str(word) for word in [*words, "--data-imagenet", trees / "imagenet", "--data-voc", trees / "voc"]]


@pytest.mark.slow
def test_from_files_to_a_checkpoint_as_a_person_types_it(
    init: Path, trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data-imagenet", str(trees / "imagenet"), "--data-voc", str(trees / "voc"), "--init", str(init)]
    orders, out = tmp_path / "orders.pt", tmp_path / "run"
    assert run(["greedy", *data, "--out", str(orders), "--frames", "2", "--rounds", "1"]) == 0
    assert "1 of 6 rounds searched" in capsys.readouterr().out
    assert run(train_words(init, trees, orders, out)) == 0
    shown = capsys.readouterr().out
    assert "best at step 6" in shown
    assert f"saved {out / 'checkpoint'}" in shown
    first, best = load_checkpoint(out / "checkpoint"), load_checkpoint(out / "best")
    assert best.sha256 == first.sha256  # one validation, at the last step: the same snapshot
    assert json.loads((out / "best" / "provenance.json").read_text())["step"] == 6
    assert json.loads((out / "validation.json").read_text())[0]["step"] == 6
    kept, teachers = load_oracles(out / "best").state_dict(), load_oracles(init).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in teachers.items())
    start = load_checkpoint(init).model
    assert torch.equal(first.model.prerestorer.conv_first.weight, start.prerestorer.conv_first.weight)  # type: ignore[union-attr]
    # Once more: nothing is left to do, and nothing changes.
    assert run(train_words(init, trees, orders, out)) == 0
    assert load_checkpoint(out / "checkpoint").sha256 == first.sha256
    # Trained switches are not overwritten by an order, as upstream's resume does.
    capsys.readouterr()
    assert run(train_words(out / "best", trees, orders, tmp_path / "other")) == 2
    assert "would overwrite them" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_do_what_one_does(init: Path, trees: Path, tmp_path: Path) -> None:
    """Two CPU processes that really exchange half batches' gradients, against one with whole ones; normalisation kept still.

    With learning norms they differ: batch normalisation sees each process' own images, 8 of 16, and so do dropout's numbers.
    """
    orders = helpers.write_order_file(tmp_path / "orders.pt")
    states = {}
    for n in (1, 2):
        out = tmp_path / str(n)
        # What `accelerate launch` starts for several GPUs; for CPUs alone it would need MPI.
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]
        words += ["-m", "tests.train.run_still", *train_words(init, trees, orders, out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("saved") == 1  # the main process alone talks
        assert json.loads((out / "checkpoint" / "provenance.json").read_text())["processes"] == n
        states[n] = torch.load(out / STATE, weights_only=True)
    # The optimisers' first moments are the gradients, before AdamW makes a whole step of the smallest of them.
    for name, (alone, updates) in states[1]["groups"].items():
        shared, other_updates = states[2]["groups"][name]
        assert updates == other_updates == (3 if name in ("decoder", "refiner") else 1)
        one, two = (
            torch.cat([m.get("exp_avg", m.get("momentum_buffer")).flatten() for m in found["state"].values()])
            for found in (alone, shared)
        )
        assert one.norm() > 0, name
        # Halves are summed in another order, and where features then differ by rounding alone, L1's and ReLU's gradients jump:
        # how far depends on the processor's instructions, 7.5e-4 at most of four kinds. Without the exchange it is 0.66.
        assert (one - two).norm() <= 2e-3 * one.norm(), (name, float((one - two).norm() / one.norm()))
    for name, value in states[1]["modules"]["nets"].items():
        # They moved by up to 0.02 (seg) and 0.2 (cls, det).
        assert torch.allclose(states[2]["modules"]["nets"][name].double(), value.double(), rtol=1e-4, atol=3e-4), name
    histories = [json.loads((tmp_path / str(n) / "validation.json").read_text()) for n in (1, 2)]
    assert histories[0][0] == pytest.approx(histories[1][0], abs=0.02)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--recipe", "tasktok-65"], ["did you mean 'tasktok-64'"]),
        (["--recipe", "tasktok-64"], ["--init is missing", "--data-imagenet is missing", "--data-voc is missing"]),
        (
            ["--recipe", "tasktok-64", "--init", "x", "--data-imagenet", "y", "--data-voc", "z", "--degradation", "mix-c"],
            ["--init x is no folder", "--data-imagenet y", "--data-voc z", "did you mean 'mix-"],
        ),
        (["--recipe", "tasktok-mini", "--paired", "cls=nowhere"], ["--paired nowhere is no folder", "--init is missing"]),
        (["--recipe", "tasktok-mini", "--paired", "clss=nowhere"], ["did you mean 'cls'"]),
        (["--recipe", "tiny", "--init", "x", "--degradation", "mix-a"], ["leave out --init, --degradation"]),
        (["--recipe", "tasktok-64", "--checkpoint-out", "x"], ["leave out --checkpoint-out"]),
        (["--recipe", "tasktok-64", "--steps", "0"], ["--steps"]),
    ],
)
def test_mistakes_get_one_line(words: list[str], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for part in told:
        assert part in error
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_together_is_refused(
    init: Path, trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--init", str(init), "--data-imagenet", str(trees / "imagenet"), "--data-voc", str(trees / "voc")]
    assert run(["train", "--recipe", "tasktok-64", "--out", str(tmp_path / "out"), *data]) == 2
    error = capsys.readouterr().err
    assert "the recipe is for 64 tokens, the tokenizer of --init has 6" in error
    assert "--orders is missing" in error
    assert not (tmp_path / "out").exists()


def test_mistakes_of_greedy_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there.pt"
    there.touch()
    for words, told in (
        (["--out", str(there)], "exists"),
        (["--out", str(tmp_path / "orders.txt"), "--degradation", "mix-d"], "must end in .pt"),
        (["--out", str(tmp_path / "o.pt"), "--data-voc", "x"], "leave out --data-voc"),
        (["--out", str(tmp_path / "o.pt"), "--init", "nowhere"], "--data-imagenet is missing"),
    ):
        assert run(["greedy", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert told in error


@pytest.mark.slow
def test_greedy_needs_no_data_for_the_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "orders.pt"
    assert run(["greedy", "--out", str(out), "--frames", "4", "--budget-minutes", "0", "--workers", "1"]) == 0
    assert "1 of 32 rounds searched" in capsys.readouterr().out
    raw = torch.load(out, weights_only=True)
    assert raw["task_names"] == ["cls", "seg", "det"]
    assert all(sorted(row) == list(range(32)) for row in raw["orders"].tolist())
