"""What was seen of each frame, kept line by line, so that a run that was killed goes on, and several processes share the work.

A run is known by what decides its numbers, and has a folder of that name. Every process appends to a file of its own; what all
of them hold together is read in the order of the frames, so that the number of processes changes nothing.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

Seen = dict[str, Any]  # of one frame, as JSON takes it; `i` is its position
PATIENCE = timedelta(hours=24)  # the first process may wait so long for the last


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's."""

    rank: int = 0
    processes: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


def share() -> Share:
    """Ask the launcher, `accelerate launch` or `torchrun`; alone where there is none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Share()
    from accelerate import PartialState

    state = PartialState(cpu=True, timeout=PATIENCE)
    return Share(state.process_index, state.num_processes)


def wait_for_all(own: Share) -> None:
    """Return when every process has come here."""
    if own.processes > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def run_folder(out: Path, settings: Mapping[str, object]) -> Path:
    """The folder of a run with these settings; they lie inside, for people."""
    told = json.dumps(settings, sort_keys=True, indent=1)
    folder = out / "evidence" / hashlib.sha256(told.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(told + "\n")
    return folder


def read(folder: Path) -> dict[int, Seen]:
    """All frames that were seen so far, by position, in order; a line that a kill cut short is left out."""
    found: dict[int, Seen] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                seen = json.loads(line)
            except ValueError:
                continue
            found[seen["i"]] = seen
    return dict(sorted(found.items()))


def keep(folder: Path, own: Share, seen: Iterator[Seen]) -> Iterator[int]:
    """Append each frame's line as soon as it is there; yields how many are kept."""
    file = folder / f"{own.rank}-of-{own.processes}.jsonl"
    with file.open("a", encoding="utf-8") as stream:
        if stream.tell():
            stream.write("\n")  # behind a line that was cut short; empty ones are passed over
        for n, one in enumerate(seen, 1):
            stream.write(json.dumps(one) + "\n")
            stream.flush()
            yield n
