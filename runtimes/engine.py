"""What the shim asks of an engine. Each engine is a module with these functions; there is no base class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Bundle
from tasktok_edge.errors import PackageError

DeviceKind = Literal["cpu", "gpu", "npu"]


@dataclass(frozen=True)
class Device:
    """A device as one engine sees it. `native` is the engine's own name of it, `reason` why it cannot be used."""

    engine: str
    kind: DeviceKind
    native: str
    full_name: str
    usable: bool = True
    reason: str | None = None


class Running(Protocol):
    """A bundle opened on one device."""

    @property
    def effective_precision(self) -> str:
        """What it computes in, as the engine reports it; not what was asked for."""

    @property
    def effective_device(self) -> str:
        """Where it runs, as the engine reports it."""

    def run(self, functions: tuple[str, ...], batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Run functions, such as ("restore/seg",), on a contiguous (1, S, S, 3); give new arrays by output name.

        Not for two threads at a time. Raises DeviceError where the engine fails.
        """

    def native(self, function: str, batch: NDArray[np.uint8]) -> Callable[[], object]:
        """The engine's own bare call for one function and batch: what bench holds the shim against."""

    def close(self) -> None: ...


class Engine(Protocol):
    """An engine's module."""

    TARGET: str
    EXTRA: str

    def version(self) -> str: ...

    def devices(self) -> list[Device]: ...

    def open(self, bundle: Bundle, device: Device, *, threads: int | None, tasks: Sequence[str]) -> Running: ...


def missing(package: str, extra: str, error: ImportError) -> PackageError:
    """Make the error for an engine that cannot be imported."""
    return PackageError(f'{package} cannot be imported ({error}): pip install "tasktok-edge[{extra}]"')


def first_line(error: BaseException) -> str:
    """Find the line that says something in an engine's multi-line message."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (said or lines or [""])[0] or type(error).__name__
