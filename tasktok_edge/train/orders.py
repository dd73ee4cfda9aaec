"""Files of token orders: from least to most important, a row a task, in the layout of the official ones."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError  # the error's name alone: torch's restricted reader raises it

import torch
from torch import Tensor

from tasktok_edge.errors import UsageError
from tasktok_edge.train.search import Order

MAX_BYTES = 50_000_000  # the official ones have some kilobytes
_HELP = "make one with `tasktok-edge greedy`, or use the official one of this variant"


def read_orders(path: Path, *, tasks: Sequence[str], tokens: int) -> dict[str, list[int]]:
    """Read `{"orders": int64 (T, N), "task_names": [...]}`, by torch's restricted reader; each row is a permutation of N.

    Other entries, such as the official files have, are not looked at. UsageError says what is wrong.
    """
    if not path.is_file():
        raise UsageError(f"no orders at '{path}': {_HELP}")
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"'{path}' has {path.stat().st_size} bytes, no file of token orders has: {_HELP}")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise UsageError(f"'{path}' holds more than tensors and names; nothing of it was executed: {_HELP}") from None
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as fault:
        raise UsageError(f"'{path}' is no whole file of torch.save ({type(fault).__name__}): {_HELP}") from None
    if not isinstance(data, Mapping) or "orders" not in data or "task_names" not in data:
        raise UsageError(f"'{path}' lacks 'orders' or 'task_names': {_HELP}")
    names, orders = data["task_names"], data["orders"]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or sorted(names) != sorted(tasks):
        raise UsageError(f"'{path}' orders tokens of {names}, the model's tasks are {', '.join(tasks)}: {_HELP}")
    if not isinstance(orders, Tensor) or orders.dtype != torch.int64 or orders.ndim != 2 or len(orders) != len(names):
        what = f"{tuple(orders.shape)} {orders.dtype}" if isinstance(orders, Tensor) else type(orders).__name__
        raise UsageError(f"'{path}': 'orders' is {what}, expected int64 ({len(names)}, {tokens}): {_HELP}")
    if orders.shape[1] != tokens:
        raise UsageError(f"'{path}' orders {orders.shape[1]} tokens, the model has {tokens}: {_HELP}")
    rows: dict[str, list[int]] = dict(zip(names, orders.tolist(), strict=True))
    wrong = [task for task, row in rows.items() if sorted(row) != list(range(tokens))]
    if wrong:
        raise UsageError(f"'{path}': the order of {', '.join(wrong)} does not hold every token 0 to {tokens - 1} once: {_HELP}")
    return {task: rows[task] for task in tasks}


def write_orders(path: Path, found: Mapping[str, Order], *, facts: Mapping[str, object]) -> Path:
    """Write the orders as `read_orders` takes them, and beside them, with `facts`, as JSON for people; gives that path.

    `rounds` tells for each task how many rounds were searched; the tokens after those follow by their last score.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = torch.tensor([order.tokens for order in found.values()], dtype=torch.int64)
    partial = path.with_name(f".{path.name}.partial")
    torch.save({"orders": table, "task_names": list(found), "rounds": [o.rounds for o in found.values()]}, partial)
    partial.replace(path)
    story = path.with_suffix(".json")
    story.write_text(json.dumps({**facts, "orders": {task: asdict(order) for task, order in found.items()}}, indent=1) + "\n")
    return story
