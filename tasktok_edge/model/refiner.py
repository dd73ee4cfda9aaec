"""The token refiner and the per-task token switch of TaskTok: only the selected tokens are replaced."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tasktok_edge.model.config import Level, ViTConfig
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

    def embed(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """What the first block is given, (B, N, D), or its `rows` alone."""
        position: Tensor = self.latent_positional_embedding
        if rows is not None:
            z, position = z.index_select(1, rows), position.index_select(0, rows)
        return self.ln_pre(self.conv_in(z) + position)

    def trunk(self, z: Tensor) -> Tensor:
        """Everything before the last block, (B, N, D)."""
        return self.transformer.trunk(self.embed(z))

    def finish(self, z: Tensor, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """The last block on the trunk's output x, and the sum with z."""
        return (z if rows is None else z.index_select(1, rows)) + self.residual(self.transformer.finish(x, rows))

    def residual(self, x: Tensor) -> Tensor:
        """Rows (B, M, D) of the last block to what is added to the tokens, (B, M, C)."""
        return self.conv_out(self.ln_post(x))

    def shared(self, z: Tensor, level: Level) -> Tensor:
        """What is computed but once, whatever tokens are chosen by how many tasks: (B, N, D), or z itself."""
        return self.trunk(z) if level == "exact" else self.embed(z) if level == "context" else z

    def refine(self, z: Tensor, shared: Tensor, rows: Tensor, others: Tensor, level: Level) -> Tensor:
        """The refined `rows` of z, (B, len(rows), C); `others` are the rows left, `shared` what `self.shared` gave.

        Level `context`: the others are keys and values as they were embedded, in every block. `selected`: they are not seen.
        """
        if level == "exact":
            return self.finish(z, shared, rows)
        x = self.embed(z, rows) if level == "selected" else shared.index_select(1, rows)
        if level == "context" and others.shape[0]:
            x = self.transformer.beside(x, shared.index_select(1, others))
        else:
            x = self.transformer(x)
        return z.index_select(1, rows) + self.residual(x)


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

    def selected(self, task: str, tokens: int | None = None) -> list[int]:
        """Indices of the tokens that are replaced, rising: those above a half, or the `tokens` most probable ones."""
        if tokens is None:
            return torch.nonzero(self.probabilities(task) > 0.5).flatten().tolist()
        order = torch.sort(self.logits[task], descending=True, stable=True).indices
        return sorted(order[:tokens].tolist())

    @torch.no_grad()
    def start_from_order(self, task: str, order: Sequence[int]) -> None:
        """Spread p from 0 (order[0], least important) to 1 (order[-1]); half the tokens start selected."""
        p = torch.empty(len(order))
        p[torch.as_tensor(order)] = torch.linspace(0, 1, len(order)).clamp(1e-4, 1 - 1e-4)
        self.logits[task].copy_(torch.logit(p))
