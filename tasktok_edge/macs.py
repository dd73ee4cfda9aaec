"""Multiply-adds of every part, as trained and as exported, counted by torch on shapes alone: no weight is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tasktok_edge.export.rewrite import Rewritten
from tasktok_edge.model.config import TaskTokConfig
from tasktok_edge.model.fuse import fuse
from tasktok_edge.model.tasktok import StaticSwitch, TaskTok
from tasktok_edge.published import Published


@dataclass(frozen=True)
class PartCost:
    """Parameters of a part, and its multiply-adds for one frame and one task, attention counted, normalisation not."""

    name: str
    parameters: int
    trained: int  # multiply-adds of the published forward, which computes every row
    exported: int  # of the graph that is exported


def count(config: TaskTokConfig, selected: Mapping[str, Sequence[int]]) -> list[PartCost]:
    """Cost of pre-restorer, encoder, refiner and decoder, in the order of the data, then of each task network.

    `selected` gives the tokens of each task; the refiner's exported cost, at the config's level, is the mean over
    tasks, each computed on its own.
    """
    # A network of the user's own is known by its tensors alone, which are not here.
    tasks = {task: c.model_copy(update={"net": "none"}) if c.net == "own" else c for task, c in config.tasks.items()}
    config = config.model_copy(update={"tasks": tasks, "int8": {}})  # rounding is no multiply-add
    tokenizer, size = config.tokenizer, config.image_size
    with torch.device("meta"):
        model = TaskTok(config).to("meta").eval()
        fused = fuse(model).to("meta")
        lean = Rewritten(fused).to("meta")
        frame = torch.zeros(1, 3, size, size)
        image = torch.zeros(1, 3, tokenizer.image_size, tokenizer.image_size)
        z = torch.zeros(1, tokenizer.tokens, tokenizer.channels)
        n, level = tokenizer.tokens, config.level
        switches = [StaticSwitch(model.refiner, rows, tokens=n, level=level).to("meta") for rows in selected.values()]
        published = Published(model)
        encoder, decoder = model.tokenizer.encoder, model.tokenizer.decoder

        def refined() -> None:
            for switch in switches:
                switch(z, model.refiner.shared(z, level))

        costs = [
            PartCost(
                "pre-restorer",
                _size(model.prerestorer),
                _macs(lambda: model.prerestorer(frame)),
                _macs(lambda: lean.prerestorer(frame)),
            ),
            PartCost(
                "encoder",
                _size(encoder),
                _macs(lambda: published.encode(image)),
                _macs(lambda: lean.encoder(lean.shrink(lean.blocks(frame.permute(0, 2, 3, 1))))),
            ),
            PartCost("refiner", _size(model.refiner), _macs(lambda: model.refiner(z)), _macs(refined) // max(len(switches), 1)),
            PartCost("decoder", _size(decoder), _macs(lambda: published.decode(z)), _macs(lambda: lean.decode(z))),
        ]
        for task, net in model.task_nets.items():
            if config.tasks[task].net != "fasterrcnn_mobilenet_v3_large_fpn":  # its cost depends on what it sees
                trained, exported = (_macs(partial(cast(Any, m.task_nets[task]), m.shown(z, task)[1])) for m in (model, fused))
                costs.append(PartCost(f"{task} network", _size(net), trained, exported))
            else:
                costs.append(PartCost(f"{task} network", _size(net), 0, 0))
    return costs


def function_macs(model: TaskTok, task: str, *, tokens: int | None = None) -> tuple[int, int]:
    """Multiply-adds of the exported functions of a task for one frame: `restore`, and `predict`, which has the network too."""
    parts = {part.name: part.exported for part in count(model.config, {task: model.switch.selected(task, tokens)})}
    restore = sum(cost for name, cost in parts.items() if not name.endswith(" network"))
    return restore, restore + parts.get(f"{task} network", 0)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _macs(run: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        run()
    return int(counter.get_total_flops()) // 2


def size_bytes(model: nn.Module, precision: str) -> int:
    """Weights on disk: matrices at the precision's width, vectors in fp32.

    >>> size_bytes(nn.Linear(10, 10), "int8")
    140
    """
    width = {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    return sum(p.numel() * (width if p.ndim >= 2 else 4) for p in model.parameters())
