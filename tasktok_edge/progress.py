"""What a long piece of work yields while it runs; who shows it is the caller's business."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Doing:
    """What is being done, and how far it is."""

    what: str
    done: int = 0
    total: int = 0
