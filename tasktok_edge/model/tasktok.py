"""TaskTok: restore a degraded image for a task, not for the eye."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasktok_edge.errors import UsageError, unknown_word
from tasktok_edge.model.config import Level, PreRestorerConfig, TaskTokConfig
from tasktok_edge.model.fuse import Front, Readout
from tasktok_edge.model.int8 import build_int8
from tasktok_edge.model.prerestorer import build_prerestorer
from tasktok_edge.model.refiner import Refiner, TokenSwitch
from tasktok_edge.model.task_nets import TaskNet, build_task_net
from tasktok_edge.model.tokenizer import Tokenizer


class TaskTok(nn.Module):
    """Pre-restorer, tokenizer, refiner, switch and task networks as one module of five replaceable parts.

    Images are (B, 3, S, S) float in nominal [0, 1], S = `config.image_size`; restored images are never clamped.

    >>> from tasktok_edge.model.config import preset
    >>> model = TaskTok(preset("tiny")).eval()
    >>> model.restore(torch.rand(1, 3, 32, 32), "cls").shape
    torch.Size([1, 3, 32, 32])
    """

    def __init__(self, config: TaskTokConfig) -> None:
        super().__init__()
        self.config = config
        tokenizer = config.tokenizer
        self.prerestorer = build_prerestorer(config.prerestorer, image_size=config.image_size)
        self.tokenizer = Tokenizer(tokenizer)
        self.refiner = Refiner(config.refiner, tokens=tokenizer.tokens, channels=tokenizer.channels)
        self.switch = TokenSwitch(list(config.tasks), tokens=tokenizer.tokens)
        self.task_nets = nn.ModuleDict(
            {
                name: build_task_net(task, image_size=config.image_size)
                for name, task in config.tasks.items()
                if task.net not in ("none", "own")  # one of the user's own is put in by `with_task_net`
            }
        )
        if config.fused:
            self._build_fused()
        if config.int8:
            build_int8(self, config.int8)

    def _build_fused(self) -> None:
        config, tokenizer, pre = self.config, self.config.tokenizer, self.config.prerestorer
        if config.fuses_front and isinstance(pre, PreRestorerConfig):
            self.prerestorer = nn.Identity()
            self.tokenizer.encoder.patch_embed = Front(pre, patch=tokenizer.patch, width=tokenizer.encoder.width)
        for task, net in self.task_nets.items():
            if config.fuses_stem(task):
                own = config.tasks[task]
                cells = tokenizer.patch // own.patch
                stem = Readout(tokenizer.decoder.width, own.widths[0], grid=tokenizer.grid, cells=cells)
                net.get_submodule("backbone").stem = stem

    def task_net(self, task: str) -> TaskNet:
        """The network that answers this task; UsageError where the model only restores for it."""
        self.check_task(task)
        if task not in self.task_nets:
            raise UsageError(f"this model has no network for {task}: it restores only; give one with --task-net")
        return cast(TaskNet, self.task_nets[task])

    def check_task(self, task: str) -> None:
        if task not in self.config.tasks:
            raise unknown_word("task", task, self.config.tasks)

    def encode(self, image: Tensor) -> Tensor:
        """Degraded image (B, 3, S, S) to tokens (B, N, C), the pre-restorer included. The same for every task."""
        return self.tokens(self.prerestorer(image))

    def tokens(self, image: Tensor) -> Tensor:
        """Image to tokens without the pre-restorer: what a clean image is compared by."""
        return self.tokenizer.encoder(_resized(image, self.config.tokenizer.image_size))

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C) to image (B, 3, S, S)."""
        return _resized(self.tokenizer.decoder(tokens), self.config.image_size)

    def shown(self, tokens: Tensor, task: str) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, C) to the restored image (B, 3, S, S), and what the task's network is given.

        That is the image; or where the network's first layer was fused with the decoder's last, the features (B, G*G, D) that
        both read.
        """
        features = self.tokenizer.decoder.features(tokens)
        image = _resized(self.tokenizer.decoder.image(features), self.config.image_size)
        return image, features if self.config.fused and self.config.fuses_stem(task) else image

    def replace_selected(self, z: Tensor, task: str, tokens: int | None = None) -> Tensor:
        """Put refined tokens in the place of those of z (B, N, C) for which this task's switch is on.

        At level `exact` every token is refined and the switch has a gradient: the full model. At the others its choice stands.
        With a budget of `tokens` the switch's most probable ones are replaced, without a gradient.
        """
        if self.config.level != "exact":
            switch = self.static_switch(task, tokens).to(z.device)
            return switch(z, self.refiner.shared(z, self.config.level))
        refined = self.refiner(z)
        if tokens is None:
            return self.switch(z, refined, task)
        replaced = torch.zeros(z.shape[1], 1, dtype=torch.bool, device=z.device)
        replaced[self.switch.selected(task, tokens)] = True
        return torch.where(replaced, refined, z)

    def static_switch(self, task: str, tokens: int | None = None) -> "StaticSwitch":
        """This task's choice of tokens as it is now, or its `tokens` most probable ones, with the refiner: what is exported."""
        chosen, n = self.switch.selected(task, tokens), self.config.tokenizer.tokens
        return StaticSwitch(self.refiner, chosen, tokens=n, level=self.config.level)

    def restore(self, image: Tensor, task: str, tokens: int | None = None) -> Tensor:
        """Degraded image to the image that this task wants to see."""
        self.check_task(task)
        return self.decode(self.replace_selected(self.encode(image), task, tokens))

    def forward(self, image: Tensor, task: str, tokens: int | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Degraded image to the task's raw answer: see the task network's own docstring."""
        net = self.task_net(task)
        return net(self.shown(self.replace_selected(self.encode(image), task, tokens), task)[1])


def rebuilt(model: TaskTok, update: Mapping[str, object], state: Mapping[str, Tensor]) -> TaskTok:
    """Give a model in evaluation mode whose config has this `update` and whose weights are those of `state`, not copies.

    What `state` lacks is zero. A network of the user's own, which no config builds, is taken over as it is.
    """
    own = {task: net for task, net in model.task_nets.items() if model.config.tasks[task].net == "own"}
    with torch.device("meta"):  # shapes alone: to draw the start values of an official size takes minutes
        made = TaskTok(model.config.model_copy(update=dict(update)))
    made.load_state_dict(
        {n: state[n] if n in state else torch.zeros(v.shape) for n, v in made.state_dict().items()}, assign=True
    )
    made.task_nets.update(own)
    return made.eval().requires_grad_(False)


class StaticSwitch(nn.Module):
    """Tokens to tokens with a task's choice baked in as constant indices; every unselected token passes by.

    At level `exact` the refiner's last layer computes the selected rows alone: the same function as the full model, by another
    order of the same sums. At the other levels no layer computes more.
    """

    selected: Tensor
    kept: Tensor
    order: Tensor

    def __init__(self, refiner: Refiner, selected: Sequence[int], *, tokens: int, level: Level = "exact") -> None:
        super().__init__()
        self.refiner, self.level = refiner, level
        kept = [i for i in range(tokens) if i not in set(selected)]
        position = {row: i for i, row in enumerate([*kept, *selected])}
        self.register_buffer("selected", torch.tensor(list(selected), dtype=torch.int64), persistent=False)
        self.register_buffer("kept", torch.tensor(kept, dtype=torch.int64), persistent=False)
        # Where each token stands in [kept, selected]: a gather by constants, as every converter takes it.
        self.register_buffer("order", torch.tensor([position[i] for i in range(tokens)]), persistent=False)

    def forward(self, z: Tensor, shared: Tensor) -> Tensor:
        """z (B, N, C) and what the refiner computes for all tasks, `Refiner.shared`, to the mixed tokens (B, N, C)."""
        if self.selected.shape[0] == 0:
            return z
        refined = self.refiner.refine(z, shared, self.selected, self.kept, self.level)
        if self.kept.shape[0] == 0:
            return refined
        return torch.cat([z.index_select(1, self.kept), refined], 1).index_select(1, self.order)


def _resized(image: Tensor, size: int) -> Tensor:
    """Bicubic without antialias, as TaskTok resizes between the frame and the tokenizer."""
    if image.shape[-1] == size:
        return image
    return F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False, antialias=False)
