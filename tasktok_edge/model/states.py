"""State dicts that come from files: what is wrong with one, and how its tensors take their places in a module."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


def fit_faults(wanted: State, state: State, *, guess: bool = False) -> list[str]:
    """List what `state` lacks, has too much or has of another shape than `wanted`; `guess` adds what may have happened.

    >>> fit_faults({"a": torch.zeros(2), "b": torch.zeros(3)}, {"b": torch.zeros(4), "c": torch.zeros(1)})
    ["no 'a'", "unexpected 'c'", "'b' is (4,), expected (3,)"]
    """
    faults = [f"no '{name}'" for name in wanted if name not in state]
    faults += [f"unexpected '{name}'" for name in state if name not in wanted]
    return faults + [
        f"'{n}' is {tuple(state[n].shape)}, expected {tuple(v.shape)}{transposed(state[n], tuple(v.shape)) if guess else ''}"
        for n, v in wanted.items()
        if n in state and state[n].shape != v.shape
    ]


def transposed(tensor: Tensor, shape: tuple[int, ...]) -> str:
    """End a fault of shape with the question whether the axes were swapped, where they may have been."""
    return ": transposed?" if sorted(tensor.shape) == sorted(shape) else ""


def value_faults(state: State) -> list[str]:
    """List the floating tensors that hold NaN or infinity."""
    return [f"'{n}' holds NaN or infinity" for n, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]


def assign(module: nn.Module, state: State) -> None:
    """Let the tensors of a `state` without faults take their places, in fp32 where they float; not copied where they are that.

    The counters of batch norms, which no output depends on, become 0 instead; `module` may be on "meta".
    """
    counters = {
        n: torch.zeros_like(v, device="cpu") for n, v in module.state_dict().items() if n.endswith("num_batches_tracked")
    }
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in state.items()}
    module.load_state_dict(tensors | counters, assign=True)
