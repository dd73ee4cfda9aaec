"""`quantize` as a user types it, on the tiny model: methods combine, a stopped run goes on, a seed gives the same bits."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from tasktok_edge import cli_quantize
from tasktok_edge.cli import run
from tasktok_edge.errors import UsageError
from tasktok_edge.model.checkpoint import load_checkpoint
from tasktok_edge.model.fuse import fuse
from tasktok_edge.model.int8 import int8_layers
from tasktok_edge.quantize import ptq, shrink
from tasktok_edge.quantize.prune import sparsity_of
from tasktok_edge.quantize.ptq import quantizable, round_others
from tasktok_edge.quantize.shrink import methods_of
from tasktok_edge.train import loop

TINY = ["--recipe", "tiny", "--frames", "2", "--no-latency", "--workers", "1"]


def quantize(checkpoint: Path, out: Path, cache: Path, *words: str) -> int:
    return run(["quantize", "--checkpoint", str(checkpoint), "--out", str(out), "--cache", str(cache), *TINY, *words])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _few_frames_calibrate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the 128 of the product takes longer than what is tested here."""
    monkeypatch.setattr(shrink, "calibration_frames", partial(ptq.calibration_frames, n=8))
    monkeypatch.setattr(ptq, "calibration_frames", partial(ptq.calibration_frames, n=8))


@pytest.mark.slow
def test_all_methods_combine(tiny_checkpoint: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--method",
        "slim,prune,levels,qat",
        "--keep",
        "layers=1",
        "--keep",
        "hidden=0.5",
        "--sparsity",
        "0.6",
        "--level",
        "selected",
        "--json",
    ]
    assert quantize(tiny_checkpoint, tmp_path, cache, *words) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in told["rows"]] == ["tiny", *(f"after {m}" for m in ("slim", "prune", "levels", "ptq", "qat"))]
    made = load_checkpoint(tmp_path / "checkpoint").model
    assert made.config.level == "selected" and sum(m for _, m in made.config.refiner.kept) == 64
    assert len(int8_layers(made)) > 50
    codes = [layer.codes() for name, layer in int8_layers(made).items() if name.startswith("refiner")]
    pruned = sparsity_of(load_checkpoint(tmp_path / "after-prune").model.refiner)
    zeros = sum(int((c == 0).sum()) for c in codes) / sum(c.numel() for c in codes)
    assert pruned == pytest.approx(0.6, abs=0.02) and zeros >= pruned, "QAT moved weights that were pruned"
    smaller = load_checkpoint(tmp_path / "after-slim").model
    assert sum(p.numel() for p in smaller.parameters()) < sum(
        p.numel() for p in load_checkpoint(tiny_checkpoint).model.parameters()
    )


@pytest.mark.slow
def test_a_stopped_qat_goes_on_to_the_same_bits(
    tiny_checkpoint: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SAVE_EVERY", 2)
    words = ["--method", "slim,qat", "--steps", "4"]
    assert quantize(tiny_checkpoint, tmp_path / "whole", cache, *words) == 0
    calls = 0

    def stop(path: Path, *rest: object) -> None:
        nonlocal calls
        saved(path, *rest)  # type: ignore[arg-type]
        calls += path.stem == "2-qat"
        if calls == 1:
            raise KeyboardInterrupt

    saved = loop._save
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", stop)
        assert quantize(tiny_checkpoint, tmp_path / "stopped", cache, *words) == 130
    assert not (tmp_path / "stopped" / "checkpoint").exists()
    assert quantize(tiny_checkpoint, tmp_path / "stopped", cache, *words) == 0
    a, b = (load_checkpoint(tmp_path / name / "checkpoint") for name in ("whole", "stopped"))
    assert a.sha256 == b.sha256
    ptq = load_checkpoint(tmp_path / "whole" / "after-ptq").model
    assert not torch.equal(ptq.refiner.conv_in.weight, a.model.refiner.conv_in.weight)


@pytest.mark.slow
def test_what_judges_layers_leaves_the_precision_to_what_tunes_behind_it(
    tiny_checkpoint: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate keeps one precision a process: a judge in fp32 would stop the fine-tuning in bf16."""
    monkeypatch.setattr(cli_quantize, "_frames_of", partial(cli_quantize._frames_of, n=4))
    assert quantize(tiny_checkpoint, tmp_path, cache, "--method", "qat", "--keep-fp", "worst:3") == 0
    made = load_checkpoint(tmp_path / "checkpoint").model
    assert len(quantizable(made)) == 3 and len(made.config.int8) > 50


def test_scope_refiner_leaves_the_rest_alone(tiny_checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    assert quantize(tiny_checkpoint, tmp_path, cache, "--method", "qat", "--scope", "refiner") == 0
    made, before = load_checkpoint(tmp_path / "checkpoint").model, load_checkpoint(tiny_checkpoint).model
    assert all(name.startswith("refiner.") for name in made.config.int8)
    wanted = fuse(before)
    round_others(wanted)
    old = wanted.tokenizer.state_dict()
    assert all(torch.equal(value, old[name]) for name, value in made.tokenizer.state_dict().items())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "qta"], "did you mean 'qat'"),
        (["--method", "qat,slim"], "qat comes last"),
        (["--method", "ptq,qat"], "ask for one of them"),
        (["--method", "slim,slim"], "each method once"),
        (["--method", "slim,distill"], "it comes first"),
        (["--method", "qat", "--scope", "refinr"], "did you mean 'refiner'"),
        (["--method", "levels", "--level", "contxt"], "did you mean 'context'"),
        (["--method", "levels", "--tokens", "1.5"], "at most 1, not 1.5"),
        (["--method", "slim", "--keep", "head=0.5"], "did you mean 'heads'"),
        (["--method", "slim", "--keep", "heads=half"], "expected a share such as heads=0.5"),
        (["--method", "slim", "--keep", "task_nets.dat=1"], "did you mean 'det'"),
        (["--method", "slim", "--keep", "heads.det=1"], "heads.det"),
        (["--method", "slim", "--keep", "heads=0"], "above 0 and at most 1"),
        (["--method", "prune", "--sparsity", "1"], "above 0 and below 1"),
        (["--method", "ptq", "--keep-fp", "encoder.nothing"], "no layer is called encoder.nothing"),
        (["--method", "qat", "--recipe", "tinny"], "did you mean 'tiny'"),
        (["--method", "ptq", "--data", "nowhere"], "no picture"),
    ],
)
def test_wrong_words(
    tiny_checkpoint: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert quantize(tiny_checkpoint, tmp_path / "out", cache, *words) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_pictures_calibrate(tiny_checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    import cv2
    import numpy as np

    (tmp_path / "pictures").mkdir()
    for i in range(3):
        cv2.imwrite(
            str(tmp_path / "pictures" / f"{i}.png"), np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        )
    words = ["--method", "ptq", "--data", str(tmp_path / "pictures")]
    assert quantize(tiny_checkpoint, tmp_path / "out", cache, *words) == 0
    (tmp_path / "pictures" / "3.png").write_bytes(b"not a picture")
    assert quantize(tiny_checkpoint, tmp_path / "other", cache, *words) == 2


def test_an_int8_checkpoint_is_not_shrunk_again(tiny_checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    assert quantize(tiny_checkpoint, tmp_path / "a", cache, "--method", "ptq") == 0
    assert quantize(tmp_path / "a" / "checkpoint", tmp_path / "b", cache, "--method", "qat") == 2


def test_an_order_of_methods() -> None:
    assert methods_of("distill, slim,qat") == ("distill", "slim", "qat")
    with pytest.raises(UsageError, match="unknown method 'int8'"):
        methods_of("int8")
