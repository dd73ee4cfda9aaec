"""Who made a bundle: an Ed25519 signature (RFC 8032) of its manifest, which holds the hash of every other file.

    <bundle>/manifest.sig    64 bytes; a bundle without one is unsigned

A device that takes its updates over the air keeps the public key and opens only what was signed with the private one:
`load(path, public_key="public.pem")`. Measuring a bundle's parity again changes its manifest, so sign last.
"""

import os
from pathlib import Path
from typing import Any

from tasktok_edge.errors import BundleError, PackageError, UsageError

SIGNATURE_BYTES = 64
PRIVATE, PUBLIC = "private.pem", "public.pem"


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise PackageError(f'cryptography cannot be imported ({error}): pip install "tasktok-edge[signing]"') from None
    return serialization, ed25519


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Make a new pair in `folder`: private.pem (PKCS 8, not encrypted, readable by its owner alone) and public.pem."""
    serialization, ed25519 = _cryptography()
    private, public = folder / PRIVATE, folder / PUBLIC
    for file in (private, public):
        if os.path.lexists(file):
            raise UsageError(f"{file} exists: bundles may be signed with it, so choose another folder")
    key = ed25519.Ed25519PrivateKey.generate()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    except OSError as error:
        raise UsageError(f"no keys can be written to {folder}: {error.strerror}") from None
    return private, public


def signature_of(manifest: bytes, private: Path) -> bytes:
    """Sign the bytes of a manifest file."""
    serialization, ed25519 = _cryptography()
    key = _key(private, "private", lambda data: serialization.load_pem_private_key(data, password=None))
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError(f"{private} is no Ed25519 key: make one with `tasktok-edge keys`")
    return bytes(key.sign(manifest))


def check_signature(manifest: bytes, signature: bytes | None, public: Path) -> None:
    """Raise BundleError unless `signature` is that of the private key to `public` for these bytes."""
    serialization, ed25519 = _cryptography()
    from cryptography.exceptions import InvalidSignature

    key = _key(public, "public", serialization.load_pem_public_key)
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise UsageError(f"{public} is no Ed25519 key: give the public.pem of `tasktok-edge keys`")
    if signature is None:
        raise BundleError(f"it is not signed, and only what was signed with the key to {public} may be opened")
    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise BundleError(
            f"its signature is not one of the key to {public}: it was changed, or signed by someone else"
        ) from None


def _key(file: Path, kind: str, read: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"the {kind} key {file} cannot be read: {error.strerror}") from None
    try:
        return read(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # another format, or encrypted
        raise UsageError(f"{file} is no {kind} key as PEM without a password: {error}") from None
