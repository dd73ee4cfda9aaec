"""What the shim asks of an engine. Each engine is a module with these functions; there is no base class."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.bundle import Bundle
from tasktok_edge.errors import PackageError

DeviceKind = Literal["cpu", "gpu", "npu"]


@dataclass(frozen=True)
class Device:
    """A device as one engine sees it. `native` is the engine's own name of it, `reason` why it cannot be used.

    `by_name_alone`: "auto" and "cpu" never mean it.
    """

    engine: str
    kind: DeviceKind
    native: str
    full_name: str
    usable: bool = True
    reason: str | None = None
    by_name_alone: bool = False


def not_installed(target: str, error: PackageError) -> Device:
    """Stand for the devices of an engine that cannot be imported."""
    return Device(target, "cpu", "-", "not installed", usable=False, reason=str(error))


Verdict = Literal["chosen", "proven", "refused", "unusable", "skipped"]


@dataclass(frozen=True)
class Trial:
    """One device and how it did with a bundle. `psnr_db` by function, `latency_ms` of one call of `functions`."""

    device: Device
    verdict: Verdict
    reason: str | None = None
    psnr_db: Mapping[str, float] = field(default_factory=dict)
    functions: tuple[str, ...] = ()
    latency_ms: float | None = None
    compile_s: float | None = None
    effective_precision: str | None = None
    effective_device: str | None = None
    bundle: str = ""  # its name


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

    def placement(self, functions: tuple[str, ...]) -> dict[str, int]:
        """Count the operators of functions that were run by where they run, by the engine's own records."""

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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what a library tells of itself when it is imported (untested versions, absent optional parts) out of the log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """Find the line that says something in an engine's multi-line message."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (said or lines or [""])[0] or type(error).__name__
