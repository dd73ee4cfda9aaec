"""`tasktok-edge keys` and `sign`: bundles that a device can tell to be yours."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tasktok_edge.bundle import pack, sign
from tasktok_edge.errors import UsageError
from tasktok_edge.signing import make_keys

console = Console(soft_wrap=True, highlight=False)


def keys_command(out: Annotated[Path, typer.Argument(help="folder for private.pem and public.pem")]) -> None:
    """Make a pair of keys: sign bundles with the private one, give devices the public one."""
    private, public = make_keys(out)
    console.print(f"saved {private} (keep it to yourself) and {public} (for devices: load(path, public_key=…))")


def sign_command(
    bundle: Annotated[Path, typer.Argument(help="a bundle's folder")],
    key: Annotated[Path, typer.Option(help="the private key, private.pem")],
    pack_to: Annotated[Path | None, typer.Option("--pack", help="zip the signed bundle into this .ttk file")] = None,
) -> None:
    """Sign a bundle with Ed25519; whoever has the public key can tell that it is whole and yours."""
    if pack_to is not None and pack_to.suffix != ".ttk":
        raise UsageError(f"--pack {pack_to}: a zipped bundle is a .ttk file")
    saved: list[Path] = [sign(bundle, key)]
    if pack_to is not None:
        saved.append(pack(bundle, pack_to))
    for file in saved:
        console.print(f"saved {file}")
