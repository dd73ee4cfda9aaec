"""Where a student starts: what it can take over from its server, and the nearest thing to what it cannot."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasktok_edge.model.task_nets import Backbone
from tasktok_edge.model.tasktok import TaskTok

RIDGE = 1e-4  # of the fit of a stem, in squares of pixels: neighbouring pixels are nearly the same number


@torch.no_grad()
def start_from(server: TaskTok, student: TaskTok, images: Tensor) -> None:
    """Fill `student` in place; `images` (n, 3, S, S) in [0, 1] are clean frames for its stems to be fitted on.

    What has the server's shape is copied; of deeper stacks, blocks evenly spread from first to last. From a random start a
    student of two layers learns nothing in as few steps as a distillation has.
    """
    source = _spread(server, student)
    _without_class_row(student, source)
    _without_smoothing(server, student, source)
    for key, value in student.state_dict().items():
        if key in source and source[key].shape == value.shape:
            value.copy_(source[key])
    for task in student.task_nets:
        if student.config.tasks[task].patch and not server.config.tasks[task].patch:
            old, new = (cast(Backbone, m.task_nets[task].get_submodule("backbone")) for m in (server, student))
            _fit_stem(old, new, images)


def _spread(server: TaskTok, student: TaskTok) -> dict[str, Tensor]:
    """The server's state with the names that its blocks have in the student."""
    given = dict(server.state_dict())
    depth = {name: len(stack) for name, stack in server.named_modules() if isinstance(stack, nn.ModuleList)}
    for name, stack in student.named_modules():
        if not isinstance(stack, nn.ModuleList) or name not in depth:
            continue
        spread = torch.linspace(0, depth[name] - 1, len(stack)).round().int().tolist()
        below = {k[len(name) + 1 :]: given.pop(k) for k in list(given) if k.startswith(f"{name}.")}
        for mine, theirs in enumerate(spread):
            given |= {f"{name}.{mine}.{k.split('.', 1)[1]}": v for k, v in below.items() if k.split(".", 1)[0] == str(theirs)}
    return given


def _without_class_row(student: TaskTok, source: dict[str, Tensor]) -> None:
    """Drop the place of the class row where the student has none."""
    for part in ("encoder", "decoder"):
        key = f"tokenizer.{part}.positional_embedding"
        n = len(student.state_dict()[key])
        if key in source:
            source[key] = source[key][-n:]


def _without_smoothing(server: TaskTok, student: TaskTok, source: dict[str, Tensor]) -> None:
    """Let the decoder's last layer do, inside each patch, what a convolution of its pixels did; borders see themselves."""
    smooth, decoder = server.tokenizer.decoder.conv_out, server.tokenizer.decoder
    if not isinstance(smooth, nn.Conv2d) or student.config.tokenizer.smooth:
        return
    p = decoder.patch

    def smoothed(pixels: Tensor, bias: Tensor | None) -> Tensor:
        patches = pixels.reshape(-1, p, p, 3).permute(0, 3, 1, 2)
        made = F.conv2d(F.pad(patches, (1, 1, 1, 1), mode="replicate"), smooth.weight, bias)
        return made.permute(0, 2, 3, 1).reshape(pixels.shape)

    source["tokenizer.decoder.ffn.weight"] = smoothed(decoder.ffn.weight.T, None).T
    source["tokenizer.decoder.ffn.bias"] = smoothed(decoder.ffn.bias[None], smooth.bias)[0]


def _fit_stem(old: Backbone, new: Backbone, images: Tensor) -> None:
    """Give the stem that reads patches the linear map nearest to what the old stem makes before its last ReLU."""
    conv, norm = (new.stem.get_submodule(name) for name in ("0.0", "0.1"))
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    layers = [m for m in old.stem.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.ReLU)]
    wanted = images * 2 - 1
    for layer in layers[:-1]:
        wanted = layer(wanted)
    if wanted.shape[1] != conv.out_channels:
        return
    targets = wanted.permute(0, 2, 3, 1).flatten(0, 2)  # (n, C)
    patches = F.unfold(images * 2 - 1, conv.kernel_size, stride=conv.stride).transpose(1, 2).flatten(0, 1)  # (n, 48)
    mean, middle = targets.mean(0), patches.mean(0)
    centred = patches - middle
    gram = centred.T @ centred / len(centred) + RIDGE * torch.eye(centred.shape[1])
    weight = torch.linalg.solve(gram, centred.T @ (targets - mean) / len(centred)).T  # (C, 48)
    conv.weight.copy_(weight.reshape(conv.weight.shape))
    made = patches @ weight.T
    norm.running_mean.copy_(made.mean(0))
    norm.running_var.copy_(made.var(0))
    norm.weight.copy_((made.var(0) + norm.eps).sqrt())
    norm.bias.copy_(mean)
