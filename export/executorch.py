"""ExecuTorch: one .pte for XNNPACK, a method a function, weights shared by all methods."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn

from tasktok_edge.export.graph import Deployed, Function
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.model.vit import Attention, Rows, take

FILE = "model.pte"


class DelegatedNorm(nn.Module):
    """LayerNorm as two linears and elementwise operators, all of which XNNPACK takes; its own kernel is not delegated."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        width = norm.normalized_shape[0]
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.mean = nn.Linear(width, 1, bias=False)
        self.mean.weight = nn.Parameter(torch.full((1, width), 1 / width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.mean(x)
        return x / torch.sqrt(self.mean(x * x) + self.eps) * self.weight + self.bias


class DelegatedAttention(nn.Module):
    """Attention of one image as 3-D batched products: 4-D matmul and SDPA leave the delegate for every layer."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads, d = attention.heads, attention.width
        weight, bias = attention.qkv.weight.detach(), attention.qkv.bias.detach()
        scale = (d // self.heads) ** -0.5
        self.q, self.k, self.v = (nn.Linear(d, d) for _ in range(3))
        for i, (part, gain) in enumerate(((self.q, scale), (self.k, 1.0), (self.v, 1.0))):
            part.weight = nn.Parameter(weight[i * d : (i + 1) * d] * gain, requires_grad=False)
            part.bias = nn.Parameter(bias[i * d : (i + 1) * d] * gain, requires_grad=False)
        self.out_proj = attention.out_proj

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        d = x.shape[2]
        q = self._split(self.q(x if rows is None else take(x, rows)))  # (heads, M, head)
        k, v = self._split(self.k(x)), self._split(self.v(x))  # (heads, N, head)
        y = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
        return self.out_proj(y.transpose(0, 1).reshape(1, -1, d))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[1], self.heads, -1).transpose(0, 1)


def delegated(module: TaskTok) -> TaskTok:
    """Give a copy with the same weights and results whose operators XNNPACK takes."""
    module = deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, DelegatedNorm(child))
            elif isinstance(child, Attention):
                setattr(parent, name, DelegatedAttention(child))
    return module


def build(model: TaskTok, functions: Sequence[Function], folder: Path, *, precision: str) -> None:
    """Lower every function and write `model.pte`; `fp16` computes in fp16, as XNNPACK's kernels do on phones."""
    size = model.config.image_size
    frame = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    shared = delegated(model).to(dtype)
    programs = {}
    for function in functions:
        exported = torch.export.export(Deployed(shared, [function], dtype=dtype).eval(), (frame,))
        _drop_idle_expands(exported.graph_module)
        programs[function.entry] = exported
    partitioner = {entry: [XnnpackPartitioner()] for entry in programs}
    lowered = to_edge_transform_and_lower(programs, partitioner=partitioner)
    (folder / FILE).write_bytes(lowered.to_executorch().buffer)


def _drop_idle_expands(graph_module: torch.fx.GraphModule) -> None:
    # For one image the embeddings' expand changes nothing, yet it would end the delegate.
    for node in list(graph_module.graph.nodes):
        if node.target is torch.ops.aten.expand.default and node.meta["val"].shape == node.args[0].meta["val"].shape:
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    graph_module.recompile()
