"""Which tokens matter to a task: replace clean tokens by degraded ones, the least missed first."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tasktok_edge.model.task_nets import TaskNet
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.train.losses import task_loss


@torch.no_grad()
def greedy_order(
    model: TaskTok, net: TaskNet, task: str, *, clean: Tensor, degraded: Tensor, labels: Mapping[str, Tensor]
) -> Iterator[list[int]]:
    """Yield the growing order of tokens, least important first; the last one yielded holds all N.

    clean, degraded: (n, 3, S, S) float. Judged by the task's loss and not, as upstream, by its metric: on a few dozen frames
    the metric has so few values that most rounds would be ties. Ties keep the lowest index.
    """
    kind = model.config.tasks[task].kind
    good, bad = model.tokens(clean), model.encode(degraded)
    current, order = good.clone(), list[int]()
    left = list(range(good.shape[1]))
    while left:
        losses = []
        for token in left:
            trial = current.clone()
            trial[:, token] = bad[:, token]
            losses.append(float(task_loss(net, kind, net.features(model.decode(trial)), labels)))
        token = left[min(range(len(left)), key=losses.__getitem__)]
        current[:, token] = bad[:, token]
        left.remove(token)
        order.append(token)
        yield list(order)
