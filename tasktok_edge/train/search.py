"""Greedy search of a token order by a task's own metric (TaskTok): which tokens are missed least when they are degraded."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from tasktok_edge.train.loop import Progress

Score = Callable[[Tensor], float]  # tokens (n, N, C) of this process' frames to the metric of all processes


@dataclass(frozen=True)
class Order:
    """Tokens from least to most important. Those after the first `rounds` were not searched but follow by their last score."""

    tokens: list[int]
    rounds: int
    metrics: list[float]  # after each round
    clean: float  # with every token clean
    degraded: float  # with every token degraded


def search(
    score: Score, clean: Tensor, degraded: Tensor, *, name: str, rounds: int | None = None, stop: Callable[[], bool]
) -> Iterator[Progress | Order]:
    """Start from clean tokens (n, N, C); each round degrades the one token that leaves the best score; the `Order` comes last.

    Equal scores keep the lowest index. `stop` is asked before each trial; the first round is finished in any case, and a later
    one that is not finished does not count.
    """
    n = clean.shape[1]
    wanted = n if rounds is None else min(rounds, n)
    trials = sum(n - i for i in range(wanted))
    ends = score(clean), score(degraded)
    current, left, order = clean.clone(), list(range(n)), list[int]()
    metrics, last, tried = list[float](), dict[int, float](), 0
    while left and len(order) < wanted:
        scores = dict[int, float]()
        for token in left:
            if order and stop():
                break
            current[:, token] = degraded[:, token]
            scores[token] = score(current)
            current[:, token] = clean[:, token]
            tried += 1
            yield Progress(name, tried, trials, {"metric": metrics[-1] if metrics else ends[0]})
        if len(scores) < len(left):
            break
        best = max(left, key=lambda token: scores[token])  # the first of equals
        current[:, best] = degraded[:, best]
        left.remove(best)
        order.append(best)
        metrics.append(scores[best])
        last = scores
    rest = sorted(left, key=lambda token: (-last[token], token))
    yield Progress(name, trials, trials, {"metric": metrics[-1]})
    yield Order(order + rest, len(order), metrics, *ends)


def deadline(seconds: float | None, accelerator: Accelerator) -> Callable[[], bool]:
    """Tell from now on whether so many seconds are over, the same to every process at the same call."""
    end = None if seconds is None else time.monotonic() + seconds

    def over() -> bool:
        if end is None:
            return False
        late = time.monotonic() >= end
        if accelerator.num_processes == 1:
            return late
        return bool(accelerator.reduce(torch.tensor(float(late), device=accelerator.device), reduction="sum") > 0)

    return over
