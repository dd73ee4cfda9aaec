"""Frames that a device has answered already, as sources: all of a recording, or those of another source that are in one."""

from collections.abc import Iterator, Mapping, Sequence

from tasktok_edge.data.sources import Item, Source
from tasktok_edge.errors import UsageError
from tasktok_edge.recording import Recording, frame_sha256


class Recorded:
    """The frames of a recording, of which no labels are known."""

    labels: Mapping[str, int] = {}

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.tasks: tuple[str, ...] = recording.tasks
        self.told = f"frames recorded in {recording.folder}"

    def __len__(self) -> int:
        return len(self.recording)

    def items(self, chosen: Sequence[int]) -> Iterator[Item]:
        for i in chosen:
            yield Item(self.recording.name(i), self.recording.read(i)[0], None, None, self.tasks, "as they are")


class Both:
    """The frames of a source, with all that is known of them, that every recording has too."""

    def __init__(self, source: Source, recordings: Sequence[Recording]) -> None:
        self.source, self.tasks, self.labels = source, source.tasks, source.labels
        everything = range(len(source))
        self.places = [
            i
            for i, item in zip(everything, source.items(everything), strict=True)
            if all(frame_sha256(item.frame) in recording.places for recording in recordings)
        ]
        if not self.places:
            names = ", ".join(str(recording.folder) for recording in recordings)
            raise UsageError(f"none of the frames of {source.told} is in {names}: record the very same frames, losslessly")
        self.told = f"{source.told}, those that were recorded"

    def __len__(self) -> int:
        return len(self.places)

    def items(self, chosen: Sequence[int]) -> Iterator[Item]:
        yield from self.source.items([self.places[i] for i in chosen])
