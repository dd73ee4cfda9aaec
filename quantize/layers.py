"""Slimming by whole blocks: those go whose absence costs the loss least."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import cast

import torch
from torch import nn

from tasktok_edge.model.config import PreRestorerConfig, TaskTokConfig, ViTConfig
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.progress import Doing

Kept = dict[str, list[int]]  # by the name of a stack, the blocks that stay, rising

BRANCH_ENDS = ("attn.out_proj", "proj", "conv_2")  # what a block adds to its stream ends in one of these


def stacks_of(model: TaskTok) -> dict[str, int]:
    """Name every stack of residual blocks that can lose some, and how many it has."""
    config = model.config
    found = {
        "tokenizer.encoder.transformer.blocks": config.tokenizer.encoder.layers,
        "refiner.transformer.blocks": config.refiner.layers,
        "tokenizer.decoder.transformer.blocks": config.tokenizer.decoder.layers,
    }
    if isinstance(config.prerestorer, PreRestorerConfig):
        found["prerestorer.blocks"] = config.prerestorer.blocks
    return {name: n for name, n in found.items() if n > 1}


def choose_blocks(model: TaskTok, loss_of: Callable[[TaskTok], float], share: float) -> Generator[Doing, None, Kept]:
    """Choose the blocks that stay: `share` of all, and at least one of every stack.

    One after the other goes, each time the one without which `loss_of` is least. Not by gradients: how a loss bends over a
    whole block they do not tell.
    """
    kept: Kept = {name: list(range(n)) for name, n in stacks_of(model).items()}
    blocks = sum(map(len, kept.values()))
    n = min(blocks - round(blocks * share), blocks - len(kept))
    for done in range(n):
        yield Doing("blocks that can go", done, n)
        trials = [{**kept, name: [j for j in stay if j != i]} for name, stay in kept.items() if len(stay) > 1 for i in stay]
        kept = min(trials, key=lambda trial: loss_of(without_blocks(model, trial)))
    return kept


def without_blocks(model: TaskTok, kept: Mapping[str, Sequence[int]]) -> TaskTok:
    """Give the model with the blocks `kept` of each stack alone: as if all others added nothing."""
    state: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict().items():
        stack = next((name for name in kept if key.startswith(f"{name}.")), None)
        if stack is None:
            state[key] = value
            continue
        number, rest = key[len(stack) + 1 :].split(".", 1)
        if int(number) in kept[stack]:
            state[f"{stack}.{list(kept[stack]).index(int(number))}.{rest}"] = value
    smaller = TaskTok(_config(model.config, kept))
    smaller.load_state_dict({name: value.clone() for name, value in state.items()})
    return smaller.train(model.training)


@torch.no_grad()
def silence_blocks(model: TaskTok, kept: Mapping[str, Sequence[int]]) -> None:
    """Let the blocks that are not `kept` add nothing, in place: what `without_blocks` must equal."""
    for name, stay in kept.items():
        for i, block in enumerate(cast(nn.ModuleList, model.get_submodule(name))):
            for part, module in block.named_modules() if i not in stay else ():
                for p in module.parameters() if part in BRANCH_ENDS else ():
                    p.zero_()


def _config(config: TaskTokConfig, kept: Mapping[str, Sequence[int]]) -> TaskTokConfig:
    def vit(stack: str, old: ViTConfig) -> ViTConfig:
        stay = kept.get(f"{stack}.transformer.blocks", range(old.layers))
        return old.model_copy(update={"layers": len(stay), "kept": tuple(old.kept[i] for i in stay) if old.kept else ()})

    tokenizer = config.tokenizer.model_copy(
        update={
            "encoder": vit("tokenizer.encoder", config.tokenizer.encoder),
            "decoder": vit("tokenizer.decoder", config.tokenizer.decoder),
        }
    )
    update: dict[str, object] = {"tokenizer": tokenizer, "refiner": vit("refiner", config.refiner)}
    if "prerestorer.blocks" in kept:
        update["prerestorer"] = config.prerestorer.model_copy(update={"blocks": len(kept["prerestorer.blocks"])})
    return config.model_copy(update=update)
