"""Zeros of a pruned refiner inside a bundle: each matrix is looked up in the engine's own files, and its zeros counted there.

They make the bundle smaller once it is zipped. They do not make it faster: no engine here skips a multiplication by zero.
"""

import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasktok_edge.bundle import pack
from tasktok_edge.export.rewrite import split_linear
from tasktok_edge.model.int8 import Int8Linear
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.model.vit import Attention

Matrix = NDArray[np.generic]


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix of the refiner as it lies in an artifact; `zeros` is None where it was not found, in none of the known forms."""

    name: str
    weights: int
    zeros: int | None
    dtype: str = ""


@dataclass(frozen=True)
class BundleZeros:
    """What the zeros of a bundle's refiner give: bytes of the folder, and of the same as one `.ttk`."""

    matrices: tuple[StoredMatrix, ...]
    bytes: int
    zipped_bytes: int

    @property
    def found(self) -> int:
        return sum(m.zeros is not None for m in self.matrices)

    @property
    def share(self) -> float:
        """Zeros among all weights that were found, in [0, 1]."""
        here = [m for m in self.matrices if m.zeros is not None]
        return sum(m.zeros or 0 for m in here) / max(sum(m.weights for m in here), 1)

    @property
    def told(self) -> str:
        """All of it in a sentence, with what zeros do not give."""
        where = f"{self.found} of the refiner's {len(self.matrices)} matrices were found in the artifact"
        size = f"{self.bytes} bytes, {self.zipped_bytes} as .ttk"
        return f"{where}, {self.share:.1%} of their weights zero; {size}. Zeros shorten the download, not the time of a frame"


def bundle_zeros(folder: Path, model: TaskTok) -> BundleZeros:
    """Find the refiner of `model` in the files of a bundle that was exported from it; any engine, any precision."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".json", ".npz", ".md")]
    stored = []
    maps = [_map(path) for path in files if path.stat().st_size]
    for name, layer in model.refiner.named_modules():
        if isinstance(layer, nn.Linear):
            parent = model.refiner.get_submodule(name.rpartition(".")[0])
            stored.append(_look_up(name, layer, parent, maps))
    for content in maps:
        content.close()
    with tempfile.TemporaryDirectory() as scratch:
        zipped = pack(folder, Path(scratch) / "bundle.ttk").stat().st_size
    return BundleZeros(tuple(stored), sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), zipped)


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _look_up(name: str, layer: nn.Linear, parent: nn.Module, maps: list[mmap.mmap]) -> StoredMatrix:
    for pieces in _partitions(layer, parent):
        found = [_find(piece, maps) for piece in pieces]
        if all(piece is not None for piece in found):
            dtype = " and ".join(sorted({str(piece.dtype) for piece in found if piece is not None}))
            zeros = sum(int(np.count_nonzero(piece == 0)) for piece in found if piece is not None)
            return StoredMatrix(name, layer.weight.numel(), zeros, dtype)
    return StoredMatrix(name, layer.weight.numel(), None)


def _partitions(layer: nn.Linear, parent: nn.Module) -> Iterator[list[Matrix]]:
    """The pieces that a graph may cut a matrix into: none; queries from keys and values; each apart, queries scaled."""
    weight = layer.codes().cpu().numpy() if isinstance(layer, Int8Linear) else layer.weight.detach().cpu().numpy()
    yield [weight]
    if isinstance(parent, Attention) and layer is parent.qkv:
        d = parent.inner
        yield [weight[:d], weight[d:]]
        yield [weight[:d], weight[d : 2 * d], weight[2 * d :]]
        if not isinstance(layer, Int8Linear):
            gain = (d // parent.heads) ** -0.5
            yield [part.weight.detach().cpu().numpy() for part in split_linear(layer, gain=gain)]


def _find(piece: Matrix, maps: list[mmap.mmap]) -> Matrix | None:
    """The piece as it is stored: in its dtype or in half of it, as it is or transposed."""
    dtypes = (piece.dtype,) if piece.dtype == np.int8 else (piece.dtype, np.dtype(np.float16))
    for dtype in dtypes:
        for form in (piece, piece.T):
            wanted = np.ascontiguousarray(form, dtype).tobytes()
            for content in maps:
                at = content.find(wanted)
                if at >= 0:
                    return np.frombuffer(content[at : at + len(wanted)], dtype)
    return None
