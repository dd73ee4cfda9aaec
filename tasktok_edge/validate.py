"""Does the device see what the server saw? Both on the same frames, the difference with its interval, and a verdict."""

import datetime
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tasktok_edge import __version__
from tasktok_edge.contestants import Contestant, check_labels, on_device, recorded, server, unrestored
from tasktok_edge.data.recorded import Both, Recorded
from tasktok_edge.data.sources import Degradation, Item, Source, open_source
from tasktok_edge.errors import UsageError, unknown_word
from tasktok_edge.evidence import observe
from tasktok_edge.machine import machine
from tasktok_edge.metrics import same_answer
from tasktok_edge.model.checkpoint import load_checkpoint
from tasktok_edge.model.config import TaskTokConfig
from tasktok_edge.progress import Doing
from tasktok_edge.recording import Recording, frame_sha256
from tasktok_edge.report import Report
from tasktok_edge.scores import check_answers_scenes
from tasktok_edge.shards import Seen, keep, read, run_folder, share, wait_for_all
from tasktok_edge.verdict import judge

MAX_DB = 100.0  # two equal frames
SCENES = "scenes"
SSIM_SIDE, SSIM_C1, SSIM_C2 = 11, 0.01**2, 0.03**2


@dataclass(frozen=True)
class Wish:
    """What is to be validated, and on what. `degraded` empty: Mix-B for labelled data, nothing for pictures and videos."""

    bundles: tuple[Path, ...]
    out: Path
    recorded: tuple[Path, ...] = ()  # what devices answered elsewhere; their frames are then what is judged on
    server: str = "scenes-server"
    data: str | None = None  # SCENES, or a path; None: scenes, or the frames of `recorded`
    paired: Path | None = None
    n: int = 500
    degraded: tuple[Degradation, ...] = ()
    seed: int = 231
    tasks: tuple[str, ...] = ()
    device: str = "auto"
    threads: int | None = 1  # of engines: with more, ONNX Runtime's spin on while PyTorch answers
    tokens: int | None = None
    same_as: str | None = None  # a checkpoint whose answers `agreement` counts, in place of the server's
    max_drop: float = 0.01
    min_psnr_db: float | None = None


@dataclass
class Validation:
    """The report, and who and what made it, for pictures of single frames; `report` is None in all processes but the first."""

    report: Report | None = None
    source: Source | None = None
    contestants: list[Contestant] = field(default_factory=list)
    seen: Sequence[Seen] = ()


def validate(wish: Wish, stack: ExitStack) -> Iterator[Doing | Validation]:
    """Put every frame to everyone, keep what was seen, and judge; yields what is being done, and the `Validation` last.

    Sessions stay open until `stack` is closed. Raises UsageError for data that the model cannot answer.
    """
    checkpoint = load_checkpoint(wish.server)
    config = checkpoint.model.config
    for task in wish.tasks:
        if task not in config.tasks:
            raise unknown_word("task", task, config.tasks)
    source = _source(wish, config)
    if source.labels and wish.data in (None, SCENES):
        check_answers_scenes(checkpoint.model)
    check_labels(source.labels, checkpoint)
    everyone = [*(unrestored(checkpoint) if source.labels else []), server("server", checkpoint)]
    same_as = checkpoint if wish.same_as is None else load_checkpoint(wish.same_as)
    if same_as.sha256 != checkpoint.sha256:
        everyone.append(server(same_as.model.config.preset, same_as))
    reference = everyone[-1].name
    recordings = [recorded(folder) for folder in wish.recorded]
    bundles = [on_device(b, stack, device=wish.device, threads=wish.threads, tokens=wish.tokens) for b in wish.bundles]
    _check_same(recordings, bundles)
    devices = [*recordings, *bundles]
    everyone += devices
    offered = {t for t in source.tasks if any(t in one.tasks for one in devices)}
    tasks = tuple(t for t in config.tasks if t in offered and (not wish.tasks or t in wish.tasks))
    if not tasks:
        raise UsageError(
            f"{source.told} and the bundles have {', '.join(sorted(offered)) or 'no task'} in common, nothing asked for"
        )
    lacking = [t for t in tasks if t in checkpoint.model.task_nets and t not in same_as.model.task_nets]
    if lacking:
        raise UsageError(f"--same-as {wish.same_as} has no network for {', '.join(lacking)}: name the model of the bundle")
    if wish.min_psnr_db is None and not any(t in checkpoint.model.task_nets for t in tasks):
        raise UsageError(
            f"{wish.server} restores only, so that no answers can be judged: say how near frames must be, --min-psnr"
        )
    twice = {c.name for c in everyone if [d.name for d in everyone].count(c.name) > 1}
    if twice:
        raise UsageError(f"two bundles are named {', '.join(sorted(twice))}: validate one at a time")
    settings = {
        "version": __version__,
        "server": checkpoint.sha256,
        "data": source.told,
        "frames": len(source),
        "tasks": tasks,
        "tokens": wish.tokens,
        "same_as": reference,
        "bundles": {c.name: dict(c.known) for c in everyone if c.is_device},
    }
    own, folder = share(), run_folder(wish.out, settings)
    mine = [i for i in range(len(source)) if i % own.processes == own.rank]
    done = read(folder)
    left = [i for i in mine if i not in done]
    looked = (look(i, item, everyone, tasks, reference) for i, item in zip(left, source.items(left), strict=True))
    for n in keep(folder, own, looked):
        yield Doing("frames", len(mine) - len(left) + n, len(mine))
    wait_for_all(own)
    if not own.first:
        yield Validation()
        return
    seen = list(read(folder).values())
    yield Doing("intervals")
    notes = [f"{len(done)} of {len(seen)} frames were seen before, and kept in {folder}"] if done else []
    head = {
        "tasktok_edge": __version__,
        "notes": tuple(notes),
        "created_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(wish.threads),
        "data": source.told,
        "server": wish.server,
        "server_sha256": checkpoint.sha256,
        "same_as": wish.server if reference == "server" else reference,
    }
    kinds = {t: config.tasks[t].kind for t in tasks}
    report = judge(seen, everyone, kinds, head, max_drop=wish.max_drop, min_psnr_db=wish.min_psnr_db)
    yield Validation(report, source, everyone, seen)


def _check_same(recordings: Sequence[Contestant], bundles: Sequence[Contestant]) -> None:
    """What was recorded must be of the bundles that are given beside it."""
    known = {one.known["sha256"] for one in bundles}
    for one in recordings if known else ():
        if one.known["sha256"] not in known:
            raise UsageError(f"{one.name}: it was recorded with another bundle than {', '.join(b.name for b in bundles)}")


def _source(wish: Wish, config: TaskTokConfig) -> Source:
    recordings = [Recording(folder) for folder in wish.recorded]
    if recordings and wish.data is None:
        if len(recordings) > 1:
            raise UsageError("several recordings need --data: the frames that all of them saw")
        return Recorded(recordings[0])
    source = open_source(
        Path(wish.data) if wish.data not in (None, SCENES) else None,
        n=wish.n,
        degraded=wish.degraded,
        seed=wish.seed,
        image_size=config.image_size,
        tasks=tuple(config.tasks),
        paired=wish.paired,
    )
    return Both(source, recordings) if recordings else source


def look(i: int, item: Item, everyone: Sequence[Contestant], tasks: Sequence[str], reference: str) -> Seen:
    """Everything that will be needed of one frame, as JSON takes it."""
    seen: Seen = {
        "i": i,
        "name": item.name,
        "group": item.group,
        "tasks": [t for t in item.tasks if t in tasks],
        "sha256": frame_sha256(item.frame),
        "found": {},
        "restored": {},
        "same": {},
    }
    made: dict[str, Any] = {}
    to_clean: dict[int, dict[str, float]] = {}
    for one in everyone:
        made[one.name] = one.answer(item, [t for t in seen["tasks"] if t in one.tasks])
        for task, (frame, answer) in made[one.name].items():
            if item.truth is not None and answer is not None:
                seen["found"].setdefault(one.name, {})[task] = observe(answer, item.truth)
            measures = seen["restored"].setdefault(one.name, {}).setdefault(task, {})
            if frame is not None and item.clean is not None:
                if id(frame) not in to_clean:  # a degraded frame is the same for all tasks
                    to_clean[id(frame)] = {"psnr_db": psnr_db(frame, item.clean), "ssim": ssim(frame, item.clean)}
                measures |= to_clean[id(frame)]
            if not one.is_device:
                continue
            restored, _ = made["server"].get(task, (None, None))
            if frame is not None and restored is not None:
                measures["psnr_to_server_db"] = psnr_db(frame, restored)
            _, wanted = made[reference].get(task, (None, None))
            if answer is not None and wanted is not None:
                seen["same"].setdefault(one.name, {})[task] = same_answer(answer, wanted)
    return seen


def psnr_db(frame: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """PSNR of two frames (H, W, 3) uint8, at most 100 dB."""
    return round(float(min(cv2.PSNR(frame, other), MAX_DB)), 4)


def ssim(frame: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Structural similarity of two frames (H, W, 3) uint8: Wang et al. 2004, window 11, sigma 1.5, borders reflected.

    What torchmetrics gives, in a tenth of its time.
    """
    x, y = (f.astype(np.float32) / 255 for f in (frame, other))
    mean_x, mean_y, xx, yy, xy = (cv2.GaussianBlur(f, (SSIM_SIDE, SSIM_SIDE), 1.5) for f in (x, y, x * x, y * y, x * y))
    both, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    found = (2 * both + SSIM_C1) * (2 * (xy - both) + SSIM_C2) / ((squares + SSIM_C1) * (xx + yy - squares + SSIM_C2))
    return round(float(found.mean()), 6)


if __name__ == "__main__":  # python -m tasktok_edge.validate
    from tasktok_edge.cli import verb

    verb("validate")()
