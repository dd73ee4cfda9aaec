"""Write a folder whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasktok_edge.errors import UsageError


@contextmanager
def stage(out: Path | str, *, overwrite: bool = False, marker: str = "manifest.json") -> Iterator[Path]:
    """Yield a temporary folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    An existing `out` is an error before any work. With `overwrite` it is replaced at the very end, and only if it is an
    empty folder or one that holds `marker`: a mistyped --out must not cost anyone's files.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100  # resolve() would follow a link that `out` itself is
    if os.path.lexists(out):
        if not overwrite:
            raise UsageError(f"{out} exists: choose another --out, or add --overwrite")
        if not out.is_dir() or (any(out.iterdir()) and not (out / marker).is_file()):
            raise UsageError(f"{out} was not written by this command (it has no {marker}): choose another --out")
    made = [p for p in out.parents if not p.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error}") from None
    try:
        yield folder
        umask = os.umask(0)
        os.umask(umask)
        folder.chmod(0o777 & ~umask)  # mkdtemp's folder is closed to others
        _publish(folder, out, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def _publish(folder: Path, out: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(out):
        folder.rename(out)
        return
    if not overwrite:
        raise UsageError(f"{out} came into being meanwhile: choose another --out")
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    try:
        out.rename(old / out.name)
        folder.rename(out)
    except BaseException:
        if not os.path.lexists(out):
            (old / out.name).rename(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
