"""What the shim withstands: damaged bundles, a long run, many openings.

    python scripts/study_shim.py damage BUNDLE [--count 10000] [--hostile 300]
    python scripts/study_shim.py frames BUNDLE [--count 100000]
    python scripts/study_shim.py cycles BUNDLE [--count 1000]

Each ends with a table and exit code 1 where something was not as it should be.
"""

import argparse
import ctypes
import gc
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tasktok_edge.bundle import pack
from tasktok_edge.errors import TaskTokEdgeError
from tasktok_edge.runtimes import Classification, Detections, Segmentation, load
from tasktok_edge.runtimes.selection import peak_of, psnr_db

os.environ.setdefault("TASKTOK_EDGE_CACHE", "")  # every bundle is another one: nothing of them is worth keeping
warnings.simplefilter("ignore")  # zipfile warns of the names that are written twice here on purpose
console = Console(width=None if sys.stdout.isatty() else 150)
# answers the golden frames is as far from them as the manifest's floors allow, and from the model as it was a little more.
# answers the golden frames is as far from them as the manifest's floors allow, and from the model that it was a little more.
SAME_DB, SLACK_DB = 100.0, 3.0


def damage(bundle: Path, count: int, hostile: int) -> bool:
    """Damage a bundle in `count` ways, and `hostile` times its model alone, with right hashes, in a process of its own."""
    rng = random.Random(0)
    ways: list[tuple[str, Callable[[Path, random.Random], Path]]] = [
        ("bytes flipped", flipped),
        ("file cut", cut),
        ("manifest: a value changed", changed),
        ("manifest: bytes flipped", scrawled),
        ("files swapped, lost, added or linked", mixed),
        (".ttk: bytes flipped or cut", torn),
        (".ttk: escaping paths", escaping),
        (".ttk: sizes that lie, bombs", bomb),
    ]
    found: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as root:
        outside = Path(root, "outside")
        outside.mkdir()
        (outside / "canary").write_text("as it was")
        golden_frame, golden, floors = right_answers(bundle)
        jobs = [ways[i % len(ways)] for i in range(count)] + [("model damaged, hashes right (isolated)", rehashed)] * hostile
        for i, (name, way) in enumerate(track(jobs, "damaged bundles")):
            place = Path(root, "inside", "work")
            shutil.rmtree(place.parent, ignore_errors=True)
            place.parent.mkdir()
            shutil.copytree(bundle, place / "bundle")
            target = way(place / "bundle", random.Random(rng.random()))
            before = snapshot(Path(root), place)
            verdict = outcome(target, golden_frame, golden, floors if way is rehashed else None)
            found.setdefault(name, Counter())[verdict.split(":")[0]] += 1
            if verdict.startswith("WRONG") or snapshot(Path(root), place) != before:
                wrong.append(f"{i}, {name}: {verdict}")
    table = Table("damage", "bundles", "refused, with the reason", "answered rightly", "anything else")
    for name, counts in found.items():
        rest = sum(counts.values()) - counts["refused"] - counts["right"]
        table.add_row(name, str(sum(counts.values())), str(counts["refused"]), str(counts["right"]), str(rest))
    console.print(table)
    for line in wrong[:20]:
        console.print(line, markup=False)
    return not wrong


def right_answers(bundle: Path) -> tuple[Any, dict[str, Any], dict[str, float]]:
    """A frame, the raw answers to it by function, and the dB that proven answers have at least, by kind of function."""
    with load(bundle, threads=1) as session:
        frame, parity = session.bundle.golden()["frames"][:1], session.bundle.manifest.parity
        floors = {"restore": parity.floor_db, "predict": parity.answer_floor_db or parity.floor_db}
        return frame, {f: session.run_raw((f,), frame) for f in session.functions}, floors


def outcome(target: Path, frame: Any, golden: dict[str, Any], floors: dict[str, float] | None) -> str:
    """Open a bundle, isolated where `floors` are given, and ask it everything: "refused: why", "right", or "WRONG: what"."""
    try:
        with load(target, threads=1, isolate=floors is not None, time_limit=20) as session:
            for function in session.functions:
                for name, value in session.run_raw((function,), frame).items():
                    want = golden.get(function, {}).get(name)
                    if want is None:
                        return f"WRONG: {function} answers {name}"
                    kind = function.split("/")[0]
                    db = psnr_db(value, want, peak_of(kind, want))
                    if db < (SAME_DB if floors is None else floors[kind] - SLACK_DB):
                        return f"WRONG: {function} answers otherwise, {db:.1f} dB"
    except TaskTokEdgeError as error:
        return f"refused: {error}" if str(error) else "WRONG: refused without a reason"
    except Exception as error:  # noqa: BLE001  # that is what is looked for
        return f"WRONG: {type(error).__name__}: {error}"
    return "right"


def snapshot(root: Path, place: Path) -> dict[str, str]:
    """The hashes of all files that a bundle must not touch: those around it."""
    files = (f for f in root.rglob("*") if f.is_file() and place not in f.parents)
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def any_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(f for f in folder.rglob("*") if f.is_file()))


def flip(data: bytes, rng: random.Random, n: int) -> bytes:
    changed = bytearray(data)
    for _ in range(n):
        changed[rng.randrange(len(changed))] ^= rng.randrange(1, 256)
    return bytes(changed)


def flipped(folder: Path, rng: random.Random) -> Path:
    file = any_file(folder, rng)
    file.write_bytes(flip(file.read_bytes(), rng, rng.choice((1, 2, 100))))
    return folder


def cut(folder: Path, rng: random.Random) -> Path:
    file = any_file(folder, rng)
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])
    return folder


def scrawled(folder: Path, rng: random.Random) -> Path:
    file = folder / "manifest.json"
    file.write_bytes(flip(file.read_bytes(), rng, rng.choice((1, 1, 1, 3))))
    return folder


def changed(folder: Path, rng: random.Random) -> Path:
    """Another value, or none, at a place of the manifest drawn by lot."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_bytes())
    at: Any = manifest
    while True:
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.1:
            break
        at = at[key]
    others: list[Any] = [
        None,
        -1,
        0,
        1 << 62,
        1e400,
        "",
        "../../outside/canary",
        "/etc/passwd",
        [],
        {},
        True,
        "x" * 10000,
        "\u202e",
    ]
    if rng.random() < 0.2:
        del at[key]
    else:
        at[key] = rng.choice(others)
    file.write_text(json.dumps(manifest))
    return folder


def mixed(folder: Path, rng: random.Random) -> Path:
    first, second = any_file(folder, rng), any_file(folder, rng)
    what = rng.randrange(5)
    if what == 0:
        first.unlink()
    elif what == 1:
        (folder / f"more-{rng.randrange(99)}").write_bytes(b"more")
    elif what == 2:
        first.unlink()
        first.symlink_to(rng.choice(["../../../outside/canary", "/etc/passwd", "manifest.json", "."]))
    elif what == 3:
        first.unlink()
        first.mkdir()
    else:
        one, other = first.read_bytes(), second.read_bytes()
        first.write_bytes(other)
        second.write_bytes(one)
        if first == second:
            first.write_bytes(b"")
    return folder


def torn(folder: Path, rng: random.Random) -> Path:
    file = pack(folder, folder.parent / "b.ttk")
    data = file.read_bytes()
    # The ends of a zip file, its members' headers and its directory, tell more lies than its middle.
    data = data[: rng.randrange(len(data))] if rng.random() < 0.4 else flip(data[:-400], rng, 2) + flip(data[-400:], rng, 3)
    file.write_bytes(data)
    return file


def zipped(folder: Path, more: Callable[[zipfile.ZipFile], None]) -> Path:
    file = folder.parent / "b.ttk"
    with zipfile.ZipFile(file, "w") as archive:
        for member in sorted(f for f in folder.rglob("*") if f.is_file()):
            archive.write(member, member.relative_to(folder))
        more(archive)
    return file


def escaping(folder: Path, rng: random.Random) -> Path:
    name = rng.choice(
        ["../outside/canary", "../../outside/canary", "/tmp/canary", "a/../../canary", "C:\\canary", "..\\canary", "con"]
    )

    def more(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        if rng.random() < 0.3:
            info.external_attr = 0o120777 << 16  # a link
        archive.writestr(info, b"mine now")

    return zipped(folder, more)


def bomb(folder: Path, rng: random.Random) -> Path:
    if rng.random() < 0.3:  # 64 MB of zeros in the place of a file, 64 kB zipped
        file = any_file(folder, rng)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in sorted(f for f in folder.rglob("*") if f.is_file()):
                data = bytes(64 << 20) if member == file else member.read_bytes()
                archive.writestr(str(member.relative_to(folder)), data)
        target = folder.parent / "b.ttk"
        target.write_bytes(buffer.getvalue())
        return target
    file = zipped(folder, lambda archive: archive.writestr("manifest.json", b"{}") if rng.random() < 0.3 else None)
    data = bytearray(file.read_bytes())
    at = data.rfind(b"PK\x01\x02")  # the last member's entry in the directory: its sizes are told anew
    data[at + 20 : at + 28] = rng.choice([b"\xff" * 8, b"\x00" * 8, rng.randbytes(8), b"\xff\xff\xff\x7f" * 2])
    file.write_bytes(bytes(data))
    return file


def rehashed(folder: Path, rng: random.Random) -> Path:
    """The engine's own file is damaged, and the manifest agrees with it."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    model = max((name for name in manifest["files"] if name.startswith("model")), key=lambda n: manifest["files"][n]["bytes"])
    if rng.random() < 0.3:
        model = manifest["functions"][0]["file"]
    file = folder / model
    data = flip(file.read_bytes(), rng, rng.choice((1, 10, 1000)))
    file.write_bytes(data if rng.random() < 0.8 else data[: rng.randrange(1, len(data))])
    size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["files"][model] = {"bytes": size, "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def digest(answer: object) -> str:
    match answer:
        case Classification():
            told = answer.scores.tobytes()
        case Segmentation():
            told = answer.mask.tobytes()
        case Detections():
            told = answer.boxes.tobytes() + answer.scores.tobytes()
        case _:
            raise TypeError(type(answer))
    return hashlib.sha256(told).hexdigest()


def frames(bundle: Path, count: int) -> bool:
    """Put `count` frames through one session: answers stay, memory too."""
    many = np.random.default_rng(0).integers(0, 256, (16, 160, 160, 3), np.uint8)
    process, sizes, changed_answers = psutil.Process(), [], 0
    with load(bundle) as session:
        want = {(i, task): digest(session.predict(many[i], task)) for i in range(len(many)) for task in session.tasks}
        start = time.monotonic()
        for n in track(range(count), "frames"):
            key = (n % len(many), session.tasks[n % len(session.tasks)])
            changed_answers += digest(session.predict(many[key[0]], key[1])) != want[key]
            if n % (count // 20) == count // 20 - 1:
                gc.collect()
                sizes.append(process.memory_info().rss / 2**20)
        minutes = (time.monotonic() - start) / 60
    growth = sizes[-1] / sizes[0] - 1
    table = Table(
        "frames",
        "minutes",
        "answers changed",
        "MiB after 5 %",
        "MiB at the end",
        "grown by",
        title=session.bundle.manifest.name,
    )
    table.add_row(str(count), f"{minutes:.1f}", str(changed_answers), f"{sizes[0]:.1f}", f"{sizes[-1]:.1f}", f"{growth:.2%}")
    console.print(table)
    return not changed_answers and growth < 0.02


def cycles(bundle: Path, count: int) -> bool:
    """Open and close `count` sessions."""
    process = psutil.Process()

    def held() -> tuple[float, int, int, int]:
        gc.collect()
        if sys.platform == "linux":  # what the C library has been given back but keeps is no leak: it is returned first
            ctypes.CDLL(None).malloc_trim(0)
        kept = len([f for f in Path(tempfile.gettempdir()).iterdir() if f.name.startswith("tasktok-")])
        return process.memory_info().rss / 2**20, process.num_fds(), process.num_threads(), kept

    def once() -> None:
        with load(bundle, threads=1) as session:
            session.submit(session.bundle.golden()["frames"][0], session.tasks[0]).result()

    for _ in range(max(count // 10, 1)):
        once()
    before = held()
    for _ in track(range(count), "open, answer, close"):
        once()
    after = held()
    table = Table("", "MiB", "open files", "threads", "temporary folders", title=f"{count} sessions of {bundle.name}")
    for name, row in (("before", before), ("after", after)):
        table.add_row(name, f"{row[0]:.1f}", *map(str, row[1:]))
    console.print(table)
    return after[0] < 1.02 * before[0] and all(a <= b for a, b in zip(after[1:], before[1:], strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("damage", "frames", "cycles"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int)
    parser.add_argument("--hostile", type=int, default=300)
    words = parser.parse_args()
    if words.what == "damage":
        good = damage(words.bundle, words.count or 10_000, words.hostile)
    elif words.what == "frames":
        good = frames(words.bundle, words.count or 100_000)
    else:
        good = cycles(words.bundle, words.count or 1000)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
