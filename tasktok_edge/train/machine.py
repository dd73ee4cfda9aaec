"""The machine that training runs on: one process or several, on GPUs or CPUs, and at which precision."""

import os
from typing import Literal

import torch
from accelerate import Accelerator

from tasktok_edge.errors import UsageError


def world_size() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def accelerator_for(cuda: Literal["fp16", "bf16", "no"], elsewhere: Literal["bf16", "no"]) -> Accelerator:
    """Accelerate's view of the machine, with the precision that fits it: bf16 only where the hardware has it.

    `accelerate launch` and `torchrun` start the processes. CPU processes must be told that they are such: Accelerate takes
    each for a run of its own else, and all would write the same files.
    """
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    cpu = cpu or (world_size() > 1 and not torch.accelerator.is_available())
    on_cuda = torch.cuda.is_available() and not cpu
    precision = cuda if on_cuda else elsewhere if _has_bf16(cpu) else "no"
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
    if world_size() not in (1, accelerator.num_processes):  # MPI sets other variables
        raise UsageError(
            f"{world_size()} processes were started, Accelerate sees {accelerator.num_processes}: start them by `accelerate "
            "launch`, or on CPUs by `torchrun`"
        )
    return accelerator


def _has_bf16(cpu: bool) -> bool:
    """Without instructions for it a CPU takes eight times as long in bf16 as in fp32 (AMD Zen 3)."""
    if not cpu and torch.accelerator.is_available():
        return True
    return any(there for name, there in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
