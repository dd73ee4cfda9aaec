import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tasktok_edge.bundle import Target
from tasktok_edge.runtimes import ENGINES, cli

ROOT = Path(__file__).parents[2]


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["runtimes", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_devices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run(capsys, monkeypatch, "devices")
    assert code == 0
    assert "CPUExecutionProvider" in out
    assert "Core ML runs on macOS" in out
    code, out, _ = run(capsys, monkeypatch, "devices", "--json")
    assert {d["engine"] for d in json.loads(out)} == set(ENGINES)


def test_devices_of_a_bundle(
    built: Callable[[Target], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run(capsys, monkeypatch, "devices", built("onnx"), "--json")
    assert code == 0
    report = json.loads(out)
    assert report["trials"][0]["verdict"] == "chosen"
    assert report["parity"]["status"] == "passed"
    code, out, _ = run(capsys, monkeypatch, "devices", built("onnx"))
    assert code == 0
    assert "chosen" in out


def test_errors_are_one_line_and_a_code(
    built: Callable[[Target], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, want in ((("devices", tmp_path / "no"), 2), (("devices", built("onnx"), "--device", "npu"), 5)):
        code, out, err = run(capsys, monkeypatch, *words)
        assert (code, out) == (want, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tasktok_edge.runtimes", "devices", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}: it has no manifest.json, so it is not a bundle\n"
