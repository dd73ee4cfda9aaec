"""Write one bundle: the engine's files, golden frames with the model's answers, manifest, licence, how to load it."""

import datetime
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasktok_edge import __version__
from tasktok_edge.bundle import (
    FunctionSpec,
    Manifest,
    Parity,
    Precision,
    Preprocessing,
    Provenance,
    TaskSpec,
    TensorSpec,
    write_golden,
    write_manifest,
)
from tasktok_edge.export import Target, exporter, package_versions
from tasktok_edge.export.graph import Function, Place, Say, model_functions, output_names
from tasktok_edge.macs import function_macs
from tasktok_edge.manifest import Scheme
from tasktok_edge.model.checkpoint import SHIPPED, Checkpoint, checkpoint_folder
from tasktok_edge.model.tasktok import TaskTok

GOLDEN_FRAMES = 2
THEIR_LICENCE = """The weights in this bundle were converted from a checkpoint that is not part of tasktok-edge (SHA-256 {}).
Their licence is the one under which that checkpoint was given to you; tasktok-edge grants none.
"""
# PSNR against PyTorch of restored frames, peak 1. fp32 differs by the order of sums alone, about 1e-6; fp16 keeps 11 bits of
# each weight, and where the engine computes so, of each activation.
# Of int8 every layer gives the same codes, but for one in 100 000 that lies between two of them; behind it codes differ as they
# do between int8 and fp32. With all layers in int8 PyTorch, disturbed by its last bit, is 42 dB from itself, and so are the
# engines (45 dB with the shipped model, up to 150 dB for a frame without such a value).
FLOOR_DB: dict[str, float] = {"fp32": 100.0, "fp16": 60.0, "int8": 40.0}
# Through 24 layers of a decoder 1024 wide fp16 gathers more: 56.5 dB seen where an engine also computes in it. Int8 as well:
# with random weights, whose frames spread over 8 instead of 1, PyTorch is 31.9 dB from itself, its sums disturbed by 1e-6, and
# so are the engines from PyTorch; int8 itself is 31.1 dB from fp32.
DEEP_LAYERS = 12
DEEP_FLOOR_DB: dict[str, float] = {"fp32": 100.0, "fp16": 55.0, "int8": 30.0}
# Of raw answers, peak: their largest magnitude. Logits are not pictures, and fp16 throughout moves them by 1/300 of that (51 dB
# seen), int8 by 1/20 (26 dB); what counts is the answer, which must be the same on 99.5 % of frames.
ANSWER_FLOOR_DB: dict[str, float] = {"fp32": 100.0, "fp16": 45.0, "int8": 20.0}


def write_bundle(
    folder: Path,
    checkpoint: Checkpoint,
    target: Target,
    *,
    tasks: Sequence[str],
    budgets: Sequence[int] = (),
    precision: Precision,
    frames: NDArray[np.uint8],
    answers: dict[str, NDArray[np.float32]],
    options: Mapping[str, str] | None = None,
    say: Say = lambda _: None,
) -> Manifest:
    """Build `target` into `folder`, unverified; `budgets` are numbers of tokens to have functions for beside each task's own.

    `frames` (n, S, S, 3) uint8 with `answers` by output name become golden. `options` are the target's own.
    """
    versions = package_versions(target)
    model = checkpoint.model
    functions = model_functions(model.config, tasks, budgets)
    macs = {f.choice: function_macs(model, f.task, tokens=f.tokens) for f in functions if f.kind == "restore"}
    places = exporter(target).build(model, functions, folder, precision=precision, say=say, **(options or {}))
    # Half of each number is enough where 45 dB are asked.
    half = precision == "int8"
    write_golden(folder, frames, {n: a.astype(np.float16) for n, a in answers.items()} if half else answers)
    (folder / "LICENSE").write_text(licence() if _is_shipped(checkpoint) else THEIR_LICENCE.format(checkpoint.sha256))
    name = f"{model.config.preset}-{target}-{precision}"
    (folder / "README.md").write_text(_readme(name, model, functions))
    return write_manifest(
        folder,
        name=name,
        target=target,
        precision=precision,
        level=model.config.level,
        input=Preprocessing(size=model.config.image_size, resize=model.config.resize),
        tasks={task: _task_spec(model, task) for task in tasks},
        quantization=_schemes(model, tasks),
        functions=[_function_spec(model, f, places[f], macs[f.choice], answers) for f in functions],
        parity=Parity(
            status="not_run",
            floor_db=floor_db(model, precision),
            answer_floor_db=ANSWER_FLOOR_DB[precision],
            reason="not measured yet",
        ),
        provenance=Provenance(
            created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            package_version=__version__,
            preset=model.config.preset,
            checkpoint_sha256=checkpoint.sha256,
            versions=versions,
        ),
    )


def floor_db(model: TaskTok, precision: Precision) -> float:
    """What a restored frame must reach against PyTorch, PSNR in dB."""
    deep = model.config.tokenizer.decoder.layers > DEEP_LAYERS
    return (DEEP_FLOOR_DB if deep else FLOOR_DB)[precision]


def _is_shipped(checkpoint: Checkpoint) -> bool:
    if any(task.net == "own" for task in checkpoint.model.config.tasks.values()):
        return False
    return any(checkpoint.path.resolve() == checkpoint_folder(name).resolve() for name in SHIPPED)


def licence() -> str:
    """The licence that goes with every bundle of the shipped model."""
    return (files("tasktok_edge") / "assets" / "LICENSE").read_text()


def _schemes(model: TaskTok, tasks: Sequence[str]) -> dict[str, Scheme]:
    """The layers of the bundle that compute in int8."""
    absent = tuple(f"task_nets.{task}." for task in model.config.tasks if task not in tasks)
    return {name: "w8a8" for name in model.config.int8 if not name.startswith(absent or ("-",))}


def _task_spec(model: TaskTok, task: str) -> TaskSpec:
    config = model.config.tasks[task]
    return TaskSpec(
        kind=config.kind,
        framing=config.framing,
        labels=config.labels,
        selected_tokens=tuple(model.switch.selected(task)),
        n_tokens=model.config.tokenizer.tokens,
        heat_map=config.heat_map(model.config.image_size),
    )


def _function_spec(
    model: TaskTok, function: Function, place: Place, macs: tuple[int, int], answers: dict[str, NDArray[np.float32]]
) -> FunctionSpec:
    names = output_names(function, model.config.tasks[function.task].kind)
    return FunctionSpec(
        name=function.name,
        kind=function.kind,
        task=function.task,
        tokens=function.tokens,
        file=place.file,
        entry=place.entry,
        macs=macs[function.kind == "predict"],
        outputs=tuple(TensorSpec(name=n, shape=(1, *answers[n].shape[1:]), dtype="float32") for n in names),
    )


def _readme(name: str, model: TaskTok, functions: Sequence[Function]) -> str:
    size, task = model.config.image_size, functions[0].task
    listed = "\n".join(f"- `{f.name}`" for f in functions)
    return f"""# {name}

A TaskTok bundle: {len(functions)} functions that take one {size}x{size} RGB frame, uint8.

{listed}

    from tasktok_edge.runtimes import load
    session = load("{name}")
    restored = session.restore(frame, task="{task}")    # frame: (height, width, 3) uint8 RGB, any size
    answer = session.predict(frame, task="{task}")

manifest.json lists every file with its SHA-256, the functions, their outputs, and how far the artifact was found to equal the
PyTorch model. golden.npz holds frames and the model's outputs for them, so that any device can be checked.
"""
