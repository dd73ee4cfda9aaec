"""Post-training quantization: a floating-point model to one of int8 layers, their ranges taken from calibration frames."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from tasktok_edge.data.cache import degraded_frame
from tasktok_edge.errors import UsageError
from tasktok_edge.frames import crop_resize, windows
from tasktok_edge.manifest import Precision
from tasktok_edge.model.fuse import fuse
from tasktok_edge.model.int8 import FRAME, ActivationQuantizer, conv_groups, int8_layers
from tasktok_edge.model.tasktok import TaskTok, rebuilt

CALIBRATION_FRAMES = 128
LARGE_MODEL = 50_000_000  # parameters from which a frame takes seconds in PyTorch
LARGE_CALIBRATION_FRAMES = 4
# Three channels in, three out, at the frame's full size: integers would save nothing and cost the picture 8 bits.
ALWAYS_FP = ("tokenizer.decoder.conv_out",)
FRAME_READERS = tuple(f"tokenizer.encoder.patch_embed.{name}" for name in ("conv_in", "image_embed"))


def calibration_frames(model: TaskTok, n: int = CALIBRATION_FRAMES) -> Tensor:
    """Degraded scenes of the split `val`, which neither trains nor judges: (n, 3, S, S) float in [0, 1]."""
    size, resize = model.config.image_size, model.config.resize
    frames = [degraded_frame("val", i, "mix-b") for i in range(n)]
    squares = [torch.from_numpy(crop_resize(f, windows(*f.shape[:2])[0], size, resize)) for f in frames]
    return torch.stack(squares).permute(0, 3, 1, 2).float() / 255


def quantizable(model: TaskTok) -> list[str]:
    """Names of the layers that have an int8 form, in the order of the module.

    Task networks from elsewhere (TaskTok's own three, a user's) stay as they are: what is shrunk is the restoration.
    """
    kinds = (nn.Linear, nn.Conv2d)
    foreign = _foreign(model)
    names = [n for n, m in model.named_modules() if type(m) in kinds and n not in ALWAYS_FP]
    return [n for n in names if not any(_below(n, net) for net in foreign)]


def at_precision(model: TaskTok, precision: Precision, say: Callable[[str], None]) -> TaskTok:
    """The model as an export at `precision` takes it: quantised now, which `say` tells, where int8 is asked for and it is not.

    Raises UsageError for an int8 model that is to be exported as something else.
    """
    if model.config.int8 and precision != "int8":
        raise UsageError(f"this checkpoint computes in int8, not in {precision}: export it with --precision int8")
    if precision != "int8" or model.config.int8:
        return model
    large = sum(p.numel() for p in model.parameters()) > LARGE_MODEL
    frames = calibration_frames(model, LARGE_CALIBRATION_FRAMES if large else CALIBRATION_FRAMES)
    say(
        f"not a quantised checkpoint: post-training quantization on {len(frames)} scenes; `quantize --method qat` would tune it"
    )
    made = to_int8(model, frames, batch=1 if large else 16)
    round_others(made)
    return made


@torch.no_grad()
def round_others(model: TaskTok) -> None:
    """Round every matrix that is not in int8 to fp16, in place: files then keep it so, and nothing changes at that.

    Networks from elsewhere stay as they are, and so does a matrix that fp16 cannot hold.
    """
    codes = {id(layer.weight) for layer in int8_layers(model).values()}
    foreign = _foreign(model)
    for name, p in model.named_parameters():
        if p.ndim < 2 or id(p) in codes or any(_below(name, net) for net in foreign):
            continue
        if p.abs().max() < torch.finfo(torch.float16).max:
            p.copy_(p.half().to(p.dtype))


def to_int8(model: TaskTok, calibration: Tensor, *, keep_fp: Collection[str] = (), batch: int = 16) -> TaskTok:
    """Give `model` with every layer but `keep_fp` in int8; `calibration` (n, 3, S, S) sets the ranges.

    A name in `keep_fp` stands for a layer, or for all layers below a module. Raises UsageError for one that is neither.
    """
    model = fuse(model)  # first: one convolution's codes are not another's composed
    names = quantizable(model)
    unknown = [kept for kept in keep_fp if not any(_below(n, kept) for n in names)]
    if unknown:
        raise UsageError(f"no layer is called {', '.join(unknown)}; there are {', '.join(names[:3])}, … {names[-1]}")
    chosen = [n for n in names if not any(_below(n, kept) for kept in keep_fp)]
    state = folded(model)
    draft = _with(model, state, dict.fromkeys(chosen, "own"))
    sources = _sources(draft, calibration[:1]) | {name: FRAME for name in chosen if name in FRAME_READERS}
    made = _with(model, state, sources)
    calibrate(made, calibration, batch=batch)
    return made


def calibrate(model: TaskTok, frames: Tensor, *, batch: int = 16) -> None:
    """Set every range to what `frames` (n, 3, S, S) make of it, for all tasks."""
    quantizers = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    for q in quantizers:
        q.watching = True
    for start in range(0, len(frames), batch):
        _run(model, frames[start : start + batch])
    for q in quantizers:
        q.watching = False


def folded(model: TaskTok) -> dict[str, Tensor]:
    """The state of `model` with batch normalisations folded into their convolutions, which get a bias."""
    state = {n: v.detach().clone() for n, v in model.state_dict().items()}
    for name, norm, _ in conv_groups(model):
        layer = model.get_submodule(norm) if norm is not None else None
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_var is not None and layer.running_mean is not None
            gain = (layer.weight / torch.sqrt(layer.running_var + layer.eps)).detach()
            bias = state.get(f"{name}.bias", torch.zeros_like(gain))
            state[f"{name}.weight"] *= gain[:, None, None, None]
            state[f"{name}.bias"] = (bias - layer.running_mean) * gain + layer.bias.detach()
            state = {n: v for n, v in state.items() if not n.startswith(f"{norm}.")}
    return state


def _foreign(model: TaskTok) -> list[str]:
    return [f"task_nets.{task}" for task, config in model.config.tasks.items() if config.net != "scenes"]


def _below(name: str, kept: str) -> bool:
    return name == kept or name.startswith(f"{kept}.")


def _with(model: TaskTok, state: dict[str, Tensor], sources: dict[str, str]) -> TaskTok:
    made = rebuilt(model, {"int8": sources}, state)
    for layer in int8_layers(made).values():
        layer.scale_weight()
    return made


def _sources(draft: TaskTok, frame: Tensor) -> dict[str, str]:
    """Find out by one frame which layers read the same tensor, and which read what another has just made."""
    read: dict[str, list[Tensor]] = {}
    made: dict[str, list[Tensor]] = {}
    layers, hooks = int8_layers(draft), []
    for name, layer in layers.items():
        read[name], made[name] = [], []
        hooks.append(layer.input.register_forward_pre_hook(lambda _, args, seen=read[name]: seen.append(args[0])))
        hooks.append(layer.output.register_forward_hook(lambda *args, seen=made[name]: seen.append(args[2])))
    calibrate(draft, frame)  # a quantizer that watches gives the very tensor that it got
    for hook in hooks:
        hook.remove()
    sources: dict[str, str] = {}
    for name, tensors in read.items():
        mine = {id(t) for t in tensors}
        before = next((n for n, outputs in made.items() if mine and mine <= {id(t) for t in outputs}), None)
        beside = next((n for n in sources if sources[n] == "own" and mine == {id(t) for t in read[n]}), None)
        sources[name] = f"after {before}" if before else f"as {beside}" if beside else "own"
    return sources


@torch.inference_mode()
def _run(model: TaskTok, frames: Tensor) -> None:
    z = model.encode(frames)
    for task in model.config.tasks:
        _, seen = model.shown(model.replace_selected(z, task), task)
        if task in model.task_nets:
            model.task_net(task)(seen)
