"""Pre-norm transformer blocks, written so that every converter takes them: static shapes, slices, F.linear."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasktok_edge.model.config import ViTConfig
from tasktok_edge.model.int8 import Int8Linear

Rows = Tensor | slice  # constant indices, or a run of rows where they stand together


def take(x: Tensor, rows: Rows) -> Tensor:
    """Give the rows of x (B, N, D) as (B, M, D)."""
    return x[:, rows] if isinstance(rows, slice) else x.index_select(1, rows)


def linear_rows(layer: nn.Module, x: Tensor, rows: slice) -> Tensor:
    """The outputs `rows` of a linear alone."""
    if isinstance(layer, nn.Linear) and not isinstance(layer, Int8Linear):
        return F.linear(x, layer.weight[rows], layer.bias[rows])
    return cast(Int8Linear, layer).rows(x, rows)  # or what an exporter made of one


class Attention(nn.Module):
    """Multi-head self-attention with biases; `rows` asks for the output of those rows alone.

    `inner` is the width of all heads together: that of the rows, or less where heads were removed.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.inner = heads, heads * head_width
        self.qkv = nn.Linear(width, 3 * self.inner)
        self.out_proj = nn.Linear(self.inner, width)

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """x (B, N, D) to (B, N, D), or to (B, M, D): every row still serves as key and value."""
        if rows is None:
            d = self.inner
            qkv = self.qkv(x)
            return self.attend(qkv[..., :d], qkv[..., d : 2 * d], qkv[..., 2 * d :])
        return self.attend(self.queries(take(x, rows)), *self.keys_values(x))

    def queries(self, x: Tensor) -> Tensor:
        """Rows x (B, M, D) to their queries (B, M, inner)."""
        return linear_rows(self.qkv, x, slice(0, self.inner))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows x (B, N, D) to their keys and values, (B, N, inner) each."""
        d = self.inner
        kv = linear_rows(self.qkv, x, slice(d, 3 * d))
        return kv[..., :d], kv[..., d:]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, M, inner) over keys and values (B, N, inner), and the output's linear: (B, M, D)."""
        q, k, v = (t.reshape(t.shape[0], t.shape[1], self.heads, -1).transpose(1, 2) for t in (q, k, v))  # (B, heads, N, head)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out_proj(y.reshape(y.shape[0], y.shape[1], self.inner))


class Block(nn.Module):
    """x += attention(LN x); x += MLP(LN x), with exact GELU or ReLU (LN eps 1e-5, no dropout, no layer scale, as in TiTok)."""

    def __init__(self, config: ViTConfig, i: int) -> None:
        super().__init__()
        heads, hidden = config.block(i)
        self.ln_1 = nn.LayerNorm(config.width)
        self.attn = Attention(config.width, heads, config.head_width)
        self.ln_2 = nn.LayerNorm(config.width)
        self.fc = nn.Linear(config.width, hidden)
        self.act: nn.Module = nn.ReLU() if config.activation == "relu" else nn.GELU()
        self.proj = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """x (B, N, D) to (B, N, D), or to (B, M, D) when only those rows are asked for."""
        kept = x if rows is None else take(x, rows)
        return self.mlp(kept + self.attn(self.ln_1(x), rows))

    def mlp(self, x: Tensor) -> Tensor:
        """The second half, x + MLP(LN x)."""
        return x + self.proj(self.act(self.fc(self.ln_2(x))))

    def cross(self, x: Tensor, context: Tensor) -> Tensor:
        """Rows x (B, M, D) that see the rows `context` (B, K, D) alone."""
        q = self.attn.queries(self.ln_1(x))
        return self.mlp(x + self.attn.attend(q, *self.attn.keys_values(self.ln_1(context))))


class Transformer(nn.Module):
    """A stack of blocks. Only the last block can be cut to `rows`: what a row gives is a key for all in the next block."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """x (B, N, D) to (B, N or M, D); the rows asked for are the same numbers."""
        return self.finish(self.trunk(x), rows)

    def beside(self, x: Tensor, context: Tensor) -> Tensor:
        """Rows x (B, M, D) to (B, M, D), in every block with the rows `context` (B, K, D) as further keys and values."""
        rows = slice(0, x.shape[1])
        for block in self.blocks:
            x = block(torch.cat([x, context], 1), rows)
        return x

    def cross(self, x: Tensor, context: Tensor, *, first: int = 0) -> Tensor:
        """Rows x (B, M, D) that in every block from the `first` on see the rows `context` (B, K, D) alone."""
        for block in list(self.blocks)[first:]:
            x = cast(Block, block).cross(x, context)
        return x

    def trunk(self, x: Tensor) -> Tensor:
        """All blocks but the last, (B, N, D): the same for every choice of rows."""
        for block in list(self.blocks)[:-1]:
            x = block(x)
        return x

    def finish(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """The last block, for `rows` alone where they are given."""
        return self.blocks[-1](x, rows)


def init_weights(module: nn.Module) -> None:
    """Xavier for linears, and for attention the mimetic start of arXiv 2305.09828.

    With it each row first looks at rows like itself, here: at rows of a near position. A 1-D tokenizer that has to find out
    which latent token looks where learns nothing for thousands of steps from a small random start.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Attention) and module.inner == module.out_proj.out_features:
        _mimetic(module)


@torch.no_grad()
def _mimetic(attention: Attention) -> None:
    # Section 3 there: Wq Wk^T = a I + noise head by head, Wv Wo = b I + noise, each split by its singular values.
    d, heads = attention.inner, attention.heads
    head = d // heads

    def near_identity(gain: float) -> Tensor:
        return gain * (torch.eye(d) + torch.randn(d, d) * d**-0.5)

    for i in range(heads):
        u, s, v = torch.linalg.svd(near_identity(0.7))
        keep = slice(i * head, (i + 1) * head)
        attention.qkv.weight[keep] = (u[:, keep] * s[keep].sqrt()).T
        attention.qkv.weight[d : 2 * d][keep] = v[keep] * s[keep, None].sqrt()
    u, s, v = torch.linalg.svd(near_identity(1.0))  # 0.4 there; what a token reads must not drown in where it is
    attention.qkv.weight[2 * d :] = v * s.sqrt()[:, None]
    attention.out_proj.weight.copy_(u * s.sqrt())


def embedding(*shape: int) -> nn.Parameter:
    """A learned embedding, started at a normal of width**-0.5."""
    return nn.Parameter(shape[-1] ** -0.5 * torch.randn(*shape))


def grid_embedding(rows: int, columns: int, width: int) -> nn.Parameter:
    """A learned embedding (rows * columns, width) started at the sines and cosines of its places in the unit square."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    n = width // 4
    frequencies = math.pi * 2 ** torch.linspace(0, 4, n)
    waves = [f(place.reshape(-1, 1) * frequencies) for place in (x, y) for f in (torch.sin, torch.cos)]
    start = torch.zeros(rows * columns, width)
    start[:, : 4 * n] = torch.cat(waves, 1)
    return nn.Parameter(start)


def token_embedding(tokens: int, width: int) -> nn.Parameter:
    """A learned embedding of latent tokens, started as if they lay on a grid over the image."""
    rows = next(r for r in range(math.isqrt(tokens), 0, -1) if tokens % r == 0)
    return grid_embedding(rows, tokens // rows, width)
