"""A use of one MIL operator beside PyTorch's answer: built by coremltools, saved, read back and evaluated."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tasktok_edge.runtimes.evaluator import Evaluator
from tasktok_edge.runtimes.mlprogram import Package

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """Parameters for the builder (arrays under `inputs` are fed, the others are constants) and PyTorch's answer."""

    inputs: Mapping[str, Array]
    parameters: Mapping[str, Any]
    wanted: Tensor | tuple[Tensor, ...]


def evaluated(name: str, case: Case, folder: Path) -> tuple[Array, ...]:
    """Build a case as a program of its own, save it, and evaluate what was saved."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import Function, Program, types

    fed: dict[str, Array] = {}
    for key, value in case.inputs.items():
        fed |= {f"{key}_{i}": one for i, one in enumerate(value)} if isinstance(value, list) else {key: value}
    fed = fed or {"nought": np.zeros(1, np.float32)}  # a program takes something
    places = {key: mb.placeholder(shape=value.shape, dtype=types.fp32) for key, value in fed.items()}
    program = Program()
    with Function(places, opset_version=ct.target.iOS18) as function:
        given: dict[str, Any] = {}
        for key, value in case.inputs.items():
            if isinstance(value, list):
                given[key] = [function.inputs[f"{key}_{i}"] for i in range(len(value))]
            else:  # codes cannot be fed: they come of a cast
                one = function.inputs[key]
                given[key] = mb.cast(x=one, dtype="int8") if value.dtype == np.int8 else one
        found = getattr(mb, name)(**given, **case.parameters)
        several = list(found) if isinstance(found, list | tuple) else [found]
        if not case.inputs:
            several = [mb.add(x=several[0], y=function.inputs["nought"])]
        codes = (types.int8, types.uint8)  # nor be an output
        function.set_outputs([mb.cast(x=one, dtype="fp32") if one.dtype in codes else one for one in several])
        program.add_function("main", function)
    model = ct.convert(
        program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32, pass_pipeline=ct.PassPipeline.EMPTY,
    )  # fmt: skip
    path = folder / "case.mlpackage"
    model.save(str(path))
    read = Package(path).function("main")
    assert any(operator.type == name for operator in read.operators), f"the converter left no {name}"
    return tuple(Evaluator(read)({key: value.astype(np.float32) for key, value in fed.items()}).values())


def error(found: tuple[Array, ...], wanted: Tensor | tuple[Tensor, ...]) -> float:
    """The largest difference, relative to the largest magnitude; infinite for another number of results or shape."""
    several = wanted if isinstance(wanted, tuple) else (wanted,)
    if len(found) != len(several) or any(a.shape != tuple(b.shape) for a, b in zip(found, several, strict=True)):
        return float("inf")
    worst = 0.0
    for a, b in zip(found, several, strict=True):
        want = b.double().numpy()
        worst = max(worst, float(np.abs(a.astype(np.float64) - want).max() / max(np.abs(want).max(), 1e-6)))
    return worst
