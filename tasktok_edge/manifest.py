"""manifest.json of a bundle as frozen models: what is inside, what it was measured to be, and where it comes from."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasktok_edge.errors import BundleError

# 1 had segmentation logits with the channels last, 2 all values of the golden answers, 3 no budgets, 4 no multiply-adds.
SCHEMA_VERSION = 5
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"  # of a signed bundle; signing.py
MAX_MANIFEST_BYTES = 16 << 20  # a thousand times a large one
GOLDEN = "golden.npz"
GOLDEN_WHOLE = 4096  # values of a frame up to which golden.npz keeps an output whole
GOLDEN_STEP = 17  # prime, so that every row, column and channel of larger ones is met
MAX_FAULTS_SHOWN = 8

Target = Literal["executorch", "coreml", "openvino", "onnx"]
Precision = Literal["fp32", "fp16", "int8"]
Level = Literal["exact", "context", "selected"]
Kind = Literal["restore", "predict"]
# int8 weights, a scale for each output channel; w8a8: activations in int8 as well, a static scale for each tensor.
Scheme = Literal["w8a8", "w8"]
Resize = Literal["area", "bicubic"]  # frames.py says what each does
Framing = Literal["windows", "pad"]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Part):
    name: str
    shape: tuple[Count, ...]
    dtype: str


class FunctionSpec(_Part):
    """One thing the engine runs; `entry` is the engine's own name of it.

    `tokens` is its budget, where that is not the task's own selection: the tokens that matter most, and no more, are replaced.
    `macs` are its multiply-adds for one frame; 0 where a network's cost is not known.
    """

    name: str
    kind: Kind
    task: Word
    tokens: Count | None = None
    file: str
    entry: str
    outputs: tuple[TensorSpec, ...]
    macs: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _names(self) -> Self:
        name, wanted = function_name(self.kind, self.task, self.tokens), [output_name(self.kind, self.task, self.tokens)]
        if len(self.outputs) == 2 and self.kind == "predict":
            wanted = [f"{wanted[0]}_boxes", f"{wanted[0]}_scores"]
        if self.name != name or [o.name for o in self.outputs] != wanted:
            raise ValueError(f"function {self.name!r} must be {name} with outputs {', '.join(wanted)}")
        return self


def function_name(kind: Kind, task: str, tokens: int | None = None) -> str:
    """What a function is called everywhere: "restore/seg", with a budget of tokens "restore/seg@8"."""
    return f"{kind}/{task}" + ("" if tokens is None else f"@{tokens}")


def output_name(kind: Kind, task: str, tokens: int | None = None) -> str:
    """The same as an identifier, which alone is safe in every format: "restore_seg", "restore_seg_t8"."""
    return f"{kind}_{task}" + ("" if tokens is None else f"_t{tokens}")


class TaskSpec(_Part):
    """A task and its labels; `framing` is how a frame that is not square is brought to the function's square.

    `heat_map` is the side of the grid whose cells, row by row, give one box each; 0 where boxes come from elsewhere.
    """

    kind: Literal["cls", "seg", "det"]
    labels: tuple[str, ...] = Field(min_length=1, max_length=65536)
    selected_tokens: tuple[Annotated[int, Field(ge=0)], ...]
    n_tokens: Count
    framing: Framing = "windows"
    heat_map: Annotated[int, Field(ge=0)] = 0


class Preprocessing(_Part):
    """The function's input, named `frame`: (1, size, size, 3) uint8 RGB; `resize` is how frames of other sizes come to it."""

    size: Annotated[int, Field(ge=1, le=16384)]
    color: Literal["RGB"] = "RGB"
    layout: Literal["NHWC"] = "NHWC"
    dtype: Literal["uint8"] = "uint8"
    resize: Resize = "area"


class Parity(_Part):
    """What was measured against the PyTorch model after the export, or why it was not."""

    status: Literal["passed", "failed", "not_run"]
    floor_db: Finite  # of restored frames, peak 1
    answer_floor_db: Finite | None = None  # of raw answers, peak their largest magnitude; None: the same
    psnr_db: dict[str, Finite] = Field(default_factory=dict)
    agreement: dict[str, Finite] = Field(default_factory=dict)
    n_frames: Annotated[int, Field(ge=0)] = 0
    device: str | None = None
    effective_precision: str | None = None
    reason: str | None = None

    def shortfalls(self, figures: Mapping[str, float]) -> list[str]:
        """Name the functions whose PSNR in dB is below their floor, NaN included."""
        answer_floor_db = self.floor_db if self.answer_floor_db is None else self.answer_floor_db
        floors = {name: self.floor_db if name.startswith("restore/") else answer_floor_db for name in figures}
        return [
            f"{name} {value:.1f} dB (floor {floors[name]:g})" for name, value in figures.items() if not value >= floors[name]
        ]


class Provenance(_Part):
    created_utc: str
    package_version: str
    preset: str
    checkpoint_sha256: str
    versions: dict[str, str] = Field(default_factory=dict)


class FileEntry(_Part):
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(_Part):
    schema_version: int = SCHEMA_VERSION
    name: str
    target: Target
    precision: Precision
    level: Level
    input: Preprocessing
    tasks: dict[Word, TaskSpec] = Field(min_length=1)
    functions: tuple[FunctionSpec, ...] = Field(min_length=1)
    parity: Parity
    provenance: Provenance
    quantization: dict[str, Scheme] = Field(default_factory=dict)  # layers that compute in int8; the others do not
    golden_step: Count = GOLDEN_STEP  # golden.npz keeps each so many-th value of a large output
    files: dict[str, FileEntry]

    @property
    def verified(self) -> bool:
        return self.parity.status == "passed"

    @property
    def budgets(self) -> tuple[int, ...]:
        """The numbers of tokens that it was also built with, rising."""
        return tuple(sorted({f.tokens for f in self.functions if f.tokens is not None}))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = [f"{name!r} leaves the bundle" for name in self.files if not is_safe(name)]
        faults += [f"{name} is not listed" for name in (GOLDEN,) if name not in self.files]
        names = [f.name for f in self.functions]
        faults += [f"function {n} is there twice" for n in sorted(set(names)) if names.count(n) > 1]
        outputs = [o.name for f in self.functions for o in f.outputs]
        faults += [f"output {n} is there twice" for n in sorted(set(outputs)) if outputs.count(n) > 1]
        for task, spec in self.tasks.items():
            tokens = spec.selected_tokens
            if len(set(tokens)) != len(tokens) or any(t >= spec.n_tokens for t in tokens):
                faults.append(f"task {task} selects tokens that are not {spec.n_tokens} different ones")
            if spec.kind == "seg" and len(spec.labels) > 256:
                faults.append(f"task {task} has {len(spec.labels)} labels, a uint8 mask holds 256")
            own = {f.kind for f in self.functions if f.task == task and f.tokens is None}
            if not own:
                faults.append(f"task {task} has no function")
            for n in self.budgets:
                if {f.kind for f in self.functions if f.task == task and f.tokens == n} != own or n > spec.n_tokens:
                    faults.append(f"task {task} has not the functions that others have with {n} tokens, or not so many tokens")
        for function in self.functions:
            if function.task not in self.tasks:
                faults.append(f"function {function.name} is of no listed task")
            else:
                faults += _shape_faults(function, self.tasks[function.task], self.input.size)
            inside = function.file in self.files or any(f.startswith(f"{function.file}/") for f in self.files)
            if not inside or not is_safe(function.file):
                faults.append(f"function {function.name} is in {function.file!r}, which is not listed")
        if self.target != "coreml" and len({f.file for f in self.functions}) > 1:
            faults.append(f"its functions are in several files, {self.target} has one")
        if faults:
            raise ValueError(some(faults))
        return self


def _shape_faults(function: FunctionSpec, task: TaskSpec, size: int) -> list[str]:
    """Compare the outputs with what the shim relies on; answers.py describes it."""
    labels, shapes = len(task.labels), [o.shape for o in function.outputs]
    side = task.heat_map
    n = shapes[0][1] if shapes and len(shapes[0]) > 1 else 0
    wanted: dict[str, list[tuple[int, ...]]] = {
        "restore": [(1, size, size, 3)],
        "cls": [(1, labels)],
        "seg": [(1, labels, size, size)],
        "det": [(1, side**2 or n, 4), (1, side**2 or n, labels)],
    }
    want = wanted["restore" if function.kind == "restore" else task.kind]
    bad_dtype = any(o.dtype != "float32" for o in function.outputs)
    return [f"function {function.name} gives {shapes}, not {want} float32"] if shapes != want or bad_dtype else []


def some(faults: list[str]) -> str:
    rest = len(faults) - MAX_FAULTS_SHOWN
    return "; ".join(faults[:MAX_FAULTS_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def is_safe(name: str) -> bool:
    """Whether `name` is a plain relative path that stays inside, on every operating system."""
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and "/".join(parts) == name
        and not any(p in ("/", ".", "..") or re.search(r"[\\:\x00-\x1f]", p) for p in parts)
    )


class _Version(BaseModel):
    schema_version: int


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest; BundleError names all that is wrong with it, or the schema version that it would need."""
    try:
        version = _Version.model_validate_json(data, strict=True).schema_version
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"its manifest has schema version {version}, this tasktok-edge reads {SCHEMA_VERSION} alone: "
                "upgrade tasktok-edge"
            )
        if version < SCHEMA_VERSION:
            told = f"its manifest has schema version {version}, this tasktok-edge reads {SCHEMA_VERSION} alone"
            raise BundleError(f"{told}: export the bundle again")
        return Manifest.model_validate_json(data, strict=True)
    except ValidationError as error:
        faults = [": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in error.errors()]
        raise BundleError(f"its manifest is not valid: {some(faults)}") from None
