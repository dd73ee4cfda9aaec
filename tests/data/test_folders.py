"""Trees on disk: listed in the official order, read as they were written, and every fault is one sentence."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasktok_edge.data import folders
from tasktok_edge.data.folders import (
    VOC_CLASSES,
    imagenet,
    load_boxes,
    load_mask,
    load_pair,
    load_picture,
    picture_size,
    require_pairs,
    voc_list,
    voc_tree,
)
from tasktok_edge.errors import UsageError
from tests.data.helpers_trees import SIZES, WNIDS, frames, write_imagenet, write_voc


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trees")
    write_imagenet(root / "imagenet")
    write_voc(root / "voc")
    return root


@pytest.fixture
def broken(trees: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(trees, tmp_path / "trees"))


def test_imagenet_labels_are_the_sorted_folders(trees: Path) -> None:
    for split, n in (("train", 2), ("val", 1)):
        listing = imagenet(trees / "imagenet", split)  # type: ignore[arg-type]
        assert listing.classes == WNIDS
        assert listing.labels.tolist() == [label for label in range(3) for _ in range(n)]
        assert [name.split("/")[0] for name in listing.names] == [WNIDS[label] for label in listing.labels]
        assert load_picture(listing.root / str(listing.names[0])).shape[2] == 3


def test_names_are_sorted_and_other_files_are_no_pictures(broken: Path) -> None:
    folder = broken / "imagenet" / "train" / WNIDS[1]
    for name in ("zz.jpg", "aa.PNG", "._aa.jpg", "notes.txt"):
        shutil.copy(next(folder.glob("train_*.JPEG")), folder / name)
    names = [name for name in imagenet(broken / "imagenet", "train").names if name.startswith(WNIDS[1])]
    assert len(names) == 4
    assert names[0] == f"{WNIDS[1]}/aa.PNG"
    assert names == sorted(names)


def test_voc_is_found_from_three_roots(trees: Path) -> None:
    tree = trees / "voc" / "VOCdevkit" / "VOC2012"
    assert voc_tree(trees / "voc") == voc_tree(trees / "voc" / "VOCdevkit") == voc_tree(tree) == tree
    with pytest.raises(UsageError, match="no VOC2012 tree"):
        voc_tree(trees)


def test_voc_is_read_as_it_was_written(trees: Path) -> None:
    written = frames("train", 4)
    seg, det = voc_list(trees / "voc", "seg", "train"), voc_list(trees / "voc", "det", "train")
    assert seg.names == det.names
    assert len(seg.names) == 4
    for i, frame in enumerate(written):
        assert picture_size(seg.picture(i)) == SIZES[i % 3] == frame.semantic.shape
        assert np.abs(load_picture(seg.picture(i)).astype(int) - frame.image).mean() < 8  # JPEG
        mask = load_mask(seg.mask(i), size=frame.semantic.shape)
        assert (mask[:2] == 255).all()
        np.testing.assert_array_equal(mask[2:], frame.semantic[2:])
        boxes, labels = load_boxes(det.annotation(i), size=frame.semantic.shape)
        np.testing.assert_array_equal(boxes, frame.boxes + np.array([1, 1, 0, 0]))
        np.testing.assert_array_equal(labels, frame.box_labels + 1)


def test_voc_has_its_twenty_classes_in_alphabetical_order() -> None:
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)
    assert VOC_CLASSES.index("person") + 1 == 15  # the index in VOC's own colour map


def write_xml(path: Path, objects: str, head: str = "") -> Path:
    path.write_text(f"{head}<annotation>{objects}</annotation>")
    return path


def box(name: str, *corners: object) -> str:
    named = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    inner = "".join(f"<{tag}>{value}</{tag}>" for tag, value in named)
    return f"<object><name>{name}</name><bndbox>{inner}</bndbox></object>"


def test_fractions_are_cut_and_corners_end_at_the_picture(tmp_path: Path) -> None:
    path = write_xml(tmp_path / "a.xml", box("cat", 0, -3, "45.7", 20) + box("dog", 5, "6.9", 60, 40))
    boxes, labels = load_boxes(path, size=(30, 50))
    assert boxes.tolist() == [[1, 1, 45, 20], [5, 6, 50, 30]]
    assert labels.tolist() == [8, 12]


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ("", "no boxes"),
        (box("unicorn", 1, 1, 2, 2), "unicorn"),
        (box("cat", 9, 1, 8, 2), "has a box 9, 1, 8, 2"),
        (box("cat", 51, 1, 60, 2), "50x30"),
        (box("cat", 1, 31, 2, 40), "50x30"),
        (box("cat", -9, 1, 0, 2), "50x30"),
        (box("cat", "nan", 1, 5, 2), "has a box nan"),
        (box("cat", "left", 1, 5, 2), "lacks a number"),
        ("<object><name>cat</name></object>", "lacks a number"),
        ("<object><name>cat</name>", "not plain XML"),
        ("&bomb;", "not plain XML"),
    ],
)
def test_wrong_boxes_are_refused(tmp_path: Path, objects: str, words: str) -> None:
    assert_refused(lambda: load_boxes(write_xml(tmp_path / "a.xml", objects), size=(30, 50)), "a.xml", words)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_dtd_is_refused_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "bomb.xml"
    bomb = '<!DOCTYPE a [<!ENTITY b "cat">]>'
    text = f'<?xml version="1.0" encoding="{encoding}"?>{bomb}<annotation>{box("&b;", 1, 1, 2, 2)}</annotation>'
    path.write_bytes(text.encode(encoding))
    assert_refused(lambda: load_boxes(path, size=(9, 9)), "bomb.xml", "a DTD")
    path.write_bytes(text.replace(bomb, "").replace("&b;", "cat").encode(encoding))
    assert load_boxes(path, size=(9, 9))[1].tolist() == [8]  # it is the DTD alone that was wrong


def test_large_xml_is_not_even_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_xml(tmp_path / "large.xml", box("cat", 1, 1, 2, 2))
    monkeypatch.setattr(folders, "MAX_XML_BYTES", 50)
    assert_refused(lambda: load_boxes(path, size=(9, 9)), "large.xml", "larger than")


def assert_refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


TREE = "voc/VOCdevkit/VOC2012"
FIRST = "2012_000000"


@pytest.mark.parametrize(
    ("victim", "what", "words"),
    [
        ("imagenet/train", "imagenet", ("is missing", "one folder a class")),
        (f"imagenet/val/{WNIDS[1]}", "imagenet", (f"lacks the class folder {WNIDS[1]}", "same folders")),
        (f"imagenet/train/{WNIDS[2]}", "imagenet", (f"has the class folder {WNIDS[2]}", "same folders")),
        (f"imagenet/train/{WNIDS[0]}/*", "imagenet", ("holds no picture", WNIDS[0])),
        (f"{TREE}/JPEGImages", "voc", ("no VOC2012 tree", "unpack")),
        (f"{TREE}/JPEGImages/{FIRST}.jpg", "voc", (f"JPEGImages lacks {FIRST}.jpg", "train.txt")),
        (f"{TREE}/SegmentationClass/{FIRST}.png", "voc", (f"SegmentationClass lacks {FIRST}.png", "train.txt")),
        (f"{TREE}/SegmentationClass", "voc", (f"SegmentationClass lacks {FIRST}.png, ", "and 1 more")),
        (f"{TREE}/Annotations/{FIRST}.xml", "voc", (f"Annotations lacks {FIRST}.xml", "train.txt")),
        (f"{TREE}/ImageSets/Main/train.txt", "voc", ("Main/train.txt is missing", "unpack")),
        (f"{TREE}/ImageSets/Segmentation/train.txt", "voc", ("Segmentation/train.txt is missing", "unpack")),
    ],
)
def test_what_is_missing_is_named(broken: Path, victim: str, what: str, words: tuple[str, ...]) -> None:
    def open_all() -> None:
        if what == "imagenet":
            imagenet(broken / what, "train")
            imagenet(broken / what, "val")
        else:
            voc_list(broken / what, "seg", "train")
            voc_list(broken / what, "det", "train")

    open_all()
    for path in broken.glob(victim):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    assert_refused(open_all, *words)


def test_pictures_without_class_folders_are_explained(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").touch()
    assert_refused(lambda: imagenet(tmp_path, "val"), "val holds no class folders", "sort its pictures")


@pytest.mark.parametrize(
    ("text", "words"), [("", "lists no pictures"), ("../../passwd\n", "../../passwd"), ("a -1\nb 1", "lists -1")]
)
def test_a_list_holds_ids_alone(broken: Path, text: str, words: str) -> None:
    (broken / TREE / "ImageSets" / "Main" / "val.txt").write_text(text)
    assert_refused(lambda: voc_list(broken / "voc", "det", "val"), words)


def test_damaged_pictures_are_refused(broken: Path) -> None:
    path = broken / TREE / "JPEGImages" / f"{FIRST}.jpg"
    whole = path.read_bytes()
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(stream, "PNG")
    parts = stream.getvalue().split(b"IDAT")
    assert len(parts) > 2
    torn = b"IDAT".join(parts[:2]) + b"\0\1\2\3" + b"IDAT".join(parts[2:])
    for damaged in (b"", b"no picture", whole[: len(whole) // 2], b"P6 1 1 255 rgb", torn):  # the fourth is a whole PPM
        path.write_bytes(damaged)
        assert_refused(lambda: load_picture(path), f"{FIRST}.jpg", "cannot be read", "replace")
    path.unlink()
    assert_refused(lambda: load_picture(path), f"{FIRST}.jpg", "is missing")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["JPEG", "PNG"]))
def test_any_damage_gives_a_picture_or_one_sentence(
    data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save(stream, kind)
    code = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        code[data.draw(st.integers(0, len(code) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "picture"
    path.write_bytes(code[: data.draw(st.integers(0, len(code)))])
    try:
        assert load_picture(path).ndim == 3
    except UsageError as fault:
        assert str(path) in str(fault)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1"])
def test_every_kind_of_file_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (7, 5), (255, 255, 255)).convert(mode).save(path)
    image = load_picture(path)
    assert image.shape == (5, 7, 3)
    assert (image > 240).all()


def test_pictures_beyond_reason_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "strip.png"
    Image.new("RGB", (650, 10)).save(path)
    assert_refused(lambda: load_picture(path), "strip.png is 650x10", "1:64")
    Image.new("RGB", (640, 10)).save(path)
    assert load_picture(path).shape == (10, 640, 3)
    monkeypatch.setattr(folders, "MAX_PIXELS", 6399)
    assert_refused(lambda: load_picture(path), "strip.png is 640x10", "megapixels")


def test_masks_are_palette_pictures_of_known_classes_and_the_right_size(broken: Path) -> None:
    listing = voc_list(broken / "voc", "seg", "train")
    path, (height, width) = listing.mask(1), SIZES[1]
    load_mask(path, size=(height, width))
    assert_refused(lambda: load_mask(path, size=(width, height)), f"{path.name} is {width}x{height}", "expected 72x96")
    Image.fromarray(np.full((height, width), 21, np.uint8)).save(path)
    assert_refused(lambda: load_mask(path, size=(height, width)), path.name, "class 21", "0 to 20")
    Image.new("RGB", (width, height)).save(path)
    assert_refused(lambda: load_mask(path, size=(height, width)), path.name, "mode RGB", "palette")


def test_pairs_must_be_complete_and_of_the_right_size(tmp_path: Path) -> None:
    for half, value in (("gt", 10), ("lq", 20)):
        (tmp_path / half / "n1").mkdir(parents=True)
        Image.new("RGB", (8, 6), (value, value, value)).save(tmp_path / half / "n1" / "a.b.png")
    require_pairs(tmp_path, ["n1/a.b.JPEG"])
    clean, degraded = load_pair(tmp_path, "n1/a.b.JPEG", size=(6, 8))
    assert (clean.max(), degraded.max()) == (10, 20)
    assert_refused(lambda: load_pair(tmp_path, "n1/a.b.JPEG", size=(8, 6)), "gt/n1/a.b.png is 8x6", "expected 6x8", "generate")
    Image.new("RGB", (8, 8)).save(tmp_path / "lq" / "n1" / "a.b.png")
    assert_refused(lambda: load_pair(tmp_path, "n1/a.b.JPEG", size=(6, 8)), "lq/n1/a.b.png is 8x8")
    assert_refused(lambda: require_pairs(tmp_path, ["n1/a.b.JPEG", "n1/c.JPEG"]), "gt/n1 lacks c.png", "generate")
    (tmp_path / "lq" / "n1" / "a.b.png").unlink()
    assert_refused(lambda: require_pairs(tmp_path, ["n1/a.b.JPEG"]), "lq/n1 lacks a.b.png")
    shutil.rmtree(tmp_path / "lq")
    assert_refused(lambda: require_pairs(tmp_path, ["n1/a.b.JPEG"]), "lq is missing", "degraded in lq")
