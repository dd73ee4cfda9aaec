"""The main job in one go: export the shipped model for every target, run what runs here, judge it, show it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tasktok_edge.contestants import judging_device
from tasktok_edge.data.heldout import HeldOut, held_out
from tasktok_edge.export import TARGETS
from tasktok_edge.frames import crop_resize, windows
from tasktok_edge.manifest import Precision
from tasktok_edge.model.checkpoint import Checkpoint, default_for, load_checkpoint
from tasktok_edge.parity import Exported, export_verified
from tasktok_edge.picture import before_after
from tasktok_edge.progress import Doing
from tasktok_edge.reference import Reference
from tasktok_edge.report import Report
from tasktok_edge.runtimes import Session, load
from tasktok_edge.scores import check_answers_scenes
from tasktok_edge.timing import Latency, measure
from tasktok_edge.validate import Validation, Wish, validate

SERVER = "scenes-server"
PICTURE_FRAMES = 4


@dataclass
class Outcome:
    """All that the table shows."""

    exported: list[Exported]
    report: Report
    selected: dict[str, tuple[int, list[int]]]  # task -> (number of tokens, those that are replaced)
    latency: dict[str, dict[str, Latency]] = field(default_factory=dict)  # task -> candidate -> figures; the server first
    picture: Path | None = None


def run_demo(
    out: Path, *, checkpoint: str | None, precision: Precision, n: int, runs: int, threads: int
) -> Iterator[Doing | Outcome]:
    """Do it all under `out`; yields what is being done, and the `Outcome` last."""
    torch.set_num_threads(threads)
    name = checkpoint or default_for(precision)
    model = load_checkpoint(name)
    check_answers_scenes(model.model)
    config = model.model.config
    tasks = tuple(config.tasks)
    exported = []
    for target in TARGETS:
        yield Doing(f"export {target}")
        path = out / f"{config.preset}-{target}-{precision}"
        exported.append(export_verified(model, target, path, tasks=tasks, precision=precision, overwrite=True))
    here = [e.path for e in exported if e.manifest.parity.status != "not_run"]
    report: Report | None = None
    with ExitStack() as stack:
        wish = Wish(tuple(here), out / "demo", server=SERVER, n=n, threads=threads, same_as=name)
        for step in validate(wish, stack):
            if isinstance(step, Validation):
                report = step.report
            else:
                yield step
    assert report is not None
    selected = {task: (config.tokenizer.tokens, model.model.switch.selected(task)) for task in tasks}
    outcome = Outcome(exported, report, selected)
    devices = [path for path in here if judging_device(path) == "auto"]  # the reference evaluator has no speed to tell of
    sessions = {path.name: load(path, proof="measured", threads=threads) for path in devices}
    shown = list(held_out(PICTURE_FRAMES))
    for task in tasks:
        yield Doing(f"latency, {task}")
        outcome.latency[task] = _latency(task, model, sessions, shown[0], runs=runs)
    yield Doing("picture")
    outcome.picture = _picture(out / "before-after.png", shown, sessions, outcome)
    for session in sessions.values():
        session.close()
    yield outcome


def _latency(task: str, model: Checkpoint, sessions: Mapping[str, Session], held: HeldOut, *, runs: int) -> dict[str, Latency]:
    """A frame of the function's size in, the answer out, all candidates in turn."""
    frame = crop_resize(held.degraded, windows(*held.degraded.shape[:2])[0], model.model.config.image_size)
    teacher, student = Reference(load_checkpoint(SERVER).model), Reference(model.model)
    candidates: dict[str, Callable[[], object]] = {
        SERVER: lambda: teacher.predict(frame, task),
        f"{model.model.config.preset} in PyTorch": lambda: student.predict(frame, task),
    }
    for name, session in sessions.items():
        candidates[name] = lambda session=session: session.predict(frame, task)  # type: ignore[misc]
    return {found.name: found for found in measure(candidates, runs=runs)}


def _picture(path: Path, shown: list[HeldOut], sessions: Mapping[str, Session], outcome: Outcome) -> Path | None:
    if not sessions:
        return None
    name, session = next(iter(sessions.items()))
    server = Reference(load_checkpoint(SERVER).model)
    columns = {}
    for task in outcome.report.metrics:
        results = [session(h.degraded, task) for h in shown]
        columns[f"device: {task}"] = [(r.frame, r.answer) for r in results]
    task = list(outcome.report.metrics)[-1]
    columns[f"server: {task}"] = [(server.restore(h.degraded, task), server.predict(h.degraded, task)) for h in shown]
    before_after(path, shown, columns, title=f"{name}: held-out frames under Mix-B", selected=outcome.selected)
    return path


if __name__ == "__main__":  # python -m tasktok_edge.demo
    from tasktok_edge.cli import verb

    verb("demo")()
