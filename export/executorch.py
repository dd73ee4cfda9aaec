"""ExecuTorch: one .pte for XNNPACK, a method a function, weights shared by all methods."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
from torch import Tensor, nn

from tasktok_edge.export.graph import Deployed, Function, Place, Say, in_one
from tasktok_edge.export.int8 import in_codes
from tasktok_edge.export.rewrite import CrossDecoder, FoldedBlock, sharing_copy, split_linear
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
        self.heads, d = attention.heads, attention.inner
        self.q, self.k, self.v = split_linear(attention.qkv, gain=(d // self.heads) ** -0.5)
        self.out_proj = attention.out_proj

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        return self.attend(self.queries(x if rows is None else take(x, rows)), *self.keys_values(x))

    def queries(self, x: Tensor) -> Tensor:
        """Rows (1, M, D) to queries, scaled already."""
        return self.q(x)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (1, N, D) to keys and values."""
        return self.k(x), self.v(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (1, M, D) over keys and values (1, N, D)."""
        d = q.shape[2]
        q, k, v = (x.reshape(x.shape[1], self.heads, -1).transpose(0, 1) for x in (q, k, v))  # (heads, N, head)
        y = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
        return self.out_proj(y.transpose(0, 1).reshape(1, -1, d))


def delegated(module: Deployed) -> Deployed:
    """Give a copy with the same weights and results whose operators XNNPACK takes."""
    forms: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
        nn.LayerNorm: DelegatedNorm,
        Attention: DelegatedAttention,
    }
    module, made = sharing_copy(module), dict[nn.Module, nn.Module]()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in forms:
                if child not in made:  # what several parts share stays one module
                    made[child] = forms[type(child)](child)
                setattr(parent, name, made[child])
    for part in module.modules():
        if isinstance(part, FoldedBlock | CrossDecoder):
            part.fold()  # its queries are scaled already in this form
    return module


def build(model: TaskTok, functions: Sequence[Function], folder: Path, *, precision: str, say: Say) -> dict[Function, Place]:
    """Lower every function and write `model.pte`; `fp16` computes in fp16, as XNNPACK's kernels do on phones."""
    edge = lower(model, functions, precision=precision, say=say)
    with (folder / FILE).open("wb") as stream:
        edge.to_executorch().write_to_file(stream)
    return in_one(FILE, functions)


def lower(model: TaskTok, functions: Sequence[Function], *, precision: str, say: Say) -> EdgeProgramManager:
    """Give every function with what XNNPACK takes of it in delegates."""
    size = model.config.image_size
    frame = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    whole = delegated(Deployed(model, functions, dtype=dtype).eval())
    whole = in_codes(whole, "int8") if precision == "int8" else sharing_copy(whole, dtype)
    programs = {}
    for i, function in enumerate(functions, 1):
        say(f"tracing {function.name}, {i} of {len(functions)}")
        exported = torch.export.export(whole.only(function), (frame,))
        _drop_idle_expands(exported.graph_module)
        _delegate_softplus(exported.graph_module)
        _dequantize_for_each(exported.graph_module)
        programs[function.entry] = exported
    partitioner = {entry: [XnnpackPartitioner()] for entry in programs}
    say(f"lowering {len(functions)} functions to XNNPACK")
    return to_edge_transform_and_lower(programs, partitioner=partitioner)


def _drop_idle_expands(graph_module: torch.fx.GraphModule) -> None:
    # For one image the embeddings' expand changes nothing, yet it would end the delegate.
    for node in list(graph_module.graph.nodes):
        if node.target is torch.ops.aten.expand.default and node.meta["val"].shape == node.args[0].meta["val"].shape:
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    graph_module.recompile()


def _delegate_softplus(graph_module: torch.fx.GraphModule) -> None:
    # As max(x, 0) + log(1 + exp(-|x|)) it stays in the delegate. In its own parts it does not; and where a dequantized map of
    # channels has readers within a delegate and without, the one handed out has its axes moved twice (ExecuTorch 1.5.1).
    aten, graph = torch.ops.aten, graph_module.graph
    for node in list(graph.nodes):
        if node.target is aten.softplus.default:
            (x,) = node.args
            with graph.inserting_before(node):
                small = graph.call_function(
                    aten.exp.default, (graph.call_function(aten.neg.default, (graph.call_function(aten.abs.default, (x,)),)),)
                )
                log = graph.call_function(aten.log.default, (graph.call_function(aten.add.Scalar, (small, 1.0)),))
                made = graph.call_function(aten.add.Tensor, (graph.call_function(aten.relu.default, (x,)), log))
            node.replace_all_uses_with(made)
            graph.erase_node(node)
    graph_module.recompile()


def _dequantize_for_each(graph_module: torch.fx.GraphModule) -> None:
    # The partitioner takes a dequantize for a part of its reader; shared with a float reader, that one would get integers.
    for node in list(graph_module.graph.nodes):
        if node.target is torch.ops.quantized_decomposed.dequantize_per_tensor.default:
            for reader in list(node.users)[1:]:
                with graph_module.graph.inserting_before(reader):
                    own = graph_module.graph.node_copy(node, lambda n: n)
                reader.replace_input_with(node, own)
    graph_module.recompile()
