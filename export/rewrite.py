"""Exact rewrites of the graph: the same function of the same weights, with less to compute.

- Layers that meet at an image become one, where they can (`model/fuse.py`).
- Rows of a transformer's first block that are the same for every image (class, mask and latent tokens): their LayerNorm,
  queries, keys and values become constants.
- Nearest x2 before a 3x3 convolution: four 2x2 convolutions of the small image, one for each phase, 4 taps for 9.
- Resizing between two fixed sizes, bicubic and bilinear: two constant matrices, which every converter takes, no engine
  interprets its own way, and products of matrices are quick at.

The last block's rows that nobody reads are never computed: that cut is in the model itself (`Transformer.finish`).
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasktok_edge.model.config import STRIDE
from tasktok_edge.model.fuse import Front, space_to_depth
from tasktok_edge.model.int8 import Int8Conv2d, Int8Linear
from tasktok_edge.model.swinir import Upsample, WindowAttention
from tasktok_edge.model.task_nets import Segmenter
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.model.tokenizer import Decoder, Encoder
from tasktok_edge.model.vit import Block, Transformer


class FoldedBlock(nn.Module):
    """A first block for one image, whose `before` and `after` rows (1, n, D), LayerNorm `norm` still to come, are constants."""

    before: Tensor
    after: Tensor

    def __init__(self, block: Block, norm: nn.LayerNorm, before: Tensor, after: Tensor) -> None:
        super().__init__()
        self.block = block
        self.register_buffer("before", norm(before))
        self.register_buffer("after", norm(after))
        self.fold()

    def fold(self) -> None:
        """Compute the constants; again where the block's attention was replaced by one of another form."""
        attention = self.block.attn
        for name in ("before", "after"):
            normed = self.block.ln_1(getattr(self, name))
            for part, value in zip("qkv", (attention.queries(normed), *attention.keys_values(normed)), strict=True):
                self.register_buffer(f"{part}_{name}", value)

    def forward(self, x: Tensor) -> Tensor:
        """The rows in between, x (1, M, D) after the norm, to all rows (1, N, D) behind the block."""
        attention = self.block.attn
        normed = self.block.ln_1(x)
        parts = (attention.queries(normed), *attention.keys_values(normed))
        q, k, v = (self._around(part, f"{name}_") for name, part in zip("qkv", parts, strict=True))
        return self.block.mlp(self._around(x, "") + attention.attend(q, k, v))

    def _around(self, x: Tensor, prefix: str) -> Tensor:
        rows = [getattr(self, f"{prefix}before"), x, getattr(self, f"{prefix}after")]
        return torch.cat([r for r in rows if r.shape[1]], 1)


class FoldedOnlyBlock(FoldedBlock):
    """The same where no block follows, so that of all rows only those `after` are wanted: their queries are constants."""

    def forward(self, x: Tensor) -> Tensor:
        """The rows in between, x (1, M, D) after the norm, to the rows `after` (1, n, D) behind the block."""
        attention = self.block.attn
        parts = attention.keys_values(self.block.ln_1(x))
        k, v = (self._around(part, f"{name}_") for name, part in zip("kv", parts, strict=True))
        return self.block.mlp(self.after + attention.attend(self.get_buffer("q_after"), k, v))


class FoldedEncoder(nn.Module):
    """`Encoder` for one image, class and latent rows folded into the first block."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.rows = encoder, encoder.latent_rows
        first, latents = encoder.constant_rows()
        form = FoldedBlock if len(encoder.transformer.blocks) > 1 else FoldedOnlyBlock
        self.first = form(_first(encoder.transformer), encoder.ln_pre, first, latents)

    def forward(self, image: Tensor) -> Tensor:
        encoder = self.encoder
        x = self.first(encoder.ln_pre(encoder.patches(image)))
        if len(encoder.transformer.blocks) > 1:
            x = _others(encoder.transformer, x, self.rows)
        return encoder.conv_out(encoder.ln_post(x))


class CrossDecoder(nn.Module):
    """`Decoder` for one image, whose patches see the latents alone: in the first block their queries are constants."""

    x: Tensor
    q: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("x", decoder.ln_pre(decoder.constant_rows()[:, decoder.patch_rows]))
        self.fold()

    def fold(self) -> None:
        """Compute the constant; again where the block's attention was replaced by one of another form."""
        block = _first(self.decoder.transformer)
        self.register_buffer("q", block.attn.queries(block.ln_1(self.x)))

    def features(self, tokens: Tensor) -> Tensor:
        decoder, block = self.decoder, _first(self.decoder.transformer)
        latents = decoder.ln_pre(decoder.latents(tokens))
        x = block.mlp(self.x + block.attn.attend(self.q, *block.attn.keys_values(block.ln_1(latents))))
        return decoder.ln_post(decoder.transformer.cross(x, latents, first=1))

    def image(self, features: Tensor) -> Tensor:
        return self.decoder.image(features)


class FoldedDecoder(nn.Module):
    """`Decoder` for one image, class and mask rows folded into the first block."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder, self.rows = decoder, decoder.patch_rows
        masks = decoder.constant_rows()
        self.first = FoldedBlock(_first(decoder.transformer), decoder.ln_pre, masks, masks[:, :0])

    def features(self, tokens: Tensor) -> Tensor:
        decoder = self.decoder
        x = self.first(decoder.ln_pre(decoder.latents(tokens)))
        return decoder.ln_post(_others(decoder.transformer, x, self.rows))

    def image(self, features: Tensor) -> Tensor:
        return self.decoder.image(features)


def _first(transformer: Transformer) -> Block:
    return cast(Block, transformer.blocks[0])


def _others(transformer: Transformer, x: Tensor, rows: slice) -> Tensor:
    for block in list(transformer.blocks)[1:-1]:
        x = block(x)
    return transformer.finish(x, rows)


class BlocksFront(nn.Module):
    """`Front` of an image whose blocks lie in its channels already."""

    def __init__(self, front: Front) -> None:
        super().__init__()
        self.front = front

    def forward(self, x: Tensor) -> Tensor:
        return self.front.embed(x)


class PhaseUpsample(nn.Module):
    """`Upsample` without the enlarged image: (B, C, H, W) to (B, C', 2H, 2W).

    Row 2i of the result sees rows i-1, i of the small image with kernel rows k0, k1 + k2; row 2i+1 sees i, i+1 with
    k0 + k1, k2. Columns likewise. Zero padding of the large image is zero padding of the small one.
    """

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        conv = upsample.conv
        weight = conv.weight.detach()
        rows = [torch.stack([weight[:, :, 0], weight[:, :, 1] + weight[:, :, 2]], 2),
                torch.stack([weight[:, :, 0] + weight[:, :, 1], weight[:, :, 2]], 2)]  # fmt: skip
        phases = [
            torch.stack([r[..., 0], r[..., 1] + r[..., 2]], 3)
            if column == 0
            else torch.stack([r[..., 0] + r[..., 1], r[..., 2]], 3)
            for r in rows
            for column in (0, 1)
        ]
        self.phases = nn.ModuleList()
        for kernel in phases:
            phase = nn.Conv2d(conv.in_channels, conv.out_channels, 2, device="meta")
            phase.weight = nn.Parameter(kernel, requires_grad=False)
            phase.bias = conv.bias
            self.phases.append(phase)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1))
        a, b, c, d = (
            phase(padded[:, :, i : i + height + 1, j : j + width + 1])
            for phase, (i, j) in zip(self.phases, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)
        )
        return F.pixel_shuffle(torch.stack([a, b, c, d], 2).flatten(1, 2), 2)


class FoldedWindowAttention(nn.Module):
    """`WindowAttention` as 3-D batched products that every delegate takes, its bias a constant of the size of one window."""

    bias: Tensor

    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.q, self.k, self.v = split_linear(attention.qkv, gain=(attention.width // self.heads) ** -0.5)
        self.proj = attention.proj
        self.register_buffer("bias", attention.bias().detach().contiguous())

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        w, n, d = x.shape
        q, k, v = (
            t.reshape(w, n, self.heads, -1).transpose(1, 2).reshape(w * self.heads, n, -1)
            for t in (self.q(x), self.k(x), self.v(x))
        )
        logits = torch.bmm(q, k.transpose(1, 2)).reshape(w, self.heads, n, n) + self.bias
        if mask is not None:
            logits = logits + mask[:, None]
        y = torch.bmm(F.softmax(logits, -1).reshape(w * self.heads, n, n), v)
        return self.proj(y.reshape(w, self.heads, n, -1).transpose(1, 2).reshape(w, n, d))


class Resize(nn.Module):
    """Resizing (half-pixel centres, no antialias; bicubic: a = -0.75) as two products: (1, C, S, S) to (1, C, T, T)."""

    matrix: Tensor

    def __init__(self, source: int, target: int, mode: Literal["bicubic", "bilinear"]) -> None:
        super().__init__()
        # Resizing is linear and separable: the columns of the matrix are the resized unit vectors.
        unit = torch.eye(source)[None, None].expand(1, 1, source, source)
        matrix = F.interpolate(unit, size=(target, source), mode=mode, align_corners=False, antialias=False)[0, 0]
        self.register_buffer("matrix", matrix.contiguous())  # (target, source)

    def forward(self, image: Tensor) -> Tensor:
        target, source = self.matrix.shape
        if target < source:  # the larger image is never turned
            x = F.linear(image, self.matrix)  # columns, (1, C, S, T)
            return F.linear(x.transpose(2, 3), self.matrix).transpose(2, 3)
        x = F.linear(image.transpose(2, 3), self.matrix)  # rows, (1, C, S, T)
        return F.linear(x.transpose(2, 3), self.matrix)


class Rewritten(nn.Module):
    """The parts of a `TaskTok`, fused where it can be, that a graph is made of, rewritten; it shares the model's weights."""

    def __init__(self, model: TaskTok) -> None:
        super().__init__()
        self.config = model.config
        tokenizer, size = model.config.tokenizer, model.config.image_size
        self.prerestorer = sharing_copy(model.prerestorer)
        for parent in list(self.prerestorer.modules()):
            for name, child in list(parent.named_children()):
                # Sums of int8 weights are not int8: an int8 convolution stays whole.
                if isinstance(child, Upsample) and not isinstance(child.conv, Int8Conv2d):
                    setattr(parent, name, PhaseUpsample(child))
                elif isinstance(child, WindowAttention):
                    setattr(parent, name, FoldedWindowAttention(child))
        same = size == tokenizer.image_size
        self.shrink = nn.Identity() if same else Resize(size, tokenizer.image_size, "bicubic")
        self.grow = nn.Identity() if same else Resize(tokenizer.image_size, size, "bicubic")
        encoder, decoder = sharing_copy(model.tokenizer.encoder), model.tokenizer.decoder
        front = encoder.patch_embed
        self.unshuffle = front.unshuffle if isinstance(front, Front) else 1
        if isinstance(front, Front):
            encoder.patch_embed = BlocksFront(front)
        self.encoder = FoldedEncoder(encoder)
        self.decoder: CrossDecoder | FoldedDecoder | Decoder = decoder
        if tokenizer.cross:
            self.decoder = CrossDecoder(decoder)
        elif tokenizer.decoder.layers > 1:
            self.decoder = FoldedDecoder(decoder)
        self.refiner = model.refiner
        self.task_nets = sharing_copy(model.task_nets)
        for net in self.task_nets.values():
            if isinstance(net, Segmenter):
                net.grow = Resize(size // STRIDE, size, "bilinear")

    def blocks(self, frame: Tensor) -> Tensor:
        """Frame (1, S, S, 3) of any dtype to what `encode` takes: (1, 3, S, S), or for a fused front its blocks."""
        return space_to_depth(frame, self.unshuffle) if self.unshuffle > 1 else frame.permute(0, 3, 1, 2)

    def encode(self, image: Tensor) -> Tensor:
        """What `blocks` gave of a degraded frame, float in [0, 1], to tokens (1, N, C)."""
        return cast(Tensor, self.encoder(self.shrink(self.prerestorer(image))))

    def image(self, features: Tensor) -> Tensor:
        """The decoder's features (1, G*G, D) to the image (1, 3, S, S)."""
        return cast(Tensor, self.grow(self.decoder.image(features)))

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (1, N, C) to image (1, 3, S, S)."""
        return self.image(self.decoder.features(tokens))

    def seen(self, features: Tensor, image: Callable[[], Tensor], task: str) -> Tensor:
        """What the task's network is given: the decoder's features where its stem reads them, else the image."""
        return features if self.config.fused and self.config.fuses_stem(task) else image()


def split_linear(qkv: nn.Linear, *, gain: float) -> list[nn.Linear]:
    """Three linears that share the rows of one; the first, of the queries, times `gain`."""
    parts = []
    for weight, bias, rows, factor in zip(
        qkv.weight.detach().chunk(3), qkv.bias.detach().chunk(3), _thirds(qkv), (gain, 1.0, 1.0), strict=True
    ):
        with torch.device("meta"):
            part = type(qkv)(weight.shape[1], weight.shape[0])
        part.weight = nn.Parameter(weight * factor if factor != 1 else weight, requires_grad=False)
        part.bias = nn.Parameter(bias * factor if factor != 1 else bias, requires_grad=False)
        if isinstance(qkv, Int8Linear) and isinstance(part, Int8Linear):  # the same codes, in steps `factor` times as large
            part.input, part.weight_scale = qkv.input, qkv.weight_scale[rows] * factor
            part.output = qkv.output.scaled(factor) if factor != 1 else qkv.output
        parts.append(part)
    return parts


def _thirds(layer: nn.Linear) -> list[slice]:
    third = layer.out_features // 3
    return [slice(i * third, (i + 1) * third) for i in range(3)]


M = TypeVar("M", bound=nn.Module)


def sharing_copy(module: M, dtype: torch.dtype | None = None) -> M:
    """Copy a module's structure and not its tensors; with `dtype`, floating tensors are new ones of that dtype."""
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    if dtype is not None:
        shared = {key: _cast(tensor, dtype) for key, tensor in shared.items()}
    return deepcopy(module, shared)  # type: ignore[arg-type]  # what a copy stands for may be of any type


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    made = tensor.detach().to(dtype)
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
