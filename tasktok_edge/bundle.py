"""The bundle: the one thing that passes from export to a device.

    manifest.json      what is inside, and the size and SHA-256 of every file
    manifest.sig       its signature, where it has one
    model.*            the engine's own file or files
    golden.npz         a few frames and the server's answers to them
    LICENSE, README.md

A folder, or the same folder zipped as `.ttk`. Engines crash on damaged files or, worse, answer wrongly without a word,
so everything is verified here before an engine sees a byte. `frames` in golden.npz is (n, S, S, 3) uint8; every other
array is named after an output and holds its answers, (n, m) float32 or float16, as `golden_values` takes them.
"""

import hashlib
import math
import os
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tasktok_edge.archive import compress, extract
from tasktok_edge.errors import BundleError, UsageError, unknown_word
from tasktok_edge.manifest import (
    GOLDEN,
    GOLDEN_STEP,
    GOLDEN_WHOLE,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SCHEMA_VERSION,
    SIGNATURE,
    FileEntry,
    FunctionSpec,
    Kind,
    Level,
    Manifest,
    Parity,
    Precision,
    Preprocessing,
    Provenance,
    Scheme,
    Target,
    TaskSpec,
    TensorSpec,
    parse_manifest,
    some,
)
from tasktok_edge.signing import SIGNATURE_BYTES, check_signature, signature_of
from tasktok_edge.staging import stage

__all__ = [
    "SCHEMA_VERSION",
    "Bundle",
    "FileEntry",
    "FunctionSpec",
    "Kind",
    "Level",
    "Manifest",
    "Parity",
    "Precision",
    "Preprocessing",
    "Provenance",
    "Target",
    "TaskSpec",
    "TensorSpec",
    "golden_values",
    "pack",
    "parse_manifest",
    "read_bundle",
    "replace_parity",
    "sign",
    "stage",
    "write_golden",
    "write_manifest",
]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every byte was verified. Zipped ones live in a temporary folder until close()."""

    path: Path  # the folder
    source: Path  # what was read: the folder, or the .ttk
    manifest: Manifest
    sha256: str  # of the manifest file, which holds the hashes of all others: the identity of the bundle
    budgets: tuple[int, ...] = ()  # the numbers of tokens that it was built with, whichever is kept to now
    _temporary: "tempfile.TemporaryDirectory[str] | None" = field(default=None, repr=False, compare=False)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.manifest.files.values())

    def function(self, kind: Kind, task: str) -> FunctionSpec:
        for spec in self.manifest.functions:
            if (spec.kind, spec.task) == (kind, task):
                return spec
        raise unknown_word("function", f"{kind}/{task}", [f.name for f in self.manifest.functions])

    def with_budget(self, tokens: int | None) -> Self:
        """Keep the functions that replace so many tokens, or with None those of each task's own selection.

        Raises UsageError where it was not built with that number.
        """
        if tokens is not None and tokens not in self.budgets:
            known = f"only with {', '.join(map(str, self.budgets))}" if self.budgets else "with none"
            told = f"{self.source} was built for no budget of {tokens} tokens, {known}"
            raise UsageError(f"{told}: leave it out, or export with --tokens {tokens}")
        functions = tuple(f for f in self.manifest.functions if f.tokens == tokens)
        return replace(self, manifest=self.manifest.model_copy(update={"functions": functions}))

    def golden(self) -> dict[str, NDArray[Any]]:
        """Read the golden frames and the answers to them, checked against the manifest."""
        try:
            with np.load(self.path / GOLDEN, allow_pickle=False) as arrays:
                golden = {name: np.asarray(arrays[name]) for name in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{self.source}: {GOLDEN} cannot be read: {error}") from None
        size, frames = self.manifest.input.size, golden.get("frames", np.empty(0))
        step = self.manifest.golden_step
        want = {o.name: _n_golden(math.prod(o.shape), step) for f in self.manifest.functions for o in f.outputs}
        faults = [] if frames.shape[1:] == (size, size, 3) and frames.dtype == np.uint8 and len(frames) else ["frames"]
        for name, n in want.items():
            answer = golden.get(name, np.empty(0))
            known = answer.dtype in (np.float16, np.float32)  # float16 where int8 is compared with
            if answer.shape != (len(frames), n) or not known or not np.isfinite(answer).all():
                faults.append(name)
            elif answer.dtype == np.float16:
                golden[name] = answer.astype(np.float32)
        if faults:
            raise BundleError(f"{self.source}: {GOLDEN} lacks a well-formed {', '.join(faults)}: export the model again")
        return golden

    def close(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_bundle(path: Path | str, *, public_key: Path | str | None = None) -> Bundle:
    """Verify the bundle at `path`, a folder or a `.ttk` file, and return it; BundleError tells all that is wrong.

    With `public_key`, a PEM file, it must carry a signature of the key's owner. Close a zipped one when done, or use
    `with read_bundle(path) as bundle:`.
    """
    path, key = Path(path), None if public_key is None else Path(public_key)
    try:
        if path.is_dir():
            return _read_folder(path.resolve(), path, key)
        if not path.is_file():
            raise BundleError("there is no such folder or .ttk file")
        return _read_zip(path, key)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from None


def _read_folder(root: Path, source: Path, public_key: Path | None) -> Bundle:
    file = root / MANIFEST
    if not file.is_file() or file.is_symlink():
        raise BundleError(f"it has no {MANIFEST}, so it is not a bundle")
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"its {MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    data = file.read_bytes()
    if public_key is not None:
        check_signature(data, _signature(root), public_key)
    manifest = parse_manifest(data)
    found, faults = _walk(root)
    unlisted = sorted(found - manifest.files.keys() - {MANIFEST, SIGNATURE})
    faults += [f"{name} is not listed in {MANIFEST}" for name in unlisted]
    for name, entry in manifest.files.items():
        if name not in found:
            faults.append(f"{name} is missing")
        elif (size := (root / name).stat().st_size) != entry.bytes:
            faults.append(f"{name} has {size} bytes, not {entry.bytes}")
        elif _sha256(root / name) != entry.sha256:
            faults.append(f"{name} was changed: its SHA-256 is not the one in {MANIFEST}")
    if faults:
        raise BundleError(f"{some(faults)}. Copy or export the bundle again")
    sha256 = hashlib.sha256(data).hexdigest()
    return Bundle(path=root, source=source, manifest=manifest, sha256=sha256, budgets=manifest.budgets)


def _signature(root: Path) -> bytes | None:
    file = root / SIGNATURE
    if not file.is_file() or file.is_symlink():
        return None
    if file.stat().st_size != SIGNATURE_BYTES:
        raise BundleError(f"its {SIGNATURE} has {file.stat().st_size} bytes, not {SIGNATURE_BYTES}")
    return file.read_bytes()


def sign(folder: Path, private_key: Path) -> Path:
    """Verify the bundle in `folder` and put the signature of its manifest beside it, in the place of an earlier one."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: sign a bundle's folder, then zip it")
    with read_bundle(folder) as bundle:
        signed = signature_of((bundle.path / MANIFEST).read_bytes(), private_key)
        temporary, file = bundle.path / f".{SIGNATURE}", bundle.path / SIGNATURE
        try:
            temporary.write_bytes(signed)
            temporary.replace(file)
        except OSError as error:
            raise UsageError(f"{file} cannot be written: {error.strerror}") from None
    return file


def _walk(root: Path) -> tuple[set[str], list[str]]:
    """List the plain files under `root`, and the faults: links and whatever else is neither file nor folder."""
    found: set[str] = set()
    faults: list[str] = []
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            mode, relative = path.lstat().st_mode, path.relative_to(root).as_posix()
            if stat.S_ISREG(mode):
                found.add(relative)
            elif not stat.S_ISDIR(mode):
                faults.append(f"{relative} is a link or a device, a bundle holds plain files")
    return found, faults


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_zip(path: Path, public_key: Path | None) -> Bundle:
    temporary = tempfile.TemporaryDirectory(prefix="tasktok-")
    try:
        root = Path(temporary.name).resolve()
        extract(path, root)
        return replace(_read_folder(root, path, public_key), _temporary=temporary)
    except BaseException:
        temporary.cleanup()
        raise


def golden_values(answers: NDArray[Any], step: int) -> NDArray[Any]:
    """What golden.npz keeps of answers (n, ...): all values of small ones, each `step`-th in C order of others, (n, m).

    >>> golden_values(np.zeros((2, 128, 128, 3)), 17).shape
    (2, 2892)
    """
    flat = answers.reshape(len(answers), math.prod(answers.shape[1:]))
    return flat[:, ::step] if flat.shape[1] > GOLDEN_WHOLE else flat


def _n_golden(n: int, step: int) -> int:
    return -(-n // step) if n > GOLDEN_WHOLE else n


def write_golden(folder: Path, frames: NDArray[np.uint8], answers: Mapping[str, NDArray[np.floating]]) -> None:
    """Write golden.npz: frames (n, S, S, 3), and of every output by name its answers (n, ...)."""
    kept: dict[str, Any] = {name: golden_values(answer, GOLDEN_STEP) for name, answer in answers.items()}
    np.savez_compressed(folder / GOLDEN, frames=frames, **kept)


def write_manifest(
    folder: Path,
    *,
    name: str,
    target: Target,
    precision: Precision,
    level: Level,
    input: Preprocessing,  # noqa: A002  # the manifest's own word
    tasks: Mapping[str, TaskSpec],
    functions: Sequence[FunctionSpec],
    parity: Parity,
    provenance: Provenance,
    quantization: Mapping[str, Scheme] | None = None,
) -> Manifest:
    """Hash every file in `folder` and write its manifest.json."""
    found, faults = _walk(folder)
    if faults:
        raise BundleError(f"{folder}: {some(faults)}")
    files = {
        f: FileEntry(bytes=(folder / f).stat().st_size, sha256=_sha256(folder / f))
        for f in sorted(found - {MANIFEST, SIGNATURE})
    }
    manifest = Manifest(
        name=name, target=target, precision=precision, level=level, input=input, tasks=dict(tasks),
        functions=tuple(functions), parity=parity, provenance=provenance, quantization=dict(quantization or {}), files=files,
    )  # fmt: skip
    _write(folder, manifest)
    return manifest


def replace_parity(folder: Path, parity: Parity) -> Manifest:
    """Put a newly measured verdict into the manifest of `folder`; no other file changes."""
    manifest = parse_manifest((folder / MANIFEST).read_bytes()).model_copy(update={"parity": parity})
    _write(folder, manifest)
    return manifest


def _write(folder: Path, manifest: Manifest) -> None:
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / MANIFEST)
    (folder / SIGNATURE).unlink(missing_ok=True)  # it was of the manifest before


def pack(folder: Path | str, file: Path | str, *, overwrite: bool = False) -> Path:
    """Verify the bundle in `folder` and zip it into `file` (`.ttk`); the same folder gives the same bytes."""
    file = Path(file)
    if os.path.lexists(file) and not (overwrite and file.is_file()):
        raise UsageError(f"{file} exists: choose another name")
    with read_bundle(folder) as bundle:
        signature = (SIGNATURE,) if _signature(bundle.path) is not None else ()
        compress(bundle.path, (MANIFEST, *signature, *sorted(bundle.manifest.files)), file)
    return file
