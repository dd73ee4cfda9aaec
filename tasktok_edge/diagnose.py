"""Where does a Core ML program part from PyTorch? Its operators, one by one, beside the graph that it was converted from.

The converter names what an operator makes after the node of the exported graph that it stands for. Nodes that it folded into
others, and operators that it put in itself, have no counterpart and are passed over. With quantized values it also moves
scales from one operator to the next under the old name: what looks wrong while all that is computed from it is right, is right.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasktok_edge.bundle import read_bundle
from tasktok_edge.errors import UsageError, unknown_word
from tasktok_edge.export.coreml import graphs
from tasktok_edge.export.graph import Function
from tasktok_edge.model.checkpoint import Checkpoint
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.runtimes.evaluator import Evaluator
from tasktok_edge.runtimes.mlprogram import Operator, Package
from tasktok_edge.runtimes.selection import psnr_db

# What the converter appends where it casts.
CASTS = re.compile(r"(_to_fp16|_cast_fp16|_cast_fp32|_cast_uint16)+$")
# PSNR of an intermediate, peak: its largest magnitude. Rounding alone leaves the shipped models' at 133, 67 and 37 dB or more.
TOLERANCE_DB: dict[str, float] = {"fp32": 90.0, "fp16": 45.0, "int8": 25.0}


@dataclass(frozen=True)
class Step:
    """An operator, the first value it makes, and how that compares; `psnr_db` None where PyTorch has no such value.

    It `departs` where it overflows, makes NaN, or is beyond the tolerance and something that is computed from it as well.
    """

    index: int
    operator: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    largest: float  # magnitude; infinite, or NaN, as the values are
    psnr_db: float | None
    departs: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """All operators of one function in their order, and the first that is wrong, if one is."""

    function: str
    precision: str
    steps: tuple[Step, ...]
    notes: tuple[str, ...]

    @property
    def first(self) -> Step | None:
        """The first operator that departs from PyTorch."""
        return next((s for s in self.steps if s.departs), None)

    @property
    def compared(self) -> tuple[Step, ...]:
        return tuple(s for s in self.steps if s.psnr_db is not None)


def diagnose(bundle: Path, checkpoint: Checkpoint, model: TaskTok, names: Sequence[str] = ()) -> list[Diagnosis]:
    """Compare the functions `names`, or all, of a Core ML bundle with the model it was made of, on its first golden frame.

    `model` is the checkpoint's as it was exported: quantized for an int8 bundle. Raises UsageError for a bundle of another
    target, DeviceError where the program cannot be evaluated.
    """
    with read_bundle(bundle) as read:
        manifest = read.manifest
        if manifest.target != "coreml":
            raise UsageError(f"{bundle} is for {manifest.target}: diagnose looks into Core ML's programs")
        known = {f.name: f for f in manifest.functions}
        for name in names:
            if name not in known:
                raise unknown_word("function", name, known)
        notes = []
        if manifest.provenance.checkpoint_sha256 != checkpoint.sha256:
            notes.append("the bundle was made from another checkpoint than this one")
        chosen = [Function(known[n].kind, known[n].task, known[n].tokens) for n in (names or known)]
        frame = read.golden()["frames"][:1]
        found = []
        for function, exported in graphs(model, chosen, precision=manifest.precision):
            package, entry = Package(read.path / known[function.name].file), known[function.name].entry
            evaluator = Evaluator(package.function(entry))
            wanted = _values(exported, torch.from_numpy(frame).permute(0, 3, 1, 2).float() / 255)
            wanted |= dict(zip(evaluator.function.outputs, wanted[""], strict=False))
            seen: list[tuple[Operator, Step]] = []

            def watch(operator: Operator, results: tuple[NDArray[Any], ...]) -> None:
                seen.append((operator, _step(len(seen), operator, results[0], wanted)))  # noqa: B023  # called in this round

            evaluator({"frame": package.image(entry, frame)}, watch)
            steps = _judged(seen, TOLERANCE_DB[manifest.precision])
            found.append(Diagnosis(function.name, manifest.precision, steps, tuple(notes)))
    return found


def _values(exported: torch.export.ExportedProgram, image: torch.Tensor) -> dict[str, Any]:
    """What each node of the graph makes, by its name; under "" the outputs in their order."""
    values: dict[str, Any] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if n.op == "output":
                values[""] = [one.numpy() for one in result]
            elif n.op == "call_function" and isinstance(result, torch.Tensor):
                values[n.name] = result.numpy()
            return result

    with torch.inference_mode():
        Recorder(exported.module()).run(image)
    return values


def _step(index: int, operator: Operator, result: NDArray[Any], wanted: dict[str, Any]) -> Step:
    typed = operator.results[0]
    name = typed.name if typed.name in wanted else CASTS.sub("", typed.name)
    want, figure = wanted.get(name), None
    if want is not None and want.shape == result.shape and result.dtype.kind == want.dtype.kind == "f":
        peak = float(np.abs(want).max())
        figure = psnr_db(result.astype(np.float32), want, peak or 1.0)
    largest = float(np.abs(result.astype(np.float64)).max()) if result.size else 0.0
    return Step(index, operator.type, typed.name, typed.dtype.lower(), typed.shape, largest, figure)


def _judged(seen: Sequence[tuple[Operator, Step]], least_db: float) -> tuple[Step, ...]:
    """Say which steps depart: from the last to the first, as what is computed from a value tells whether it was right."""
    wrong_after: dict[str, list[bool]] = {}  # value -> for all that reads it, whether that is wrong
    judged = []
    for operator, step in reversed(seen):
        after = [one for typed in operator.results for one in wrong_after.get(typed.name, ())]
        wrong = any(after) if step.psnr_db is None else step.psnr_db < least_db and (not after or any(after))
        finite = bool(np.isfinite(step.largest))
        judged.append(replace(step, departs=not finite or (wrong and step.psnr_db is not None)))
        for name in operator.reads():
            wrong_after.setdefault(name, []).append(wrong or not finite)
    return tuple(reversed(judged))


if __name__ == "__main__":  # python -m tasktok_edge.diagnose
    from tasktok_edge.cli import verb

    verb("diagnose")()
