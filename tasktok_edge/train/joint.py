"""One round of TaskTok's joint training, one task a step: step A moves the restorer, step B the task network."""

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from tasktok_edge.data.dataset import to_unit
from tasktok_edge.model.task_nets import TaskNet
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.train.loop import Batch, Group
from tasktok_edge.train.losses import feature_loss, task_loss, token_loss
from tasktok_edge.train.recipe import JointStage

DRIFT_WEIGHT = 0.5  # of the student's features on restored frames from the teacher's on clean ones


class Round:
    """What a round moves, and its step. Encoder and pre-restorer never move; `oracles` are the frozen teachers."""

    def __init__(
        self, seed: int, name: str, stage: JointStage, model: TaskTok, oracles: nn.ModuleDict, accelerator: Accelerator
    ) -> None:
        self.seed, self.name, self.stage, self.accelerator = seed, name, stage, accelerator
        self.model, self.oracles = model, oracles
        self.tasks = [task for task in model.config.tasks if task in stage.task_draw]
        weights = np.array([stage.task_draw[task] for task in self.tasks])
        self.share = dict(zip(self.tasks, weights / weights.sum(), strict=True))
        self.groups = self._groups()

    def _groups(self) -> dict[str, Group]:
        stage, model = self.stage, self.model
        groups = {}
        for part, module, rate in (
            ("decoder", model.tokenizer.decoder, stage.decoder_rate),
            ("refiner", model.refiner, stage.refiner_rate),
        ):
            groups[part] = Group(list(module.parameters()), rate, stage.steps, stage.weight_decay)
        for task in self.tasks:
            own = int(stage.steps * self.share[task])
            switch_steps = max(int(own * stage.switch_share), 1)
            rate = stage.switch_rate_sum[task] * 2 / switch_steps  # the mean of a cosine is half its start
            groups[f"switch-{task}"] = Group([model.switch.logits[task]], rate, switch_steps)
            net = list(model.task_nets[task].parameters())
            groups[f"net-{task}"] = Group(net, stage.task_net_rate, own, stage.weight_decay)
        return groups

    def step(self, i: int, batch: Batch) -> dict[str, Tensor]:
        """Draw the task of step i, move what learns, give the losses."""
        draw = np.random.default_rng([self.seed, *self.name.encode(), i])
        task = str(draw.choice(self.tasks, p=list(self.share.values())))
        self.model.eval()
        if self.stage.restorer_learns:
            restored, losses = self._restorer_step(task, batch)
        else:
            with torch.no_grad(), self.accelerator.autocast():
                restored, losses = self.model.restore(to_unit(batch["degraded"]), task), {}
        return losses | {task: self._task_net_step(task, batch, restored.detach().float())}

    def _restorer_step(self, task: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Step A: refiner, decoder and this task's switch, by the features that the task networks see."""
        stage, model = self.stage, self.model
        student, teacher = model.task_net(task), cast(TaskNet, self.oracles[task])
        clean, degraded = to_unit(batch["clean"]), to_unit(batch["degraded"])
        student.requires_grad_(False)
        with self.accelerator.autocast():
            with torch.no_grad():
                z, target = model.encode(degraded), model.tokens(clean)
                wanted_student, wanted_teacher = student.features(clean), teacher.features(clean)
            refined = model.refiner(z)
            restored = model.decode(model.switch(z, refined, task))
            seen = student.features(restored)
            high = feature_loss(seen, wanted_student) + feature_loss(teacher.features(restored), wanted_teacher)
            p = model.switch.probabilities(task)
            tokens = token_loss(refined.float(), target.float(), p)
            pixels = F.l1_loss(restored.float(), clean)
            loss = high + stage.token_weight * tokens + stage.mask_weight * p.mean() + stage.pixel_weight * pixels
            if stage.task_weight:
                loss = loss + stage.task_weight * task_loss(student, model.config.tasks[task].kind, seen, batch)
        self.accelerator.backward(loss)
        for part in ("decoder", "refiner", f"switch-{task}"):
            self.groups[part].update(self.accelerator)
        return restored, {f"high-{task}": high.detach(), "tokens": tokens.detach(), "pixels": pixels.detach()}

    def _task_net_step(self, task: str, batch: Batch, restored: Tensor) -> Tensor:
        """Step B: the task network, on restored frames and half as many clean ones."""
        student, teacher = self.model.task_net(task), cast(TaskNet, self.oracles[task])
        clean = to_unit(batch["clean"])
        half = len(clean) // 2
        both = {key: torch.cat([value, value[:half]]) for key, value in batch.items() if key not in ("clean", "degraded")}
        student.train().requires_grad_(True)
        with self.accelerator.autocast():
            with torch.no_grad():
                wanted = teacher.features(clean)
            features = student.features(torch.cat([restored, clean[:half]]))
            answer = task_loss(student, self.model.config.tasks[task].kind, features, both)
            drift = feature_loss([f[: len(clean)] for f in features], wanted)
            loss = answer + DRIFT_WEIGHT * drift
        self.accelerator.backward(loss)
        self.groups[f"net-{task}"].update(self.accelerator)
        return answer.detach()
