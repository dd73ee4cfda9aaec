"""The token refiner and the per-task token switch of TaskTok: only the selected tokens are replaced."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tasktok_edge.model.config import ViTConfig
from tasktok_edge.model.vit import Transformer, init_weights, token_embedding


class Refiner(nn.Module):
    """Corrects latent tokens: z (B, N, C) to z + R(z)."""

    def __init__(self, config: ViTConfig, *, tokens: int, channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Linear(channels, config.width)
        self.latent_positional_embedding = token_embedding(tokens, config.width)
        self.ln_pre = nn.LayerNorm(config.width)
        self.transformer = Transformer(config)
        self.ln_post = nn.LayerNorm(config.width)
        self.conv_out = nn.Linear(config.width, channels)
        self.apply(init_weights)
        nn.init.zeros_(self.conv_out.weight)  # starts as the identity

    def forward(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """Refine all tokens, or give only the refined `rows` (B, len(rows), C): level `exact`, the same numbers."""
        return self.finish(z, self.trunk(z), rows)

    def trunk(self, z: Tensor) -> Tensor:
        """Everything before the last block, (B, N, D): shared by all tasks."""
        return self.transformer.trunk(self.ln_pre(self.conv_in(z) + self.latent_positional_embedding))

    def finish(self, z: Tensor, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """The last block on the trunk's output x, and the sum with z."""
        residual = self.conv_out(self.ln_post(self.transformer.finish(x, rows)))
        return (z if rows is None else z.index_select(1, rows)) + residual


class TokenSwitch(nn.Module):
    """One logit a token and task; a token is replaced by its refined self where sigmoid(logit) > 0.5, strictly."""

    def __init__(self, tasks: Sequence[str], *, tokens: int) -> None:
        super().__init__()
        self.logits = nn.ParameterDict({task: nn.Parameter(torch.zeros(tokens)) for task in tasks})

    def forward(self, z: Tensor, refined: Tensor, task: str) -> Tensor:
        """Mix z and refined (B, N, C) by hard choice, with the gradient of the soft one (straight-through)."""
        p = self.probabilities(task)[:, None]  # (N, 1)
        soft = p * refined + (1 - p) * z
        hard = torch.where(p > 0.5, refined, z)
        return hard.detach() - soft.detach() + soft

    def probabilities(self, task: str) -> Tensor:
        """How likely each token is replaced, (N,) in (0, 1)."""
        return torch.sigmoid(self.logits[task])

    def selected(self, task: str) -> list[int]:
        """Indices of the tokens that are replaced, rising."""
        return torch.nonzero(self.probabilities(task) > 0.5).flatten().tolist()

    @torch.no_grad()
    def start_from_order(self, task: str, order: Sequence[int]) -> None:
        """Spread p from 0 (order[0], least important) to 1 (order[-1]); half the tokens start selected."""
        p = torch.empty(len(order))
        p[torch.as_tensor(order)] = torch.linspace(0, 1, len(order)).clamp(1e-4, 1 - 1e-4)
        self.logits[task].copy_(torch.logit(p))
