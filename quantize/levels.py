"""Levels: refine only the tokens that a task selects, or fewer. Another function than the server's: tune, then compare."""

from copy import deepcopy

import torch

from tasktok_edge.errors import UsageError
from tasktok_edge.model.config import Level
from tasktok_edge.model.tasktok import TaskTok


def with_level(model: TaskTok, level: Level, tokens: float | None = None) -> TaskTok:
    """Give a copy of `model` at another level; its weights stay as they are.

    `tokens` in (0, 1] is the share of tokens that each task then selects, those of the highest probability; None leaves the
    selection. Raises UsageError for another share.
    """
    if tokens is not None and not 0 < tokens <= 1:
        raise UsageError(f"the share of tokens that a task selects is above 0 and at most 1, not {tokens}")
    made = deepcopy(model)
    made.config = model.config.model_copy(update={"level": level})
    if tokens is not None:
        for task in made.config.tasks:
            _select(made, task, max(1, round(tokens * model.config.tokenizer.tokens)))
    return made


@torch.no_grad()
def _select(model: TaskTok, task: str, n: int) -> None:
    """Let the `n` tokens of the highest logits be the selected ones, and keep the order of all."""
    logits = model.switch.logits[task]
    order = torch.sort(logits, descending=True, stable=True).indices
    logits[order] = n - 0.5 - torch.arange(len(order), dtype=logits.dtype, device=logits.device)
