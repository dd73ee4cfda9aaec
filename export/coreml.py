"""Core ML: one .mlpackage of type ML program, a function a function, weights shared; the input is an image.

The package is built on any system; only macOS runs it. What is checked here is its structure.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import coremltools as ct
import torch

from tasktok_edge import __version__
from tasktok_edge.errors import VerdictError
from tasktok_edge.export import swift
from tasktok_edge.export.graph import Deployed, Function, Say, output_names
from tasktok_edge.export.int8 import in_codes
from tasktok_edge.model.tasktok import TaskTok

FILE = "model.mlpackage"
TARGET = ct.target.iOS18  # several functions in one package need it


def build(model: TaskTok, functions: Sequence[Function], folder: Path, *, precision: str, say: Say) -> None:
    """Convert every function and join them in `model.mlpackage`.

    `int8` has weights and activations of int8 layers as codes, with operators of iOS 17 and 18, and fp16 between the layers.
    """
    size = model.config.image_size
    compute = ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16
    joined = ct.utils.MultiFunctionDescriptor()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # beside the result: /tmp may be small, or memory
        for i, (function, exported) in enumerate(graphs(model, functions, precision=precision), 1):
            say(f"converting {function.name}, {i} of {len(functions)}")
            names = output_names(function, model.config.tasks[function.task].kind)
            package = ct.convert(
                exported,
                convert_to="mlprogram",
                minimum_deployment_target=TARGET,
                compute_precision=compute,
                inputs=[ct.ImageType("frame", (1, 3, size, size), scale=1 / 255, color_layout=ct.colorlayout.RGB)],
                outputs=[ct.TensorType(name) for name in names],
            )
            path = str(Path(scratch) / f"{function.entry}.mlpackage")
            package.save(path)
            joined.add_function(path, src_function_name="main", target_function_name=function.entry)
        say("joining the functions")
        joined.default_function_name = functions[0].entry
        ct.utils.save_multifunction(joined, str(folder / FILE))
    _describe(folder / FILE, model, functions, precision)
    (folder / swift.FILE).write_text(
        swift.swift(f"{model.config.preset}, {precision}", model.config, functions), encoding="utf-8"
    )
    faults = _structure_faults(folder, functions, kinds={t: c.kind for t, c in model.config.tasks.items()}, size=size)
    if faults:
        raise VerdictError(f"the saved package is not what was asked for: {'; '.join(faults)}")


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


def _structure_faults(folder: Path, functions: Sequence[Function], *, kinds: dict[str, str], size: int) -> list[str]:
    """Read the saved package back and list what is not as it should be: functions, inputs, outputs."""
    spec = ct.models.MLModel(str(folder / FILE), skip_model_load=True).get_spec()
    found = {f.name: f for f in spec.description.functions}
    faults = [f"function {f.entry} is missing" for f in functions if f.entry not in found]
    for function in functions:
        if function.entry not in found:
            continue
        described = found[function.entry]
        image = described.input[0].type.imageType
        if [i.name for i in described.input] != ["frame"] or (image.width, image.height) != (size, size):
            faults.append(f"{function.entry} does not take one {size}x{size} image named 'frame'")
        names = output_names(function, kinds[function.task])
        if [o.name for o in described.output] != names:
            faults.append(f"{function.entry} gives {[o.name for o in described.output]}, expected {names}")
    return faults
