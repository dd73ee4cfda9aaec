"""The import rules of the house, each checked in a fresh interpreter by what is in sys.modules."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH = {"torch", "executorch", "torchao"}
ENGINES = {"openvino", "onnxruntime", "coremltools", "executorch"}
CONVERTERS = {"onnx", "onnxscript", "coremltools", "openvino", "executorch"}
OURS = {f"tasktok_edge.{name}" for name in ("model", "export", "quantize", "runtimes", "apps", "train", "data")}


def imported(statement: str) -> set[str]:
    """Names in sys.modules after a statement, top level, and tasktok_edge's own at two levels."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    names = done.stdout.split()
    return {name.split(".")[0] for name in names} | {".".join(name.split(".")[:2]) for name in names}


@pytest.mark.parametrize(
    ("statement", "never"),
    [
        ("import tasktok_edge", TORCH | ENGINES | OURS | {"numpy"}),
        ("import tasktok_edge.bundle, tasktok_edge.frames", TORCH | ENGINES | OURS),
        ("import tasktok_edge.runtimes", TORCH | ENGINES | OURS - {"tasktok_edge.runtimes"}),
        ("import tasktok_edge.runtimes.session", TORCH | ENGINES | OURS - {"tasktok_edge.runtimes"}),
        ("import tasktok_edge.apps.restore", TORCH | ENGINES | OURS - {"tasktok_edge.runtimes", "tasktok_edge.apps"}),
        ("import tasktok_edge.apps.camera", TORCH | ENGINES | OURS - {"tasktok_edge.runtimes", "tasktok_edge.apps"}),
        ("import tasktok_edge.cli", TORCH | ENGINES | OURS),
        ("import tasktok_edge.data.scenes, tasktok_edge.data.degrade", TORCH | ENGINES | OURS - {"tasktok_edge.data"}),
        ("import tasktok_edge.model.tasktok", ENGINES | CONVERTERS | OURS - {"tasktok_edge.model"}),
        ("import tasktok_edge.model.own_net", ENGINES | CONVERTERS | OURS - {"tasktok_edge.model"}),
        ("import tasktok_edge.model.checkpoint", ENGINES | CONVERTERS | OURS - {"tasktok_edge.model"}),
        ("import tasktok_edge.train.stages", ENGINES | CONVERTERS | {"tasktok_edge.runtimes", "tasktok_edge.export"}),
        ("import tasktok_edge.quantize.distill", ENGINES | CONVERTERS | {"tasktok_edge.runtimes", "tasktok_edge.export"}),
        ("import tasktok_edge.export, tasktok_edge.export.graph", ENGINES | CONVERTERS | {"tasktok_edge.runtimes"}),
        ("import tasktok_edge.export.writer", {"tasktok_edge.runtimes", "tasktok_edge.apps", "onnxruntime"}),
    ],
)
def test_who_imports_what(statement: str, never: set[str]) -> None:
    assert not imported(statement) & never


@pytest.mark.parametrize("target", ["openvino", "onnx", "executorch", "coreml"])
def test_a_target_imports_its_own_converter_alone(target: str) -> None:
    own = {"openvino": {"openvino"}, "onnx": {"onnx"}, "executorch": {"executorch"}, "coreml": {"coremltools"}}
    seen = imported(f"import tasktok_edge.export.{target}")
    others = set().union(*(v for k, v in own.items() if k != target)) - {"onnx"}
    if target == "coreml":
        others -= {"executorch"}  # coremltools' own front end looks for it
    assert own[target] <= seen
    assert not seen & others
    assert "tasktok_edge.runtimes" not in seen


def test_every_folder_at_the_root_is_the_subpackage_of_its_name() -> None:
    code = "from tasktok_edge import export, runtimes, quantize as q; print(export.__file__, runtimes.__file__, q.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    for name, file in zip(("export", "runtimes", "quantize"), done.stdout.split(), strict=True):
        assert Path(file) == ROOT / name / "__init__.py"
