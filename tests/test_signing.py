"""Bundles that only their owner can have made."""

import shutil
import stat
from pathlib import Path

import pytest

from tasktok_edge.bundle import pack, read_bundle, replace_parity, sign
from tasktok_edge.cli import run
from tasktok_edge.errors import BundleError, UsageError
from tasktok_edge.signing import make_keys
from tests.helpers_bundle import NOT_RUN, hollow_bundle


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path / "keys")


def test_a_signed_bundle_opens_as_folder_and_as_file(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    folder = hollow_bundle(tmp_path / "b")
    unsigned = read_bundle(folder).sha256
    with pytest.raises(BundleError, match="not signed"):
        read_bundle(folder, public_key=public)
    sign(folder, private)
    assert read_bundle(folder, public_key=public).sha256 == unsigned == read_bundle(folder).sha256
    with read_bundle(pack(folder, tmp_path / "b.ttk"), public_key=public) as zipped:
        assert zipped.sha256 == unsigned
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_what_was_changed_or_signed_by_another_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    folder = hollow_bundle(tmp_path / "b")
    sign(folder, private)
    other = make_keys(tmp_path / "other")
    with pytest.raises(BundleError, match="changed, or signed by someone else"):
        read_bundle(folder, public_key=other[1])
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"name": "tiny"', b'"name": "tinx"'))
    read_bundle(folder)  # well-formed all the same
    with pytest.raises(BundleError, match="changed, or signed by someone else"):
        read_bundle(folder, public_key=public)
    sign(folder, private)
    read_bundle(folder, public_key=public)
    replace_parity(folder, NOT_RUN)  # another verdict is another manifest
    with pytest.raises(BundleError, match="not signed"):
        read_bundle(folder, public_key=public)
    (folder / "manifest.sig").write_bytes(b"short")
    with pytest.raises(BundleError, match="5 bytes, not 64"):
        read_bundle(folder, public_key=public)


def test_wrong_keys_are_told(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = hollow_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match="cannot be read"):
        sign(folder, tmp_path / "none.pem")
    with pytest.raises(UsageError, match="is no private key"):
        sign(folder, keys[1])
    sign(folder, keys[0])
    with pytest.raises(UsageError, match="is no public key"):
        read_bundle(folder, public_key=keys[0])
    with pytest.raises(UsageError, match="exists"):
        make_keys(tmp_path / "keys")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="no keys can be written"):
        make_keys(tmp_path / "file" / "keys")
    with pytest.raises(UsageError, match="no folder"):
        sign(tmp_path / "b.ttk", keys[0])


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = hollow_bundle(tmp_path / "b")
    assert run(["keys", str(tmp_path / "keys")]) == 0
    assert run(["sign", str(folder), "--key", str(tmp_path / "keys/private.pem"), "--pack", str(tmp_path / "b.ttk")]) == 0
    assert "saved" in capsys.readouterr().out
    with read_bundle(tmp_path / "b.ttk", public_key=tmp_path / "keys/public.pem"):
        pass
    shutil.rmtree(tmp_path / "keys")
    assert run(["devices", str(folder), "--public-key", str(tmp_path / "keys/public.pem")]) == 2
