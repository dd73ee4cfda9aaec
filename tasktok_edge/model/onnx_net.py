"""A network from an ONNX file, as plain torch operators: torch.export takes it, and it becomes part of the deployed graph."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasktok_edge.errors import UsageError
from tasktok_edge.model.onnx_file import Graph, Node, read_graph
from tasktok_edge.model.onnx_table import Operator, find_operator

MAX_ELEMENTS = 1 << 28  # of one value, 1 GiB; a small file can ask for any size
MAX_FOLDED = 1 << 28  # elements of all constants that are computed on reading
MAX_STATIC = 1 << 20  # elements of a constant that is turned into plain numbers, such as a shape or indices
# What torch and the operators raise where a node does not fit its inputs.
_NODE_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError, AssertionError)


class Name(str):
    """A value of that name, among the arguments of a step."""


@dataclass(frozen=True)
class Step:
    """One operator: `run(*arguments)`, where a `Name` stands for its value. `done` are read by no later step."""

    run: Callable[..., Any]
    arguments: tuple[object, ...]
    outputs: tuple[str, ...]
    done: tuple[str, ...] = ()


class OnnxNet(nn.Module):
    """Image (1, 3, S, S) float to the file's output, or a tuple of them; S = `image_size`.

    Everything that depends on shapes alone is computed here, once; what is left are operators on the image, their weights
    frozen parameters. UsageError says in one line what the file is, has or lacks.
    """

    def __init__(self, path: Path, *, image_size: int) -> None:
        super().__init__()
        graph = read_graph(path)
        try:
            _check_image(graph, image_size)
            _check_operators(graph)
            plan = _Plan(graph, image_size)
            steps = plan.needed()
        except UsageError as fault:
            raise UsageError(f"'{path}': {fault}") from None
        self._input, self._outputs, self._steps = graph.input, graph.outputs, steps
        self._weights: dict[str, str] = {}  # value to attribute: names of a file may hold dots
        for name in dict.fromkeys(a for step in steps for a in step.arguments if isinstance(a, Name)):
            if name in plan.constants:
                attribute = self._weights[name] = f"weight_{len(self._weights)}"
                value = plan.constants[name].contiguous()
                if value.is_floating_point():
                    self.register_parameter(attribute, nn.Parameter(value, requires_grad=False))
                else:
                    self.register_buffer(attribute, value)
        self.eval()

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        values: dict[str, Tensor] = {name: getattr(self, attribute) for name, attribute in self._weights.items()}
        values[self._input] = image
        for step in self._steps:
            found = step.run(*(values[a] if isinstance(a, Name) else a for a in step.arguments))
            values.update(zip(step.outputs, found if isinstance(found, tuple | list) else (found,), strict=False))
            for name in step.done:
                values.pop(name, None)
        answers = tuple(values[name] for name in self._outputs)
        return answers[0] if len(answers) == 1 else answers


class _Plan:
    """The nodes in order, constants computed, everything else a step. Values of the image are shapes without data here."""

    def __init__(self, graph: Graph, image_size: int) -> None:
        self.graph, self.folded = graph, 0
        self.constants = dict(graph.constants)
        self.shapes = {name: _shape_of(value) for name, value in graph.constants.items()}
        self.shapes[graph.input] = torch.empty(1, 3, image_size, image_size, device="meta")
        self.steps: list[Step] = []
        for node in graph.nodes:
            try:
                self._add(node)
            except _NODE_ERRORS as fault:
                told = (str(fault).splitlines() or [type(fault).__name__])[0][:200]
                raise UsageError(f"its {node.op} {_label(node)!r} does not fit: {told}") from None

    def needed(self) -> list[Step]:
        """The steps that lead to an output."""
        constant = [name for name in self.graph.outputs if name in self.constants or name not in self.shapes]
        if constant:
            raise UsageError(f"its output {constant[0]!r} does not depend on the image")
        wanted, steps = set(self.graph.outputs), list[Step]()
        for step in reversed(self.steps):
            if wanted & set(step.outputs):
                read = {str(a) for a in step.arguments if isinstance(a, Name)}
                steps.append(Step(step.run, step.arguments, step.outputs, tuple(sorted(read - wanted))))
                wanted |= read
        return steps[::-1]

    def _add(self, node: Node) -> None:
        if node.op == "Constant":
            self._keep(node.outputs, (_constant(node),))
            return
        operator = find_operator(node.op, self.graph.opset)
        assert operator is not None, "unknown operators are refused before"
        run: Callable[..., Any] = partial(operator.run, **operator.settings(_attributes(node)))
        arguments = self._arguments(node, operator)
        if operator.of_shape:
            self._keep(node.outputs, (run(self.shapes[node.inputs[0]]),))
            return
        if operator.prepared:
            run, arguments = self._prepare(node, run, arguments)
        shapes = _run(run, arguments, self.shapes)
        if any(shape.numel() > MAX_ELEMENTS for shape in shapes):
            raise ValueError(f"it gives more than {MAX_ELEMENTS} numbers")
        if len([name for name in node.outputs if name]) > len(shapes):
            raise ValueError(f"it has {len(node.outputs)} outputs, {len(shapes)} are taken")
        if all(a in self.constants for a in arguments if isinstance(a, Name)):
            self._keep(node.outputs, _run(run, arguments, self.constants))
            return
        if operator.numbers:
            arguments = tuple(self._number(a) for a in arguments)
        self.shapes |= dict(zip(node.outputs, shapes, strict=False))
        self.steps.append(Step(run, arguments, node.outputs))

    def _arguments(self, node: Node, operator: Operator) -> tuple[object, ...]:
        arguments: list[object] = []
        for i, name in enumerate(node.inputs):
            if not name:
                arguments.append(None)
            elif i not in operator.static:
                arguments.append(Name(name))
            elif name not in self.constants:
                raise ValueError(f"its input {name!r} depends on the image, where a constant is taken")
            elif self.constants[name].numel() > MAX_STATIC:
                raise ValueError(f"its input {name!r} has more than {MAX_STATIC} numbers")
            else:
                arguments.append(self.constants[name].tolist())
        return tuple(arguments)

    def _prepare(
        self, node: Node, run: Callable[..., Any], arguments: tuple[object, ...]
    ) -> tuple[Callable[..., Any], tuple[object, ...]]:
        run, tables = run(self.shapes[node.inputs[0]], *arguments[1:])
        names = [Name(f"{node.outputs[0]} table {i}") for i in range(len(tables))]
        self._keep(tuple(names), tables)
        return run, (arguments[0], *names)

    def _keep(self, names: tuple[str, ...], values: tuple[Tensor, ...]) -> None:
        """Note constants that were computed."""
        for name, value in zip(names, values, strict=False):
            self.folded += value.numel()
            self.constants[name], self.shapes[name] = value, _shape_of(value)
        if self.folded > MAX_FOLDED:
            raise ValueError(f"with it, constants take more than {MAX_FOLDED} numbers")

    def _number(self, argument: object) -> object:
        value = self.constants.get(str(argument)) if isinstance(argument, Name) else None
        return argument if value is None or value.ndim else value.item()


def _check_image(graph: Graph, size: int) -> None:
    """The input, as the file declares it, must take (1, 3, S, S)."""
    wanted = (1, 3, size, size)
    shape = graph.shape
    if len(shape) == 4 and all(n in (None, w) for n, w in zip(shape, wanted, strict=True)):
        return
    came = ", ".join("any" if n is None else str(n) for n in shape)
    nhwc = len(shape) == 4 and shape[3] == 3
    hint = "export it with channels first" if nhwc else "export it for this size, or with dynamic axes"
    raise UsageError(f"its input {graph.input!r} is ({came}), expected {wanted}, as this checkpoint's frames are: {hint}")


def _check_operators(graph: Graph) -> None:
    faults: dict[str, None] = {}
    for node in graph.nodes:
        if node.op == "Constant":
            continue
        operator = find_operator(node.op, graph.opset)
        if operator is None:
            faults[node.op] = None
        else:
            faults |= dict.fromkeys(f"{node.op} with {what}" for what in operator.unknown(_attributes(node)))
    if faults:
        raise UsageError(
            f"it has operators that are not known here: {', '.join(sorted(faults))}: "
            "export the network up to its raw logits, or give it as package.module:callable"
        )


def _label(node: Node) -> str:
    return (node.name or " ".join(node.outputs))[:80]


def _attributes(node: Node) -> dict[str, object]:
    if node.op == "Split":  # into how many parts is told by its outputs, where nothing else tells
        return {"num_outputs": len(node.outputs)} | node.attributes
    return node.attributes


def _constant(node: Node) -> Tensor:
    forms = {"value": torch.float32, "value_float": torch.float32, "value_floats": torch.float32} | {
        "value_int": torch.int64,
        "value_ints": torch.int64,
    }
    (name, value), *others = node.attributes.items()
    if name not in forms or others:
        raise ValueError(f"a constant given by {', '.join(node.attributes)} is not taken")
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=forms[name])


def _run(run: Callable[..., Any], arguments: tuple[object, ...], values: dict[str, Tensor]) -> tuple[Tensor, ...]:
    found = run(*(values[a] if isinstance(a, Name) else a for a in arguments))
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def _shape_of(value: Tensor) -> Tensor:
    return torch.empty_like(value, device="meta")
