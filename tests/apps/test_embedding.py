"""The README's programs for other people's loops, run as they stand there beside a bundle B and a video clip.mp4."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tasktok_edge.runtimes.video import VideoFile
from tests.helpers_bundle import build

pytest.importorskip("openvino")
ROOT = Path(__file__).parent.parent.parent
BLOCKS = dict(re.findall(r"```python\n# (\w[^:\n]*)[^\n]*\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
DEBIAN = "/usr/bin/python3"  # whose gi is Debian's
FRAMES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("app")
    build(made / "B", "openvino")
    video = VideoFile(made / "clip.mp4")
    for i in range(FRAMES):
        video.write(np.full((48, 64, 3), 10 * i, np.uint8), i / 25)
    video.close()
    return made


def run(python: str, name: str, folder: Path) -> str:
    paths = os.pathsep.join([str(ROOT), *(p for p in sys.path if p.endswith("site-packages"))])
    done = subprocess.run(
        [python, "-c", BLOCKS[name]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "lines"), [("OpenCV", FRAMES), ("PyAV", FRAMES), ("the library", None)])
def test_a_loop(name: str, lines: int | None, folder: Path) -> None:
    printed = run(sys.executable, name, folder).splitlines()
    assert len(printed) >= FRAMES if lines else printed  # `latest` may drop some


def test_a_ros_callback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(BLOCKS["ROS"], names)
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
    padded = np.concatenate([image.reshape(24, 90), np.zeros((24, 6), np.uint8)], axis=1)
    message = SimpleNamespace(height=24, width=30, step=96, data=padded.tobytes())
    found = names["on_image"](message)  # type: ignore[operator]
    want = names["session"].predict(image, "det")  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found.boxes, want.boxes)
    names["session"].close()  # type: ignore[attr-defined]


def _debian_has_gstreamer() -> bool:
    code = 'import gi, sys; gi.require_version("Gst", "1.0"); from gi.repository import Gst; print(sys.version_info[:2])'
    if not Path(DEBIAN).exists():
        return False
    done = subprocess.run([DEBIAN, "-c", code], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() == str(sys.version_info[:2])


@pytest.mark.skipif(not _debian_has_gstreamer(), reason="Debian's python3-gi and GStreamer are not installed")
def test_gstreamers_appsink_and_appsrc(folder: Path) -> None:
    assert "done" in run(DEBIAN, "GStreamer", folder)
