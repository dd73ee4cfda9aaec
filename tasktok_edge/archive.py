"""A bundle as one `.ttk` file: a zip whose names and sizes are checked before anything is extracted."""

import os
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from tasktok_edge.errors import BundleError
from tasktok_edge.manifest import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, is_safe, parse_manifest, some
from tasktok_edge.signing import SIGNATURE_BYTES

CHUNK = 1 << 20
# What zipfile raises on damaged, encrypted or unknown archives.
ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def extract(path: Path, folder: Path) -> None:
    """Check the members of the zip file against the manifest inside, then extract them. Hashes are not looked at."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            _check_members(archive, members)
            for member in members:
                file = folder / member.filename
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, file.open("wb") as sink:
                    shutil.copyfileobj(source, sink, CHUNK)  # zipfile stops at the size that was checked
    except BundleError:
        raise
    except ZIP_FAULTS as error:
        raise BundleError(f"it is neither a bundle's folder nor a whole .ttk file: {error}") from None


def _check_members(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    sizes = {m.filename: m.file_size for m in members}
    if MANIFEST not in sizes:
        raise BundleError(f"it has no {MANIFEST}, so it is not a bundle")
    if sizes[MANIFEST] > MAX_MANIFEST_BYTES:
        raise BundleError(f"its {MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    listed = {name: entry.bytes for name, entry in parse_manifest(archive.read(MANIFEST)).files.items()}
    listed[MANIFEST] = sizes[MANIFEST]
    if SIGNATURE in sizes:
        listed[SIGNATURE] = SIGNATURE_BYTES
    faults = [f"{n!r} leaves the bundle" for n in sizes if not is_safe(n)]
    faults += [f"{m.filename} is a link" for m in members if stat.S_ISLNK(m.external_attr >> 16)]
    faults += [f"{n} is not listed in {MANIFEST}" for n in sorted(sizes.keys() - listed.keys())]
    faults += [f"{n} is missing" for n in sorted(listed.keys() - sizes.keys())]
    faults += [f"{n} has {sizes[n]} bytes, not {listed[n]}" for n in listed if n in sizes and sizes[n] != listed[n]]
    if len(sizes) != len(members):
        faults.append("it holds a file twice")
    if faults:
        raise BundleError(f"{some(faults)}. Copy or export the bundle again")


def compress(folder: Path, names: Sequence[str], file: Path) -> None:
    """Zip files of a folder into `file`, whole or not at all; the same files give the same bytes."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for member in names:
                info = zipfile.ZipInfo(member)  # dated 1980, whenever it is packed
                info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                with (folder / member).open("rb") as source, archive.open(info, "w", force_zip64=True) as sink:
                    shutil.copyfileobj(source, sink, CHUNK)
        temporary.chmod(0o644)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
