"""Pre-norm transformer blocks, written so that every converter takes them: static shapes, slices, F.linear."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasktok_edge.model.config import ViTConfig


Rows = Tensor | slice  # constant indices, or a run of rows where they stand together


def take(x: Tensor, rows: Rows) -> Tensor:
    """Give the rows of x (B, N, D) as (B, M, D)."""
    return x[:, rows] if isinstance(rows, slice) else x.index_select(1, rows)


class Attention(nn.Module):
    """Multi-head self-attention with biases; `rows` asks for the output of those rows alone."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """x (B, N, D) to (B, N, D), or to (B, M, D): every row still serves as key and value."""
        b, n, d = x.shape
        if rows is None:
            qkv = self.qkv(x)
            q, kv = qkv[..., :d], qkv[..., d:]
        else:
            q = F.linear(take(x, rows), self.qkv.weight[:d], self.qkv.bias[:d])
            kv = F.linear(x, self.qkv.weight[d:], self.qkv.bias[d:])
        m, head = q.shape[1], d // self.heads
        q = q.reshape(b, m, self.heads, head).transpose(1, 2)  # (B, heads, M, head)
        k = kv[..., :d].reshape(b, n, self.heads, head).transpose(1, 2)
        v = kv[..., d:].reshape(b, n, self.heads, head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(y.transpose(1, 2).reshape(b, m, d))


class Block(nn.Module):
    """x += attention(LN x); x += MLP(LN x), with exact GELU (LN eps 1e-5, no dropout, no layer scale, as in TiTok)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.ln_1 = nn.LayerNorm(config.width)
        self.attn = Attention(config.width, config.heads)
        self.ln_2 = nn.LayerNorm(config.width)
        self.fc = nn.Linear(config.width, hidden)
        self.proj = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """x (B, N, D) to (B, N, D), or to (B, M, D) when only those rows are asked for."""
        kept = x if rows is None else take(x, rows)
        x = kept + self.attn(self.ln_1(x), rows)
        return x + self.proj(F.gelu(self.fc(self.ln_2(x))))


class Transformer(nn.Module):
    """A stack of blocks. Only the last block can be cut to `rows`: what a row gives is a key for all in the next block."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """x (B, N, D) to (B, N or M, D); the rows asked for are the same numbers."""
        return self.finish(self.trunk(x), rows)

    def trunk(self, x: Tensor) -> Tensor:
        """All blocks but the last, (B, N, D): the same for every choice of rows."""
        for block in list(self.blocks)[:-1]:
            x = block(x)
        return x

    def finish(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """The last block, for `rows` alone where they are given."""
        return self.blocks[-1](x, rows)


def init_weights(module: nn.Module) -> None:
    """Truncated normal 0.02 for linears and embeddings, as ViTs are usually started."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def embedding(*shape: int) -> nn.Parameter:
    """A learned embedding, started at a normal of width**-0.5."""
    return nn.Parameter(shape[-1] ** -0.5 * torch.randn(*shape))
