"""Core ML: one .mlpackage of type ML program, a function a function, weights shared; the input is an image.

Before iOS 18 a package had one function: for older systems each function has a package of its own, with its own weights.
Packages are built on any system; only macOS runs them. What is checked here is their structure.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import coremltools as ct
import torch

from tasktok_edge import __version__
from tasktok_edge.errors import UsageError, VerdictError, unknown_word
from tasktok_edge.export import swift
from tasktok_edge.export.graph import Deployed, Function, Place, Say, output_names
from tasktok_edge.export.int8 import in_codes
from tasktok_edge.model.tasktok import TaskTok

FILE = "model.mlpackage"
# The oldest system that an app is for (macOS 13, 14, 15 and 26 are of the same years), in their order.
DEPLOYMENT_TARGETS = ("iOS16", "iOS17", "iOS18", "iOS26")
DEFAULT_TARGET = "iOS18"  # the first with several functions in one package
INT8_TARGET = "iOS17"  # the first with quantize and dequantize
ALONE = "main"  # what the one function of an older package is called


def build(
    model: TaskTok,
    functions: Sequence[Function],
    folder: Path,
    *,
    precision: str,
    say: Say,
    deployment_target: str = DEFAULT_TARGET,
) -> dict[Function, Place]:
    """Convert every function and join them in `model.mlpackage`, or for iOS 16 and 17 leave a package each.

    `int8` has weights and activations of int8 layers as codes, with operators of iOS 17, and fp16 between the layers.
    Raises UsageError for a target that is not among DEPLOYMENT_TARGETS, or too old for `int8`.
    """
    check_target(deployment_target, precision)
    several = _newer_or(DEFAULT_TARGET, deployment_target)
    size = model.config.image_size
    compute = ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16
    joined, places = ct.utils.MultiFunctionDescriptor(), dict[Function, Place]()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # beside the result: /tmp may be small, or memory
        for i, (function, exported) in enumerate(graphs(model, functions, precision=precision), 1):
            say(f"converting {function.name}, {i} of {len(functions)}")
            names = output_names(function, model.config.tasks[function.task].kind)
            package = ct.convert(
                exported,
                convert_to="mlprogram",
                minimum_deployment_target=ct.target[deployment_target],
                compute_precision=compute,
                inputs=[ct.ImageType("frame", (1, 3, size, size), scale=1 / 255, color_layout=ct.colorlayout.RGB)],
                outputs=[ct.TensorType(name) for name in names],
            )
            path = str(Path(scratch) / f"{function.entry}.mlpackage")
            package.save(path)
            places[function] = Place(FILE, function.entry) if several else Place(Path(path).name, ALONE)
            if several:
                joined.add_function(path, src_function_name=ALONE, target_function_name=function.entry)
            else:
                shutil.move(path, folder)
        if several:
            say("joining the functions")
            joined.default_function_name = functions[0].entry
            ct.utils.save_multifunction(joined, str(folder / FILE))
    faults = []
    for file in dict.fromkeys(place.file for place in places.values()):
        inside = {f: place.entry for f, place in places.items() if place.file == file}
        _describe(folder / file, model, list(inside), precision)
        faults += _structure_faults(folder / file, inside, kinds={t: c.kind for t, c in model.config.tasks.items()}, size=size)
    if faults:
        raise VerdictError(f"the saved package is not what was asked for: {'; '.join(faults)}")
    name = f"{model.config.preset}, {precision}"
    text = swift.swift(name, model.config, functions, target=deployment_target, several=several)
    (folder / swift.FILE).write_text(text, encoding="utf-8")
    return places


def check_target(deployment_target: str, precision: str) -> None:
    """Refuse a deployment target that is unknown, or that has no operators for `precision`."""
    if deployment_target not in DEPLOYMENT_TARGETS:
        raise unknown_word("deployment target", deployment_target, DEPLOYMENT_TARGETS)
    if precision == "int8" and not _newer_or(INT8_TARGET, deployment_target):
        raise UsageError(
            f"int8 needs {INT8_TARGET} or newer, not {deployment_target}: before it Core ML had no int8 activations"
        )


def _newer_or(wanted: str, target: str) -> bool:
    return DEPLOYMENT_TARGETS.index(target) >= DEPLOYMENT_TARGETS.index(wanted)


def _describe(package: Path, model: TaskTok, functions: Sequence[Function], precision: str) -> None:
    """Put into the package what Xcode and Finder show of it, and what an app may read: labels and token selections."""
    spec = ct.utils.load_spec(str(package))
    about = spec.description.metadata
    about.shortDescription = f"TaskTok, restoring frames for a task ({model.config.preset}, {precision}, {model.config.level})"
    about.author = f"tasktok-edge {__version__}"
    about.license = "see LICENSE beside the package"
    for function in functions:
        task, chosen = function.task, model.switch.selected(function.task, function.tokens)
        about.userDefined[f"tokens.{function.choice}"] = ",".join(map(str, chosen))
        about.userDefined[f"labels.{task}"] = json.dumps(model.config.tasks[task].labels)
    (package / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(spec.SerializeToString())


def graphs(
    model: TaskTok, functions: Sequence[Function], *, precision: str
) -> Iterator[tuple[Function, torch.export.ExportedProgram]]:
    """Give each function's graph as the converter gets it: an image (1, 3, S, S) in [0, 1] in, the outputs out."""
    size = model.config.image_size
    whole = Deployed(model, functions, image_input=True).eval()
    whole = in_codes(whole, "int8") if precision == "int8" else whole
    for function in functions:
        yield function, torch.export.export(whole.only(function), (torch.zeros(1, 3, size, size),)).run_decompositions({})


def _structure_faults(package: Path, functions: Mapping[Function, str], *, kinds: dict[str, str], size: int) -> list[str]:
    """Read a saved package back and list what is not as it should be: functions by their entries, inputs, outputs."""
    spec = ct.models.MLModel(str(package), skip_model_load=True).get_spec()
    found: dict[str, Any] = {f.name: f for f in spec.description.functions} or {ALONE: spec.description}
    faults = [f"function {entry} is missing" for entry in functions.values() if entry not in found]
    for function, entry in functions.items():
        if entry not in found:
            continue
        described = found[entry]
        image = described.input[0].type.imageType
        if [i.name for i in described.input] != ["frame"] or (image.width, image.height) != (size, size):
            faults.append(f"{function.entry} does not take one {size}x{size} image named 'frame'")
        names = output_names(function, kinds[function.task])
        if [o.name for o in described.output] != names:
            faults.append(f"{function.entry} gives {[o.name for o in described.output]}, expected {names}")
    return faults
