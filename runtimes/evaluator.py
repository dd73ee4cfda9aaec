"""A reference for Core ML: an ML program evaluated operator by operator in NumPy, on any machine.

It shows what the program says: its operators, weights, layout, and the rounding of every intermediate to its declared type. It
does not show how Apple's hardware gathers sums or approximates functions, nor how fast it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.errors import DeviceError
from tasktok_edge.runtimes import mil_images  # noqa: F401  # enters its operators
from tasktok_edge.runtimes.mil_operators import OPERATORS, UnknownUseError
from tasktok_edge.runtimes.mlprogram import DTYPES, Constant, Function, Operator, Reference, Typed

Array = NDArray[Any]
Watch = Callable[[Operator, tuple[Array, ...]], None]
FLOATS = ("FLOAT16", "FLOAT32")
# What comes of parameters that no converter writes, but a damaged or hostile program may hold.
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError, ValueError, UnknownUseError)


class Evaluator:
    """One function, ready to run. What depends on constants alone, such as compressed weights, is computed here, once."""

    def __init__(self, function: Function) -> None:
        unknown = sorted({o.type for o in function.operators} - OPERATORS.keys())
        if unknown:
            raise DeviceError(f"function {function.name} uses {', '.join(unknown)}, which this evaluator does not know")
        self.function = function
        self._fixed: dict[str, Array] = {}
        self._operators: list[tuple[Operator, dict[str, Any]]] = []
        for operator in function.operators:
            given = {name: self._ready(several) for name, several in operator.arguments.items()}
            if any(True for _ in operator.reads()):
                self._operators.append((operator, given))
            else:
                self._fixed |= _named(operator, _apply(operator, given, self._fixed))
        last = {name: i for i, (operator, _) in enumerate(self._operators) for name in operator.reads()}
        self._over: dict[int, list[str]] = {}
        for name, i in last.items():
            if name not in function.outputs and name not in self._fixed:
                self._over.setdefault(i, []).append(name)

    def _ready(self, several: list[Constant | Reference]) -> list[Any]:
        """Constants as the operators take them: floats in 32 bits."""
        ready: list[Any] = []
        for one in several:
            known = self._fixed.get(one.name, one) if isinstance(one, Reference) else one
            ready.append(_wide(known) if isinstance(known, np.ndarray) else known)
        return ready

    def __call__(self, inputs: Mapping[str, Array], watch: Watch | None = None) -> dict[str, Array]:
        """Give the outputs by name, each in its declared type; `watch` is shown every operator and what it made."""
        values = dict(self._fixed)
        for typed in self.function.inputs:
            values[typed.name] = _rounded("the input", typed, np.asarray(inputs[typed.name]))
        for i, (operator, given) in enumerate(self._operators):
            results = _apply(operator, given, values)
            values |= _named(operator, results)
            if watch is not None:
                watch(operator, results)
            for name in self._over.get(i, ()):
                del values[name]
        return {name: values[name] for name in self.function.outputs}


def _apply(operator: Operator, given: Mapping[str, list[Any]], values: Mapping[str, Array]) -> tuple[Array, ...]:
    arguments = {}
    for name, several in given.items():
        ready = [_wide(values[one.name]) if isinstance(one, Reference) else one for one in several]
        arguments[name] = ready if name == "values" else ready[0]
    try:
        with np.errstate(all="ignore"):  # overflow shows in the result
            found = OPERATORS[operator.type](**arguments)
    except FAULTS as error:
        raise DeviceError(f"{operator.type} ({operator.results[0].name}): {error}") from None
    results = found if isinstance(found, tuple) else (found,)
    if len(results) != len(operator.results):
        raise DeviceError(f"{operator.type} makes {len(results)} values, {len(operator.results)} are declared")
    return tuple(_rounded(operator.type, typed, value) for typed, value in zip(operator.results, results, strict=True))


def _named(operator: Operator, results: tuple[Array, ...]) -> dict[str, Array]:
    return {typed.name: value for typed, value in zip(operator.results, results, strict=True)}


def _wide(value: Array) -> Array:
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _rounded(what: str, typed: Typed, value: Array) -> Array:
    """Bring a result to its declared type, whose shape and kind it must have."""
    dtype = np.dtype(DTYPES[typed.dtype])
    both_float = np.issubdtype(value.dtype, np.floating) and typed.dtype in FLOATS
    if value.shape != typed.shape or not (both_float or value.dtype == dtype):
        raise DeviceError(f"{what} gives {typed.name} as {value.dtype} {value.shape}, it is declared {dtype} {typed.shape}")
    with np.errstate(over="ignore"):
        return np.asarray(value.astype(dtype, copy=False))
