"""The judge: equal artifacts pass, damaged ones fail, shards and killed runs change nothing, recordings are tied to frames."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from tasktok_edge.cli import run
from tasktok_edge.data.sources import Scenes, degradations, write_frames
from tasktok_edge.errors import UsageError
from tasktok_edge.model.checkpoint import load_checkpoint, save_checkpoint
from tasktok_edge.model.config import preset
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.parity import export_verified
from tasktok_edge.recording import Recording
from tasktok_edge.report import Report
from tasktok_edge.shards import Share
from tasktok_edge.validate import Validation, Wish, ssim, validate
from tests.conftest import shake

pytestmark = pytest.mark.slow


def export(checkpoint: Path | str, out: Path, *, noise: float = 0.0) -> Path:
    """A bundle for one task; with noise on a layer of the decoder it is sound in form and answers wrongly."""
    loaded = load_checkpoint(checkpoint)
    if noise:
        weight = loaded.model.tokenizer.decoder.get_parameter("decoder_embed.weight")
        with torch.no_grad():
            weight += noise * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return export_verified(loaded, "onnx", out, tasks=("cls",), precision="fp32").path


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_checkpoint, tmp_path_factory.mktemp("bundles") / "tiny")


def validated(wish: Wish) -> Report | None:
    with ExitStack() as stack:
        *_, last = validate(wish, stack)
        assert isinstance(last, Validation)
        return last.report


def figures(report: Report | None) -> dict[str, object]:
    assert report is not None
    return report.model_dump(exclude={"created_utc", "notes"})


def wish_of(bundle: Path, checkpoint: Path, out: Path, n: int = 9) -> Wish:
    return Wish((bundle,), out, server=str(checkpoint), n=n, degraded=degradations(["noise", "blur"], [3]))


def test_shards_and_a_killed_run_change_nothing(
    bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = validated(wish_of(bundle, tiny_checkpoint, tmp_path / "whole"))
    assert whole is not None and whole.frames == {"cls": 9} and [g.name for g in whole.groups] == ["noise 3", "blur 3"]
    assert whole.bundles[0].tasks[0].agreement == 1 and whole.bundles[0].outcome == "pass"
    killed = wish_of(bundle, tiny_checkpoint, tmp_path / "killed")
    with ExitStack() as stack:
        steps = validate(killed, stack)
        for _ in range(4):
            next(steps)
        steps.close()  # type: ignore[attr-defined]
    (file,) = (tmp_path / "killed").rglob("*.jsonl")
    kept = file.read_text()
    file.write_text(kept + kept.splitlines()[0][:40])  # cut short by the kill
    resumed = validated(killed)
    assert resumed is not None and "4 of 9 frames were seen before" in resumed.notes[0]
    assert figures(resumed) == figures(whole)
    for rank in (1, 0):
        monkeypatch.setattr("tasktok_edge.validate.share", lambda rank=rank: Share(rank, 2))
        monkeypatch.setattr("tasktok_edge.validate.wait_for_all", lambda _: None)
        shared = validated(wish_of(bundle, tiny_checkpoint, tmp_path / "shared"))
        assert (shared is None) == (rank == 1)
    assert figures(shared) == figures(whole)


def test_an_equal_artifact_passes_and_one_that_answers_wrongly_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same, damaged = export("scenes-edge", tmp_path / "same"), export("scenes-edge", tmp_path / "damaged", noise=3.0)
    words = ["validate", "--checkpoint", "scenes-edge", "--task", "cls", "--frames", "40", "--out"]
    assert run([*words, str(tmp_path / "a"), "--bundle", str(same), "--min-psnr", "40"]) == 0
    assert "+0.00 (+0.00 to +0.00)" in capsys.readouterr().out
    assert run([*words, str(tmp_path / "b"), "--bundle", str(damaged)]) == 3
    assert re.search(r"fail: scenes-edge-onnx-fp32: cls: -\d", capsys.readouterr().err)
    report = Report.model_validate_json((tmp_path / "b" / "report.json").read_text())
    assert report.outcome == "fail" and report.bundles[0].worst and report.bundles[0].tasks[0].high < -0.01


def test_the_page_is_whole_and_needs_no_network(bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = [
        "validate",
        "--checkpoint",
        str(tiny_checkpoint),
        "--bundle",
        str(bundle),
        "--frames",
        "6",
        "--degradation",
        "snow",
    ]
    assert run([*words, "--severity", "2", "--severity", "4", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "By degradation and severity" in page and page.count("<figure>") >= 8
    assert not re.search(r"""(src|href)=["'](?!data:)""", page) and "{{" not in page and "<script" not in page
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return
    shot = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--screenshot={shot}"]
    done = subprocess.run([browser, *flags, (tmp_path / "report.html").as_uri()], capture_output=True, text=True, timeout=120)
    assert shot.stat().st_size > 20_000 and "CONSOLE" not in done.stderr


@pytest.fixture
def recorded(bundle: Path, tmp_path: Path) -> Iterator[Path]:
    write_frames(tmp_path / "frames", Scenes(5, degradations(["noise"], [3])))
    pictures = sorted(str(p) for p in (tmp_path / "frames").iterdir())
    assert run(["run", str(bundle), *pictures[:4], "--record", str(tmp_path / "recorded")]) == 0
    yield tmp_path / "recorded"


def test_what_a_device_recorded_is_judged_as_if_it_ran_here(
    recorded: Path, bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    wish = replace(wish_of(bundle, tiny_checkpoint, tmp_path / "out", 5), degraded=degradations(["noise"], [3]), data="scenes")
    report = validated(replace(wish, recorded=(recorded,)))
    assert report is not None and report.frames == {"cls": 4}
    there, here = report.bundles
    assert there.name == f"{here.name}, recorded" and there.sha256 == here.sha256 and there.tasks == here.tasks
    alone = validated(replace(wish, recorded=(recorded,), bundles=(), data=None))
    assert alone is not None and alone.metrics == {"cls": "same answers"} and alone.bundles[0].tasks[0].device == 1
    assert "without labels" in alone.notes[-1]


def test_a_recording_of_another_bundle_or_of_other_frames_or_damaged_is_refused(
    recorded: Path, bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    wish = replace(wish_of(bundle, tiny_checkpoint, tmp_path / "out", 3), recorded=(recorded,), data="scenes")
    with pytest.raises(UsageError, match="none of the frames"):
        validated(replace(wish, degraded=degradations(["noise"], [5])))
    head = json.loads((recorded / "record.json").read_text())
    (recorded / "record.json").write_text(json.dumps({**head, "sha256": "0" * 64}))
    with pytest.raises(UsageError, match="recorded with another bundle"):
        validated(replace(wish, degraded=degradations(["noise"], [3])))
    first = recorded / "000000.npz"
    first.write_bytes(first.read_bytes()[:-9])
    with pytest.raises(UsageError, match="is not what was recorded"):
        Recording(recorded).read(0)
    (recorded / "frames.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="is no recording that can be read"):
        Recording(recorded)
    (recorded / "record.json").unlink()
    with pytest.raises(UsageError, match=r"record.json is missing"):
        Recording(recorded)


def test_a_model_that_only_restores_is_judged_by_its_frames(tmp_path: Path) -> None:
    config = preset("tiny")
    only = config.model_copy(update={"tasks": {"seg": config.tasks["seg"].model_copy(update={"net": "none"})}})
    save_checkpoint(tmp_path / "model", shake(TaskTok(only)), facts={})
    loaded = load_checkpoint(tmp_path / "model")
    made = export_verified(loaded, "onnx", tmp_path / "bundle", tasks=("seg",), precision="fp32").path
    wish = wish_of(made, tmp_path / "model", tmp_path / "out", 2)
    with pytest.raises(UsageError, match="restores only"):
        validated(wish)
    for least, outcome in ((40.0, "pass"), (101.0, "fail")):
        report = validated(replace(wish, min_psnr_db=least))
        assert report is not None and report.outcome == outcome and not report.bundles[0].tasks
        assert report.bundles[0].restored_to_server_db["seg"] > 40


@pytest.mark.parametrize("shape", [(256, 256), (64, 37), (11, 12)])
def test_ssim_is_torchmetrics(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    frame = cv2.GaussianBlur(rng.integers(0, 256, (*shape, 3), np.uint8), (5, 5), 2)
    for noise in (0, 5, 60):
        other = np.clip(frame + rng.normal(0, noise, frame.shape), 0, 255).astype(np.uint8)
        a, b = (torch.from_numpy(f).permute(2, 0, 1)[None].float() / 255 for f in (frame, other))
        assert ssim(frame, other) == pytest.approx(float(structural_similarity_index_measure(a, b, data_range=1.0)), abs=2e-5)


def test_data_of_other_labels_and_unknown_tasks_are_refused(bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    wish = wish_of(bundle, tiny_checkpoint, tmp_path)
    with pytest.raises(UsageError, match="did you mean 'cls'"):
        validated(replace(wish, tasks=("clas",)))
    config = preset("tiny")
    tasks = {task: part.model_copy(update={"net": "none"}) for task, part in config.tasks.items()}
    save_checkpoint(tmp_path / "restoring", TaskTok(config.model_copy(update={"tasks": tasks})), facts={})
    with pytest.raises(UsageError, match="has no network for cls"):
        validated(replace(wish, same_as=str(tmp_path / "restoring")))
    for name in ("a", "b"):
        (tmp_path / "tree" / "val" / name).mkdir(parents=True)
        write_frames(tmp_path / "tree" / "val" / name, Scenes(1, degradations(["noise"], [1])))
    with pytest.raises(UsageError, match="the data has 2 labels for cls, tiny answers 8"):
        validated(replace(wish, data=str(tmp_path / "tree")))
