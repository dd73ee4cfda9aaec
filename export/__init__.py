"""A model in, a bundle out. One module a target; a new one is one file and one line here."""

from importlib import import_module, metadata
from typing import Any, Literal, Protocol, cast, get_args

from tasktok_edge.errors import PackageError, unknown_word

Target = Literal["executorch", "coreml", "openvino", "onnx"]

TARGETS: dict[Target, str] = {
    "executorch": "tasktok_edge.export.executorch",
    "coreml": "tasktok_edge.export.coreml",
    "openvino": "tasktok_edge.export.openvino",
    "onnx": "tasktok_edge.export.onnx",
}
PACKAGES: dict[Target, tuple[str, ...]] = {
    "executorch": ("torch", "executorch", "torchao"),
    "coreml": ("torch", "coremltools"),
    "openvino": ("torch", "openvino"),
    "onnx": ("torch", "onnx", "onnxscript"),
}


class Exporter(Protocol):
    """What every target's module has: `build`, which takes the target's own options and tells where each function lies."""

    def build(
        self, model: object, functions: object, folder: object, *, precision: str, say: object, **options: str
    ) -> dict[Any, Any]: ...


def targets(word: str) -> list[Target]:
    """Turn a --target into the list it means; UsageError for an unknown word."""
    known = get_args(Target)
    if word == "all":
        return list(TARGETS)
    if word not in known:
        raise unknown_word("target", word, [*known, "all"])
    return [cast(Target, word)]


def package_versions(target: Target) -> dict[str, str]:
    """Versions of what a target's converter needs; PackageError names what is missing and how to get it."""
    found, missing = {}, []
    for package in PACKAGES[target]:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        raise PackageError(
            f'exporting to {target} needs {", ".join(missing)}, not installed: pip install "tasktok-edge[export]"'
        )
    return found


def exporter(target: Target) -> Exporter:
    """Import the module that builds `target`."""
    return cast(Exporter, import_module(TARGETS[target]))
