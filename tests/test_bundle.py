import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasktok_edge.bundle import (
    SCHEMA_VERSION,
    golden_values,
    pack,
    parse_manifest,
    read_bundle,
    replace_parity,
    stage,
    write_golden,
    write_manifest,
)
from tasktok_edge.errors import BundleError, UsageError
from tasktok_edge.manifest import GOLDEN_STEP
from tests.helpers_bundle import NOT_RUN, PASSED, SIZE, frames, hollow_bundle, random_answers

FILES = ["manifest.json", "model.onnx", "golden.npz", "LICENSE", "README.md"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hollow_bundle(tmp_path / "bundle")


def edit(folder: Path, **changes: object) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def said(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_bundle(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_round_trip(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.manifest.verified
    assert [f.name for f in bundle.manifest.functions][:2] == ["restore/cls", "predict/cls"]
    assert bundle.bytes == sum((folder / f).stat().st_size for f in FILES[1:])
    assert bundle.function("predict", "det").outputs[1].name == "predict_det_scores"
    golden = bundle.golden()
    np.testing.assert_array_equal(golden["frames"], frames())
    logits = random_answers()["predict_seg"].reshape(3, -1)  # large: a sample of it; boxes are few
    np.testing.assert_array_equal(golden["predict_seg"], logits[:, ::GOLDEN_STEP])
    np.testing.assert_array_equal(golden["predict_cls"], random_answers()["predict_cls"])
    with pytest.raises(UsageError, match="did you mean 'restore/seg'"):
        bundle.function("restore", "sge")


def test_identity_is_the_manifest(folder: Path) -> None:
    before = read_bundle(folder).sha256
    replace_parity(folder, NOT_RUN)
    after = read_bundle(folder)
    assert after.sha256 != before
    assert not after.manifest.verified
    assert after.manifest.parity == NOT_RUN


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_flipped_byte_is_found_in_every_file(folder: Path, name: str, zipped: bool) -> None:
    identity = read_bundle(folder).sha256
    data = (folder / name).read_bytes()
    for at in (0, len(data) // 3, len(data) // 2, len(data) - 2):
        flipped = bytearray(data)
        flipped[at] ^= 1
        (folder / name).write_bytes(flipped)
        path = folder
        if zipped:
            path = folder.parent / "flipped.ttk"
            rezip(folder, path)
        if name != "manifest.json":
            assert f"{name} was changed" in said(path)
            continue
        try:  # a manifest may stay valid, a digit of a measurement is one too: then it is another bundle
            with read_bundle(path) as bundle:
                assert bundle.sha256 != identity
        except BundleError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in said(folder)


def test_all_faults_are_told_at_once(folder: Path) -> None:
    (folder / "LICENSE").unlink()
    (folder / "extra.txt").write_text("x")
    (folder / "README.md").write_text("longer than it was, by far")
    (folder / "model.onnx").write_bytes(bytes(1024))
    message = said(folder)
    for word in ("LICENSE is missing", "extra.txt is not listed", "README.md has 26 bytes", "model.onnx was changed"):
        assert word in message


def test_extra_files_in_a_package_are_refused(tmp_path: Path) -> None:
    folder = hollow_bundle(tmp_path / "b", target="coreml", file="model.mlpackage/Data/model.mlmodel")
    assert read_bundle(folder).manifest.target == "coreml"
    (folder / "model.mlpackage" / "Data" / "more.bin").write_bytes(b"x")
    assert "model.mlpackage/Data/more.bin is not listed" in said(folder)


@pytest.mark.parametrize("link", ["file", "folder", "inside"])
def test_links_are_refused(folder: Path, link: str) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    if link == "folder":
        (folder / "more").symlink_to(outside)
    else:
        (folder / "LICENSE").rename(outside / "LICENSE" if link == "file" else folder / "L")
        (folder / "LICENSE").symlink_to(outside / "LICENSE" if link == "file" else folder / "L")
    assert "is a link" in said(folder)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/../../evil", "a\\b", "C:evil", "./a", "a//b", "a/", "", ".", "a\nb"]
)
def test_no_listed_path_leaves_the_folder(folder: Path, name: str) -> None:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit(folder, files=files | {name: {"bytes": 1, "sha256": "0" * 64}})
    assert "leaves the bundle" in said(folder)


def test_a_newer_schema_is_named_even_if_it_has_other_fields(folder: Path) -> None:
    edit(folder, schema_version=SCHEMA_VERSION + 6, hologram=True)
    message = said(folder)
    assert f"schema version {SCHEMA_VERSION + 6}" in message
    assert "upgrade" in message


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hologram": True}, "hologram"),
        ({"schema_version": SCHEMA_VERSION - 1}, "export the bundle again"),
        ({"target": "tflite"}, "target"),
        ({"input": {"size": 0}}, "input.size"),
        ({"tasks": {}}, "tasks"),
        ({"functions": []}, "functions"),
        ({"name": 3, "level": "wrong"}, "name: "),
    ],
)
def test_a_wrong_manifest_says_where(folder: Path, change: dict[str, object], word: str) -> None:
    edit(folder, **change)
    assert word in said(folder)


def test_functions_must_fit_their_tasks(folder: Path) -> None:
    functions = json.loads((folder / "manifest.json").read_text())["functions"]
    functions[1]["outputs"][0]["shape"] = [1, 7]
    functions[2]["file"] = "nowhere.onnx"
    functions[3] = functions[4]
    edit(folder, functions=functions)
    message = said(folder)
    for word in ("predict/cls gives [(1, 7)]", "'nowhere.onnx', which is not listed", "restore/det is there twice"):
        assert word in message


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_bundle_errors(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(data)
    file = tmp_path / "random.ttk"
    file.write_bytes(data)
    with pytest.raises(BundleError):
        read_bundle(file)
    file.write_bytes(b"PK\x03\x04" + data + b"PK\x05\x06" + data[:18].ljust(18, b"\0"))
    with pytest.raises(BundleError):
        read_bundle(file)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_manifest_with_a_random_value_is_valid_or_a_bundle_error(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "b"
    if not folder.exists():
        hollow_bundle(folder)
    whole = json.loads((folder / "manifest.json").read_text())
    at = whole
    while isinstance(at, dict | list) and at:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or data.draw(st.booleans()):
            at[key] = data.draw(JSON)
            break
        at = at[key]
    try:
        parse_manifest(json.dumps(whole).encode())
    except BundleError as error:
        assert "\n" not in str(error)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 1 << 30), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_zip_is_the_same_bundle_or_a_bundle_error(tmp_path: Path, at: int, bit: int, cut: bool) -> None:
    whole, damaged = tmp_path / "b.ttk", tmp_path / "d.ttk"
    if not whole.exists():
        pack(hollow_bundle(tmp_path / "b"), whole)
    data = bytearray(whole.read_bytes())
    at %= len(data)
    data[at] ^= 1 << bit
    damaged.write_bytes(data[:at] if cut else data)
    try:
        with read_bundle(damaged) as bundle, read_bundle(whole) as same:
            assert bundle.sha256 == same.sha256  # a date or a comment of the zip was hit
    except BundleError as error:
        assert "\n" not in str(error)


def test_zip_round_trip_cleans_up(folder: Path) -> None:
    file = pack(folder, folder.parent / "b.ttk")
    with read_bundle(file) as bundle:
        assert bundle.source == file
        assert bundle.sha256 == read_bundle(folder).sha256
        assert len(bundle.golden()["frames"]) == 3
        inside = bundle.path
        assert inside.is_dir()
    assert not inside.exists()
    again = pack(folder, folder.parent / "c.ttk")
    assert again.read_bytes() == file.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        pack(folder, file)
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")]


def test_a_changed_folder_is_not_packed(folder: Path) -> None:
    (folder / "LICENSE").write_text("mine")
    with pytest.raises(BundleError):
        pack(folder, folder.parent / "b.ttk")
    assert not (folder.parent / "b.ttk").exists()


def rezip(folder: Path, file: Path, **extra: bytes) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name in FILES:
            archive.writestr(name, (folder / name).read_bytes())
        for name, data in extra.items():
            archive.writestr(name, data)


def test_zips_with_foreign_members(folder: Path) -> None:
    file = folder.parent / "b.ttk"
    for name in ("../evil", "/evil", "more.txt"):
        rezip(folder, file, **{name: b"x"})
        assert "not listed" in said(file)
    assert not (folder.parent.parent / "evil").exists()
    with pytest.warns(UserWarning, match="Duplicate"):
        rezip(folder, file, LICENSE=b"Apache-2.0\n")
    assert "twice" in said(file)
    info = zipfile.ZipInfo("LICENSE")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(file, "w") as archive:
        for name in FILES:
            archive.writestr(info if name == "LICENSE" else name, (folder / name).read_bytes())
    assert "LICENSE is a link" in said(file)


def test_a_zip_bomb_is_refused_before_it_is_extracted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder.parent / "b.ttk"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in FILES:
            archive.writestr(name, bytes(64 << 20) if name == "model.onnx" else (folder / name).read_bytes())
    monkeypatch.setattr(shutil, "copyfileobj", lambda *_: pytest.fail("extracted"))
    assert "model.onnx has 67108864 bytes, not 1024" in said(file)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    assert "no such" in said(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "no manifest.json" in said(tmp_path / "empty")
    (tmp_path / "a.txt").write_text("hello")
    assert "neither" in said(tmp_path / "a.txt")


def test_golden_sample_meets_every_row_column_and_channel() -> None:
    place = np.moveaxis(np.indices((128, 128, 3)), 0, -1)[None]  # (1, 128, 128, 3, 3): where each value stands
    met = np.stack([golden_values(place[..., axis], GOLDEN_STEP)[0] for axis in range(3)], -1)
    assert [len(np.unique(met[:, axis])) for axis in range(3)] == [128, 128, 3] and len(met) == 2892


def test_golden_must_fit(folder: Path) -> None:
    bundle = read_bundle(folder)
    write_golden(folder, frames(), random_answers() | {"predict_cls": np.full((3, 4), np.nan, np.float32)})
    with pytest.raises(BundleError, match="predict_cls"):
        bundle.golden()
    write_golden(folder, frames(), random_answers() | {"predict_seg": random_answers()["predict_seg"][:, :4]})
    with pytest.raises(BundleError, match="predict_seg"):
        bundle.golden()
    write_golden(folder, np.zeros((0, SIZE, SIZE, 3), np.uint8), random_answers(0))
    with pytest.raises(BundleError, match="frames"):
        bundle.golden()
    np.savez(folder / "golden.npz", frames=np.array([{}], dtype=object))
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.golden()


def test_stage_publishes_whole_folders(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with stage(out) as folder:
        (folder / "a").write_text("a")
        assert folder.parent == out.parent
        assert not out.exists()
    assert (out / "a").read_text() == "a"
    assert out.stat().st_mode & 0o777 == 0o777 & ~_umask()
    assert names(out.parent) == ["out"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, GeneratorExit])
def test_an_interrupted_stage_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), stage(tmp_path / "deep" / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        raise error
    assert not list(tmp_path.iterdir())


def test_stage_and_what_is_there_already(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    for overwrite in (False, True):  # a folder that no command of ours wrote is never replaced
        with pytest.raises(UsageError), stage(out, overwrite=overwrite):
            pytest.fail("started to work")
    (out / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="boom"), stage(out, overwrite=True):
        raise ValueError("boom")
    assert (out / "mine.txt").exists()
    with stage(out, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert (out / "mine.txt").exists()
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_stage_does_not_overwrite_what_came_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="meanwhile"), stage(out):
        out.mkdir()
    assert names(tmp_path) == ["out"]


def test_write_manifest_refuses_links(folder: Path) -> None:
    manifest = read_bundle(folder).manifest
    (folder / "link").symlink_to(folder / "LICENSE")
    with pytest.raises(BundleError, match="link"):
        write_manifest(
            folder,
            name="x",
            target=manifest.target,
            precision=manifest.precision,
            level=manifest.level,
            input=manifest.input,
            tasks=manifest.tasks,
            functions=manifest.functions,
            parity=PASSED,
            provenance=manifest.provenance,
        )
