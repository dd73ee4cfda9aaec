"""On what figures were measured."""

import os
import platform
from importlib import metadata
from pathlib import Path


def machine(threads: int | None) -> str:
    """The machine, its cores, the threads each candidate was given (None: as engines choose), and the versions, in one line."""
    told = ", ".join(f"{package} {version}" for package, version in versions().items())
    given = "" if threads is None else f", {threads} thread{'s' * (threads > 1)} each"
    governed = f", governor {governor()}" if governor() else ""
    return f"{processor()}, {cores()}{given}{governed}; {told}"


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def cores() -> str:
    """How many cores there are, and how many of them this process may use."""
    there = os.cpu_count() or 1
    given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    return f"{there} cores" if given == there else f"{given} of {there} cores"


def versions() -> dict[str, str]:
    """Of torch and the engines that are installed."""
    found = {}
    for package in ("torch", "openvino", "onnxruntime", "executorch"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def governor() -> str | None:
    """How the system sets the clock, such as performance or powersave; None where it does not say."""
    file = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return file.read_text().strip() if file.is_file() else None
