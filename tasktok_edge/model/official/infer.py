"""The config of an official model, from the shapes of its tensors: the files hold no other description."""

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from tasktok_edge.errors import CheckpointError
from tasktok_edge.model.config import (
    SwinIRConfig,
    TaskConfig,
    TaskNetName,
    TaskTokConfig,
    TokenizerConfig,
    ViTConfig,
)

FRAME_SIZE = 512  # every official model takes frames of this side, whatever the tokenizer works at
HEAD_WIDTH = 64  # of each attention head: 512 has 8, 768 has 12, 1024 has 16
SWITCHES = ("token_switch_tasks.0", "token_switch_tasks.1", "token_switch_tasks.2")
NETS: dict[str, TaskNetName] = {
    "cls": "resnet18",
    "det": "fasterrcnn_mobilenet_v3_large_fpn",
    "seg": "deeplabv3_mobilenet_v3_large",
}
# What names the last layer of each network: its rows are the labels.
_LAST_LAYER = {"cls": "fc.weight", "det": "roi_heads.box_predictor.cls_score.weight", "seg": "classifier.4.weight"}
VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_LIMIT = {"tokens": 4096, "layers": 128, "width": 8192, "patch": 128}  # a hundred times what there is


def infer_config(
    prerestorer: Mapping[str, Tensor],
    tokenizer: Mapping[str, Tensor],
    predictor: Mapping[str, Tensor],
    nets: Mapping[str, Mapping[str, Tensor]],
    labels: Mapping[str, tuple[str, ...]] | None = None,
) -> TaskTokConfig:
    """Describe the model that these official state dicts are of; CheckpointError names the tensor that contradicts.

    `labels` by task where they are known; else VOC's names, and for ImageNet the indices.
    """
    _legacy(tokenizer)
    tokens = _tokenizer(tokenizer)
    refiner = _vit("predictor", predictor, "encoder", _dims("predictor", predictor, "encoder.conv_in.weight", 4)[0])
    _fits_tokenizer(predictor, tokens)
    pixels = tokens.image_size == FRAME_SIZE
    try:
        return TaskTokConfig(
            preset=f"tasktok-{tokens.tokens}{'-input512' if pixels else ''}",
            image_size=FRAME_SIZE,
            prerestorer=_prerestorer(prerestorer),
            tokenizer=tokens,
            refiner=refiner,
            tasks={task: _task(task, nets.get(task), (labels or {}).get(task)) for task in NETS},
            resize="bicubic",
        )
    except ValidationError as fault:
        lines = "; ".join(e["msg"] for e in fault.errors())
        raise CheckpointError(f"the tensors' shapes make no TaskTok model: {lines}") from None


def _dims(part: str, state: Mapping[str, Tensor], name: str, rank: int) -> tuple[int, ...]:
    tensor = state.get(name)
    if tensor is None:
        raise CheckpointError(f"the {part} lacks the tensor '{name}'{_other_kind(part, state)}")
    if tensor.ndim != rank:
        raise CheckpointError(f"the {part}'s '{name}' is {tuple(tensor.shape)}, expected {rank} dimensions")
    return tuple(tensor.shape)


def _other_kind(part: str, state: Mapping[str, Tensor]) -> str:
    """Say what a file is instead, where its keys tell: tokenizer and predictor both begin with `encoder.`"""
    kinds = {"latent_tokens": "tokenizer", SWITCHES[0]: "predictor", "conv_first.1.weight": "prerestorer"}
    kinds |= {name: f"{task} network" for task, name in _LAST_LAYER.items()}
    seen = [kind for name, kind in kinds.items() if name in state and kind != part]
    return f": its keys are those of a {seen[0]}, are files swapped?" if seen else ""


def _legacy(tokenizer: Mapping[str, Tensor]) -> None:
    if "decoder.ffn.2.weight" in tokenizer or any(name.startswith("pixel_") for name in tokenizer):
        raise CheckpointError(
            "the tokenizer is a legacy TiTok ('decoder.ffn.2.weight': its decoder gives code logits for a VQGAN); TaskTok uses "
            "the single-stage bl64 or sl256, whose decoder gives pixels"
        )


def _tokenizer(state: Mapping[str, Tensor]) -> TokenizerConfig:
    n, width = _dims("tokenizer", state, "latent_tokens", 2)
    embed = _dims("tokenizer", state, "encoder.patch_embed.weight", 4)
    rows = _dims("tokenizer", state, "encoder.positional_embedding", 2)[0]
    decoder_width = _dims("tokenizer", state, "decoder.mask_token", 3)[-1]
    channels = _dims("tokenizer", state, "encoder.conv_out.weight", 4)[0]
    grid = math.isqrt(max(rows - 1, 0))
    if embed[0] != width:
        raise CheckpointError(f"the tokenizer's 'latent_tokens' is {(n, width)}, expected {embed[0]} columns: transposed?")
    if grid * grid != rows - 1 or not grid:
        raise CheckpointError(f"the tokenizer's 'encoder.positional_embedding' has {rows} rows, not 1 + a square")
    _limit("tokens", n, "latent_tokens")
    _limit("patch", embed[-1], "encoder.patch_embed.weight")
    return TokenizerConfig(
        image_size=grid * embed[-1],
        patch=embed[-1],
        tokens=n,
        channels=channels,
        encoder=_vit("tokenizer", state, "encoder", width),
        decoder=_vit("tokenizer", state, "decoder", decoder_width),
    )


def _vit(part: str, state: Mapping[str, Tensor], prefix: str, width: int) -> ViTConfig:
    found = [re.match(rf"{prefix}\.transformer\.(\d+)\.", name) for name in state]
    layers = max((int(m[1]) for m in found if m), default=-1) + 1
    first = f"{prefix}.transformer.0.mlp.c_fc.weight"
    hidden = _dims(part, state, first, 2)[0]
    _limit("layers", layers, f"{prefix}.transformer")
    _limit("width", max(width, hidden), first)
    if width % HEAD_WIDTH:
        raise CheckpointError(
            f"the {part}'s {prefix} is {width} wide, expected a multiple of {HEAD_WIDTH}, the width of a head"
        )
    return ViTConfig(width=width, layers=layers, heads=width // HEAD_WIDTH, mlp_ratio=hidden / width)


def _fits_tokenizer(predictor: Mapping[str, Tensor], tokens: TokenizerConfig) -> None:
    for name in SWITCHES:
        n = _dims("predictor", predictor, name, 1)[0]
        if n != tokens.tokens:
            raise CheckpointError(
                f"the predictor's '{name}' is for {n} tokens, the tokenizer has {tokens.tokens}: they are of different variants"
            )
    channels = _dims("predictor", predictor, "encoder.conv_in.weight", 4)[1]
    if channels != tokens.channels:
        raise CheckpointError(f"the predictor takes tokens of {channels} channels, the tokenizer's have {tokens.channels}")


def _prerestorer(state: Mapping[str, Tensor]) -> SwinIRConfig:
    part = "prerestorer"
    width, channels = _dims(part, state, "conv_first.1.weight", 4)[:2]
    rows, heads = _dims(part, state, "layers.0.residual_group.blocks.0.attn.relative_position_bias_table", 2)
    hidden = _dims(part, state, "layers.0.residual_group.blocks.0.mlp.fc1.weight", 2)[0]
    depths: dict[int, int] = {}
    for name in state:
        if m := re.match(r"layers\.(\d+)\.residual_group\.blocks\.(\d+)\.", name):
            depths[int(m[1])] = max(depths.get(int(m[1]), 0), int(m[2]) + 1)
    _limit("layers", max(len(depths), *depths.values()), "layers")
    _limit("width", max(width, hidden), "conv_first.1.weight")
    sizes: dict[str, Any] = {
        "width": width,
        "depths": tuple(depths.get(i, 0) for i in range(max(depths) + 1)),
        "heads": heads,
        "window": (math.isqrt(rows) + 1) // 2,
        "mlp_ratio": hidden / width,
        "unshuffle": math.isqrt(channels // 3),
        "head_width": _dims(part, state, "conv_hr.weight", 4)[0],
    }
    return SwinIRConfig(**sizes)


def _task(task: str, net: Mapping[str, Tensor] | None, labels: tuple[str, ...] | None) -> TaskConfig:
    default = {"cls": tuple(f"imagenet_{i:04d}" for i in range(1000)), "det": VOC, "seg": ("background", *VOC)}[task]
    n = len(default)
    if net is not None:
        # A detector's first row is the background, which is no answer.
        n = _dims(f"{task}net", net, _LAST_LAYER[task], 4 if task == "seg" else 2)[0] - (task == "det")
    names = labels or (default if n == len(default) else tuple(f"label_{i}" for i in range(n)))
    if len(names) != n:
        raise CheckpointError(f"labels_{task}.txt has {len(names)} lines, the {task} network answers with {n} labels")
    kind: Any = task
    return TaskConfig(
        kind=kind, labels=names, net="none" if net is None else NETS[task], framing="pad" if task == "det" else "windows"
    )


def _limit(what: str, value: int, name: str) -> None:
    if not 1 <= value <= _LIMIT[what]:
        raise CheckpointError(f"'{name}' gives {value} for {what}, expected 1 to {_LIMIT[what]}")
