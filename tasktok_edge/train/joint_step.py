"""One step of TaskTok's own training: step A moves the restorer, step B the task network (section 2.1 of its code)."""

from collections.abc import Mapping
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tasktok_edge.data.official import TASKS
from tasktok_edge.model.task_nets import TaskNet
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.train.joint_recipe import JointRecipe
from tasktok_edge.train.loop import Group, update_together
from tasktok_edge.train.losses import token_loss
from tasktok_edge.train.views import BatchMean, answer_loss, feature_distance, look

Batch = Mapping[str, Tensor | list[Tensor]]


class JointStep:
    """What moves, and how. Encoder, latent tokens and pre-restorer never do; `oracles` are the frozen teachers."""

    def __init__(self, recipe: JointRecipe, model: TaskTok, oracles: nn.ModuleDict, accelerator: Accelerator) -> None:
        self.recipe, self.model, self.oracles, self.accelerator = recipe, model, oracles, accelerator
        self.mean = BatchMean(accelerator)
        model.eval().requires_grad_(False)
        oracles.eval().requires_grad_(False)
        for module in (model.tokenizer.decoder, model.refiner, model.switch):
            module.requires_grad_(True)
        self.groups = self._groups()

    def _groups(self) -> dict[str, Group]:
        r, model = self.recipe, self.model
        decoder, refiner = list(model.tokenizer.decoder.parameters()), list(model.refiner.parameters())
        groups = {
            "decoder": Group(decoder, r.decoder_rate, r.steps, r.restorer_decay),
            "refiner": Group(refiner, r.refiner_rate, r.steps, r.restorer_decay),
        }
        for task in TASKS:
            switch, net = [model.switch.logits[task]], list(model.task_nets[task].parameters())
            groups[f"switch-{task}"] = Group(switch, r.switch_rate, r.switch_steps(task), r.restorer_decay)
            groups[f"net-{task}"] = Group(net, r.net_rates[task], r.own_steps(task), r.net_decay, momentum=r.net_momentum)
        return groups

    def __call__(self, task: str, batch: Batch) -> dict[str, Tensor]:
        """Take both steps on this process' share of a batch; gives the losses, of this process."""
        restored, losses = self._restorer(task, batch)
        return losses | {task: self._task_net(task, batch, restored)}

    def _restorer(self, task: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Step A: refiner, decoder and this task's switch, by the features that student and teacher see."""
        recipe, model = self.recipe, self.model
        student, teacher = self.nets(task)
        clean, degraded, size = cast(Tensor, batch["clean"]), cast(Tensor, batch["degraded"]), _valid_size(batch)
        cast(nn.Module, student).eval().requires_grad_(False)
        with self.accelerator.autocast():
            with torch.no_grad():
                z, target = model.encode(degraded), model.tokens(clean)
                wanted = [look(net, clean, size) for net in (student, teacher)]
            refined = model.refiner(z)
            restored = model.decode(model.switch(z, refined, task))
            seen = [look(net, restored, size) for net in (student, teacher)]
            high = torch.stack([feature_distance(a, b, self.mean) for a, b in zip(seen, wanted, strict=True)]).sum()
            p = model.switch.probabilities(task)
            # Every process has the same switch and as many images: this mean needs no other's count.
            tokens = token_loss(refined.float(), target.float(), p)
            loss = recipe.feature_weight * high + recipe.token_weight * tokens + recipe.mask_weight * p.mean()
        self.accelerator.backward(loss)
        update_together([self.groups[part] for part in ("decoder", "refiner", f"switch-{task}")], self.accelerator)
        return restored.detach().float(), {f"high-{task}": high.detach(), "tokens": tokens.detach()}

    def _task_net(self, task: str, batch: Batch, restored: Tensor) -> Tensor:
        """Step B: the task network, on the restored images and the first half of the clean ones."""
        student, teacher = self.nets(task)
        clean = cast(Tensor, batch["clean"])
        both = with_clean_half(batch, len(clean), self.accelerator)
        clean_twice = cast(Tensor, both.pop("clean"))
        size = _valid_size(both)
        cast(nn.Module, student).train(self.recipe.norms_learn).requires_grad_(True)
        with self.accelerator.autocast():
            with torch.no_grad():
                wanted = look(teacher, clean_twice, size)
            seen = look(student, torch.cat([restored, clean_twice[len(clean) :]]), size)
            answer = answer_loss(student, self.model.config.tasks[task].kind, seen, both, self.mean)
            loss = answer + self.recipe.drift_weight * feature_distance(seen, wanted, self.mean)
        self.accelerator.backward(loss)
        self.groups[f"net-{task}"].update(self.accelerator)
        self._share_statistics(cast(nn.Module, student).eval())
        return answer.detach()

    def nets(self, task: str) -> tuple[TaskNet, TaskNet]:
        """Student and teacher."""
        return self.model.task_net(task), cast(TaskNet, self.oracles[task])

    def _share_statistics(self, net: nn.Module) -> None:
        """Average what batch normalisation counted, so that every process goes on with the same network."""
        if self.accelerator.num_processes == 1 or not self.recipe.norms_learn:
            return
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            for buffer in (norm.running_mean, norm.running_var):
                assert buffer is not None
                buffer.copy_(self.accelerator.reduce(buffer, reduction="mean"))


def clean_half(n: int, process: int, processes: int) -> int:
    """How many of a process' `n` images are in the first half of the batch, of which it has every `processes`-th.

    >>> clean_half(16, 0, 1), [clean_half(2, r, 3) for r in range(3)]
    (8, [1, 1, 1])
    """
    return max(-((process - n * processes // 2) // processes), 0)


def with_clean_half(batch: Batch, n: int, accelerator: Accelerator) -> dict[str, Tensor | list[Tensor]]:
    """Images and labels of the batch followed by those of its first half: what step B sees."""
    half = clean_half(n, accelerator.process_index, accelerator.num_processes)
    twice: dict[str, Tensor | list[Tensor]] = {}
    for key, value in batch.items():
        if key != "degraded":
            twice[key] = value + value[:half] if isinstance(value, list) else torch.cat([value, value[:half]])
    return twice


def _valid_size(batch: Batch) -> Tensor | None:
    size = batch.get("valid_size")
    return size if isinstance(size, Tensor) else None
