"""Slimming: heads, hidden units and channels are cut out, and what is left is a smaller model of the same kind.

Whole blocks go before them, see layers.py.
"""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tasktok_edge.errors import UsageError
from tasktok_edge.model.config import PreRestorerConfig, TaskTokConfig, ViTConfig
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.progress import Doing
from tasktok_edge.quantize.axes import axes_of, sizes

Importance = dict[str, Tensor]  # by group, one number a unit
Plan = dict[str, Tensor]  # by group, the units that stay, rising

CHANNELS_IN_STEPS_OF = 8  # fewer would leave lanes of vector units idle
HIDDEN_IN_STEPS_OF = 32


@dataclass(frozen=True)
class Shares:
    """Which share of the units of each kind stays, in (0, 1]; of `layers`, the share of all blocks of residual stacks.

    `tasks` has the share of a task's own network, where it is not that of `task_nets`.
    """

    layers: float = 1.0
    heads: float = 1.0
    hidden: float = 1.0
    prerestorer: float = 1.0
    task_nets: float = 1.0
    tasks: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {name: value for name, value in vars(self).items() if name != "tasks"}
        faults = [f"{name} {value}" for name, value in (kinds | dict(self.tasks)).items() if not 0 < value <= 1]
        if faults:
            raise UsageError(f"a share that stays is above 0 and at most 1, not {', '.join(faults)}")

    def of_channels(self, group: str) -> float:
        """The share of a group of channels, such as "task_nets.seg/smooth"."""
        if group.startswith("prerestorer"):
            return self.prerestorer
        return self.tasks.get(group.split("/")[0].split(".")[1], self.task_nets)


def probe(model: TaskTok, losses: Iterable[Tensor], *, n: int) -> Generator[Doing, None, Importance]:
    """Estimate what removing each unit does to the loss, by one backward pass a loss, of which there are `n`.

    First-order Taylor: the square of the sum of gradient times weight over what makes the unit (arXiv 1906.10771, eq. 8 in the
    form for groups), averaged over `losses`, which must come from `model`'s own parameters.
    """
    axes = [a for a in axes_of(model) if a.made]
    parameters = dict(model.named_parameters())
    importance: Importance = {}
    for i, loss in enumerate(losses, 1):
        model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        found: Importance = {}
        for axis in axes:
            p = parameters.get(axis.tensor)  # running statistics are none
            if p is None or p.grad is None:
                continue
            along = (p.detach() * p.grad).transpose(0, axis.dim).flatten(1).sum(1) if p.ndim > 1 else p.detach() * p.grad
            units = along.reshape(axis.copies, -1, axis.width).sum((0, 2))
            found[axis.group] = found.get(axis.group, torch.zeros_like(units)) + units
        for group, units in found.items():
            importance[group] = importance.get(group, torch.zeros_like(units)) + units.square()
        yield Doing("importance of units", i, n)
    model.zero_grad(set_to_none=True)
    return {group: (value / n).cpu() for group, value in importance.items()}


def plan(model: TaskTok, importance: Importance, shares: Shares) -> Plan:
    """Choose the units that stay.

    The heads, and the hidden units, of a stack's blocks compete with each other; channels of a convolution net are cut by
    the same share everywhere, the least important first.
    """
    counts = sizes(model, axes_of(model))
    missing = [group for group in counts if group not in importance]
    if missing:
        raise ValueError(f"nothing is known of {', '.join(missing)}")
    chosen: Plan = {}
    for kind, share, step in (("heads", shares.heads, 1), ("hidden", shares.hidden, HIDDEN_IN_STEPS_OF)):
        # Stack by stack: against the whole pipeline's loss a refiner hardly counts, and it would be all but gone.
        for stack in dict.fromkeys(g.split(".blocks.")[0] for g in counts if g.endswith(f"/{kind}")):
            groups = {g: importance[g] for g in counts if g.startswith(stack) and g.endswith(f"/{kind}")}
            chosen |= _compete(groups, share, step)
    for group, n in counts.items():
        if group not in chosen:
            share = shares.of_channels(group)
            keep = min(n, max(CHANNELS_IN_STEPS_OF, round(n * share / CHANNELS_IN_STEPS_OF) * CHANNELS_IN_STEPS_OF))
            chosen[group] = importance[group].topk(keep).indices.sort().values
    return chosen


def cut(model: TaskTok, chosen: Mapping[str, Tensor]) -> TaskTok:
    """Give the model without the units that are not `chosen`: the same numbers as with their readers' weights at zero."""
    axes = axes_of(model)
    state = {name: value.detach() for name, value in model.state_dict().items()}
    for axis in axes:
        if axis.group in chosen:
            tensor = state[axis.tensor]
            length = model.state_dict()[axis.tensor].shape[axis.dim]
            state[axis.tensor] = tensor.index_select(axis.dim, axis.places(chosen[axis.group], length))
    smaller = TaskTok(_config(model, {g: len(units) for g, units in chosen.items()}))
    smaller.load_state_dict({name: value.clone() for name, value in state.items()})
    return smaller.train(model.training)


@torch.no_grad()
def mask(model: TaskTok, chosen: Mapping[str, Tensor]) -> None:
    """Set to zero what reads the units that are not `chosen`, in place: what `cut` must equal."""
    parameters = dict(model.named_parameters())
    for axis in axes_of(model):
        if axis.group in chosen and not axis.made:
            p = parameters[axis.tensor]
            kept = torch.zeros(p.shape[axis.dim], dtype=torch.bool)
            kept[axis.places(chosen[axis.group], p.shape[axis.dim])] = True
            p.index_fill_(axis.dim, torch.nonzero(~kept).flatten(), 0.0)


def _compete(groups: Mapping[str, Tensor], share: float, step: int) -> Plan:
    """Keep `share` of all units, in runs of `step`, at least one run a group; runs are of equally ranked units."""
    ordered = {g: v.sort(descending=True) for g, v in groups.items()}
    runs = [(float(o.values[i : i + step].sum()), g) for g, o in ordered.items() for i in range(step, len(o.values), step)]
    total = sum(-(-len(v) // step) for v in groups.values())
    taken = dict.fromkeys(groups, 1)
    for _, group in sorted(runs, reverse=True)[: max(round(total * share) - len(groups), 0)]:
        taken[group] += 1
    return {g: o.indices[: taken[g] * step].sort().values for g, o in ordered.items()}


def _config(model: TaskTok, counts: Mapping[str, int]) -> TaskTokConfig:
    """The config of what is left."""
    config = model.config

    def vit(path: str, old: ViTConfig) -> ViTConfig:
        blocks = [f"{path}.transformer.blocks.{i}" for i in range(old.layers)]
        kept = tuple(
            (counts.get(f"{b}/heads", old.block(i)[0]), counts.get(f"{b}/hidden", old.block(i)[1]))
            for i, b in enumerate(blocks)
        )
        return old if kept == tuple(old.block(i) for i in range(old.layers)) else old.model_copy(update={"kept": kept})

    tokenizer = config.tokenizer.model_copy(
        update={
            "encoder": vit("tokenizer.encoder", config.tokenizer.encoder),
            "decoder": vit("tokenizer.decoder", config.tokenizer.decoder),
        }
    )
    pre = config.prerestorer
    if isinstance(pre, PreRestorerConfig) and pre.blocks:
        pre = pre.model_copy(update={"width": counts.get("prerestorer/stream", pre.width)})
    tasks = {}
    for task, old in config.tasks.items():
        own = f"task_nets.{task}"
        widths = tuple(counts.get(f"{own}/stage.{i}", width) for i, width in enumerate(old.widths))
        update = {"stem": counts.get(f"{own}/stem", old.stem), "widths": widths, "head": counts.get(f"{own}/lateral", old.head)}
        tasks[task] = old.model_copy(update=update) if old.net == "scenes" else old
    update = {"tokenizer": tokenizer, "refiner": vit("refiner", config.refiner), "prerestorer": pre, "tasks": tasks}
    return TaskTokConfig.model_validate(config.model_copy(update=update).model_dump())


def weights_left(model: nn.Module, smaller: nn.Module) -> float:
    """Share of the parameters that are left."""
    return sum(p.numel() for p in smaller.parameters()) / sum(p.numel() for p in model.parameters())
