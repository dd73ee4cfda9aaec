"""Tiny bundles: one without an engine for the tests of the format, and a real one for every engine that runs here."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import (
    Bundle,
    FunctionSpec,
    Manifest,
    Parity,
    Precision,
    Preprocessing,
    Provenance,
    Target,
    TaskSpec,
    TensorSpec,
    write_golden,
    write_manifest,
)
from tasktok_edge.manifest import Framing, Resize
from tasktok_edge.runtimes import Device

SIZE = 32
SHAPES: dict[str, tuple[int, ...]] = {
    "restore_cls": (1, SIZE, SIZE, 3),
    "predict_cls": (1, 4),
    "restore_seg": (1, SIZE, SIZE, 3),
    "predict_seg": (1, 5, SIZE, SIZE),
    "restore_det": (1, SIZE, SIZE, 3),
    "predict_det_boxes": (1, 16, 4),
    "predict_det_scores": (1, 16, 3),
}
RESTORE_ONLY = ("restore/cls", "restore/seg", "restore/det")
Outputs = dict[str, NDArray[np.float32]]
LABELS = {"cls": 4, "seg": 5, "det": 3}
NOT_RUN = Parity(status="not_run", floor_db=100.0, reason="a test")
PASSED = Parity(status="passed", floor_db=100.0, n_frames=4, device="cpu", effective_precision="fp32")


def outputs_of(function: str) -> list[str]:
    name = function.replace("/", "_")
    return [n for n in SHAPES if n == name or n.startswith(f"{name}_")]


def frames(n: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 3), np.uint8)


def random_answers(n: int = 3) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    return {name: rng.random((n, *shape[1:]), np.float32) for name, shape in SHAPES.items()}


def finish(
    folder: Path,
    target: Target,
    file: str,
    *,
    answers: dict[str, NDArray[np.float32]] | None = None,
    parity: Parity = PASSED,
    precision: Precision = "fp32",
    tasks: tuple[str, ...] = ("cls", "seg", "det"),
    functions: tuple[str, ...] | None = None,
    resize: Resize = "area",
    framing: Mapping[str, Framing] | None = None,
) -> Manifest:
    """Write what every bundle has around the engine's files that are in `folder`; `functions` None is both of each task."""
    answers = answers or random_answers()
    write_golden(folder, frames(), answers)
    (folder / "LICENSE").write_text("Apache-2.0\n")
    (folder / "README.md").write_text("# tiny\n")
    names = functions or [f"{kind}/{task}" for task in tasks for kind in ("restore", "predict")]
    framings = dict(framing or {})
    return write_manifest(
        folder,
        name="tiny",
        target=target,
        precision=precision,
        level="exact",
        input=Preprocessing(size=SIZE, resize=resize),
        tasks={
            t: TaskSpec(
                kind=t,
                labels=[f"{t}{i}" for i in range(_n_labels(t, answers))],
                selected_tokens=[0, 2],
                n_tokens=4,
                framing=framings.get(t, "windows"),
            )
            for t in tasks
        },
        functions=[
            FunctionSpec(
                name=name,
                kind=name.split("/")[0],
                task=name.split("/")[1],
                file=file,
                entry=name.replace("/", "_"),
                outputs=[TensorSpec(name=o, shape=(1, *answers[o].shape[1:]), dtype="float32") for o in outputs_of(name)],
            )
            for name in names
        ],
        parity=parity,
        provenance=Provenance(created_utc="2026-01-01T00:00:00Z", package_version="0", preset="t", checkpoint_sha256=""),
    )


def _n_labels(task: str, answers: Mapping[str, NDArray[np.float32]]) -> int:
    name = "predict_det_scores" if task == "det" else f"predict_{task}"
    return answers[name].shape[1 if task == "seg" else -1] if name in answers else LABELS[task]


def hollow_bundle(
    folder: Path,
    *,
    target: Target = "onnx",
    file: str = "model.onnx",
    parity: Parity = PASSED,
    answers: dict[str, NDArray[np.float32]] | None = None,
    functions: tuple[str, ...] | None = None,
    resize: Resize = "area",
    framing: Mapping[str, Framing] | None = None,
) -> Path:
    """A well-formed bundle whose model is no model."""
    folder.mkdir(parents=True, exist_ok=True)
    inside = folder / file
    inside.parent.mkdir(parents=True, exist_ok=True)
    inside.write_bytes(bytes(range(256)) * 4)
    listed = "model.mlpackage" if target == "coreml" else file
    finish(folder, target, listed, parity=parity, answers=answers, functions=functions, resize=resize, framing=framing)
    return folder


class StandIn:
    """An engine that answers as `answer` does."""

    TARGET = EXTRA = "onnx"
    effective_precision, effective_device = "fp32", "here"

    def __init__(self, answer: Callable[[tuple[str, ...], NDArray[np.uint8]], Outputs]) -> None:
        self.run = answer

    def version(self) -> str:
        return "1"

    def devices(self) -> list[Device]:
        return [Device("onnx", "cpu", "here", "here")]

    def open(self, bundle: Bundle, device: Device, *, threads: int | None, tasks: Sequence[str]) -> "StandIn":
        return self

    def close(self) -> None: ...


def twisted(functions: tuple[str, ...], batch: NDArray[np.uint8]) -> Outputs:
    """Answers of the right shapes that depend on every pixel."""
    x = batch.astype(np.float32) / 255
    found = {name: np.zeros((1, *v.shape[1:]), np.float32) + x.mean() for name, v in random_answers().items()}
    found |= {name: (x**2 * 0.7 + x[..., ::-1] * 0.3).astype(np.float32) for name in found if name.startswith("restore")}
    return {name: found[name] for function in functions for name in outputs_of(function)}


def golden(functions: tuple[str, ...]) -> Outputs:
    runs = [twisted(functions, frame[None]) for frame in frames()]
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def _tiny():  # type: ignore[no-untyped-def]  # a torch module, and this file must import without torch
    import torch
    from torch import nn

    class Tiny(nn.Module):
        """One graph with all seven outputs; `keep` picks some by position."""

        def __init__(self, keep: tuple[int, ...] = tuple(range(7))) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.keep = keep
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.cls_r, self.seg_r, self.det_r = (nn.Conv2d(8, 3, 3, padding=1) for _ in range(3))
            self.cls_p = nn.Linear(3, LABELS["cls"])
            self.seg_p = nn.Conv2d(3, LABELS["seg"], 1)
            self.box, self.score = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(3, LABELS["det"], 8, stride=8)

        def forward(self, frame: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = frame.permute(0, 3, 1, 2).float() / 255.0
            h = torch.relu(self.stem(x))
            cls, seg, det = x + self.cls_r(h), x + self.seg_r(h), x + self.det_r(h)
            near = self.box(det).flatten(2).transpose(1, 2) * 4.0
            boxes = torch.cat([near[..., :2] + 4.0, near[..., :2] + 16.0 + near[..., 2:]], -1)
            found = (
                cls.permute(0, 2, 3, 1),
                self.cls_p(cls.mean((2, 3))),
                seg.permute(0, 2, 3, 1),
                self.seg_p(seg),
                det.permute(0, 2, 3, 1),
                boxes,
                torch.sigmoid(self.score(det)).flatten(2).transpose(1, 2),
            )
            return tuple(found[i] for i in self.keep)

    return Tiny


def reference(batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """What the tiny torch module answers, by output name, for (n, S, S, 3)."""
    import torch

    with torch.no_grad():
        outputs = _tiny()().eval()(torch.from_numpy(batch.copy()))
    return {name: value.contiguous().numpy() for name, value in zip(SHAPES, outputs, strict=True)}


def build_openvino(folder: Path) -> str:
    import sys

    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino as ov
    import torch

    example = torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8)
    model = ov.convert_model(_tiny()().eval(), example_input=example, input=[1, SIZE, SIZE, 3])
    model.inputs[0].get_tensor().set_names({"frame"})
    for output, name in zip(model.outputs, SHAPES, strict=True):
        output.get_tensor().set_names({name})
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return "model.xml"


def build_onnx(folder: Path) -> str:
    import torch

    torch.onnx.export(
        _tiny()().eval(),
        (torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8),),
        folder / "model.onnx",
        dynamo=True,
        opset_version=20,
        verbose=False,
        external_data=False,
        input_names=["frame"],
        output_names=list(SHAPES),
    )
    return "model.onnx"


def build_executorch(folder: Path) -> str:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    example = (torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8),)
    positions = {name: i for i, name in enumerate(SHAPES)}
    programs = {
        f"{kind}_{task}": torch.export.export(
            _tiny()(tuple(positions[o] for o in outputs_of(f"{kind}/{task}"))).eval(), example
        )
        for task in LABELS
        for kind in ("restore", "predict")
    }
    lowered = to_edge_transform_and_lower(programs, partitioner={name: [XnnpackPartitioner()] for name in programs})
    (folder / "model.pte").write_bytes(lowered.to_executorch().buffer)
    return "model.pte"


BUILDERS: dict[Target, Callable[[Path], str]] = {
    "openvino": build_openvino,
    "onnx": build_onnx,
    "executorch": build_executorch,
}


def build(folder: Path, target: Target) -> Path:
    """Build a real tiny bundle with six functions for an engine that runs here."""
    folder.mkdir(parents=True, exist_ok=True)
    finish(folder, target, BUILDERS[target](folder), answers=reference(frames()))
    return folder
