"""Random uses of MIL's operators, each with what PyTorch makes of the same numbers: what the evaluator is held against.

A case is built as a program by coremltools' own builder, whose definitions check parameters and shapes, saved as a package,
and read back: the evaluator sees what it sees of a real export.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers_mil import Array, Case, error, evaluated

Rng = np.random.Generator


def _x(rng: Rng, rank: int | None = None, *, low: int = 1) -> Array:
    shape = rng.integers(low, 6, rank or int(rng.integers(1, 5)))
    return rng.normal(0, 2, shape).astype(np.float32)


def _t(x: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def _one(function: Callable[[Tensor], Tensor], *, positive: bool = False, **parameters: Any) -> Callable[[Rng], Case]:
    def made(rng: Rng) -> Case:
        x = np.abs(_x(rng)) + np.float32(0.1) if positive else _x(rng)
        return Case({"x": x}, parameters, function(_t(x)))

    return made


def _two(function: Callable[[Tensor, Tensor], Tensor], *, positive: bool = False) -> Callable[[Rng], Case]:
    def made(rng: Rng) -> Case:
        x = _x(rng)
        y = _x(rng, x.ndim)
        y = rng.normal(0, 2, [n if rng.random() < 0.5 else 1 for n in x.shape]).astype(np.float32)
        if positive:
            x, y = np.abs(x) + np.float32(0.1), np.abs(y) + np.float32(0.1)
        return Case({"x": x, "y": y}, {}, function(_t(x), _t(y)))

    return made


def _reduced(function: Callable[..., Tensor]) -> Callable[[Rng], Case]:
    def made(rng: Rng) -> Case:
        x = _x(rng)
        axes = sorted(rng.permutation(x.ndim)[: rng.integers(1, x.ndim + 1)].tolist())
        keep = bool(rng.integers(2)) or len(axes) == x.ndim
        return Case({"x": x}, {"axes": axes, "keep_dims": keep}, function(_t(x), dim=axes, keepdim=keep))

    return made


def _softmax(rng: Rng) -> Case:
    x = _x(rng)
    axis = int(rng.integers(-x.ndim, x.ndim))
    return Case({"x": x}, {"axis": axis}, torch.softmax(_t(x), axis))


def _clip(rng: Rng) -> Case:
    x = _x(rng)
    return Case({"x": x}, {"alpha": -0.5, "beta": 1.25}, _t(x).clamp(-0.5, 1.25))


def _cast(rng: Rng) -> Case:
    x = _x(rng) * 10
    dtype, to = [("int32", torch.int32), ("fp16", torch.float16)][rng.integers(2)]
    return Case({"x": x}, {"dtype": dtype}, _t(x).to(to))


def _reshape(rng: Rng) -> Case:
    x = _x(rng, 3)
    shape = [x.shape[0], -1] if rng.integers(2) else [x.shape[2] * x.shape[1], x.shape[0]]
    return Case({"x": x}, {"shape": shape}, _t(x).reshape(shape))


def _transpose(rng: Rng) -> Case:
    x = _x(rng)
    perm = rng.permutation(x.ndim).tolist()
    return Case({"x": x}, {"perm": perm}, _t(x).permute(perm))


def _expand_dims(rng: Rng) -> Case:
    x = _x(rng, 2)
    axis = int(rng.integers(-3, 3))
    return Case({"x": x}, {"axes": [axis]}, _t(x).unsqueeze(axis))


def _squeeze(rng: Rng) -> Case:
    x = _x(rng, 3)[:, :1]
    return Case({"x": x}, {"axes": [1]}, _t(x).squeeze(1))


def _joined(function: Callable[..., Tensor], *, same: bool) -> Callable[[Rng], Case]:
    def made(rng: Rng) -> Case:
        x = _x(rng, 3)
        axis = int(rng.integers(0, 3))
        shape = [n if same or i != axis else int(rng.integers(1, 5)) for i, n in enumerate(x.shape)]
        y = rng.normal(size=shape).astype(np.float32)
        return Case({"values": [x, y]}, {"axis": axis}, function((_t(x), _t(y)), axis))  # type: ignore[dict-item]

    return made


def _split(rng: Rng) -> Case:
    x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    if rng.integers(2):
        return Case({"x": x}, {"axis": 1, "num_splits": 3}, tuple(_t(x).split(2, 1)))
    return Case({"x": x}, {"axis": 1, "split_sizes": [1, 3, 2]}, tuple(_t(x).split([1, 3, 2], 1)))


def _tile(rng: Rng) -> Case:
    x = _x(rng, 3)
    reps = rng.integers(1, 4, 3).tolist()
    return Case({"x": x}, {"reps": reps}, _t(x).repeat(reps))


def _gather(rng: Rng) -> Case:
    x = _x(rng, 3)
    axis = int(rng.integers(0, 3))
    indices = rng.integers(0, x.shape[axis], int(rng.integers(1, 6)))
    parameters = {"indices": indices.astype(np.int32), "axis": axis, "batch_dims": 0, "validate_indices": bool(rng.integers(2))}
    return Case({"x": x}, parameters, _t(x).index_select(axis, torch.from_numpy(indices)))


def _slice_by_index(rng: Rng) -> Case:
    x = _x(rng, 3, low=3)
    begin, stride = rng.integers(0, 2, 3), rng.integers(1, 3, 3)
    end = np.array([int(rng.integers(b + 1, n + 1)) for b, n in zip(begin, x.shape, strict=True)])
    begin_mask, end_mask = rng.random(3) < 0.3, rng.random(3) < 0.3
    squeeze = np.array([False, bool(rng.integers(2)), False])
    begin_mask[1] = end_mask[1] = False
    places = [
        slice(None if b_ else int(b), None if e_ else int(e), int(s))
        for b, e, s, b_, e_ in zip(begin, end, stride, begin_mask, end_mask, strict=True)
    ]
    wanted = _t(x)[places[0], :, places[2]]
    wanted = wanted[:, int(begin[1])] if squeeze[1] else wanted[:, places[1]]
    parameters = {"begin": begin.tolist(), "end": end.tolist(), "stride": stride.tolist(), "begin_mask": begin_mask.tolist()}
    return Case({"x": x}, {**parameters, "end_mask": end_mask.tolist(), "squeeze_mask": squeeze.tolist()}, wanted)


def _slice_by_size(rng: Rng) -> Case:
    x = _x(rng, 2, low=3)
    return Case({"x": x}, {"begin": [1, 0], "size": [2, -1]}, _t(x)[1:3])


def _pad(rng: Rng) -> Case:
    x = rng.normal(size=(2, 3, 5, 6)).astype(np.float32)
    amounts = rng.integers(0, 3, 4).tolist()
    mode = ("constant", "reflect", "replicate")[rng.integers(3)]
    value = 0.5 if mode == "constant" else 0.0
    torch_mode, order = mode, [amounts[2], amounts[3], amounts[0], amounts[1]]  # torch names the last axis first
    wanted = F.pad(_t(x), order, torch_mode, value if mode == "constant" else None)
    return Case({"x": x}, {"pad": amounts, "mode": mode, "constant_val": value}, wanted)


def _linear(rng: Rng) -> Case:
    x = _x(rng, int(rng.integers(2, 4)))
    weight = rng.normal(size=(4, x.shape[-1])).astype(np.float32)
    bias = rng.normal(size=4).astype(np.float32)
    return Case({"x": x}, {"weight": weight, "bias": bias}, F.linear(_t(x), _t(weight), _t(bias)))


def _matmul(rng: Rng) -> Case:
    a, b, c = rng.integers(1, 6, 3)
    turn_x, turn_y = bool(rng.integers(2)), bool(rng.integers(2))
    x = rng.normal(size=(2, c, a) if turn_x else (2, a, c)).astype(np.float32)
    y = rng.normal(size=(2, b, c) if turn_y else (2, c, b)).astype(np.float32)
    wanted = (_t(x).mT if turn_x else _t(x)) @ (_t(y).mT if turn_y else _t(y))
    return Case({"x": x, "y": y}, {"transpose_x": turn_x, "transpose_y": turn_y}, wanted)


def _attention(rng: Rng) -> Case:
    q, k, v = (rng.normal(size=(1, 2, n, d)).astype(np.float32) for n, d in ((5, 4), (7, 4), (7, 3)))
    if rng.integers(2):
        return Case({"query": q, "key": k, "value": v}, {}, F.scaled_dot_product_attention(_t(q), _t(k), _t(v)))
    mask = rng.normal(size=(1, 1, 5, 7)).astype(np.float32)
    wanted = F.scaled_dot_product_attention(_t(q), _t(k), _t(v), _t(mask))
    return Case({"query": q, "key": k, "value": v, "attn_mask": mask}, {}, wanted)


def _layer_norm(rng: Rng) -> Case:
    x = _x(rng, 3, low=2)
    n = int(rng.integers(1, 3))
    shape = x.shape[-n:]
    gamma, beta = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    wanted = F.layer_norm(_t(x), shape, _t(gamma), _t(beta), 1e-5)
    return Case({"x": x}, {"axes": list(range(-n, 0)), "gamma": gamma, "beta": beta, "epsilon": 1e-5}, wanted)


def _batch_norm(rng: Rng) -> Case:
    x = _x(rng, 4)
    c = x.shape[1]
    mean, gamma, beta = (rng.normal(size=c).astype(np.float32) for _ in range(3))
    variance = rng.uniform(0.1, 2, c).astype(np.float32)
    wanted = F.batch_norm(_t(x), _t(mean), _t(variance), _t(gamma), _t(beta), eps=1e-5)
    return Case({"x": x}, {"mean": mean, "variance": variance, "gamma": gamma, "beta": beta, "epsilon": 1e-5}, wanted)


def _conv(rng: Rng) -> Case:
    groups = int(rng.integers(1, 3))
    x = rng.normal(size=(1, 4, int(rng.integers(6, 11)), int(rng.integers(6, 11)))).astype(np.float32)
    kernel = rng.integers(1, 4, 2).tolist()
    weight = rng.normal(size=(6, 4 // groups, *kernel)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    strides, dilations, amount = rng.integers(1, 3, 2).tolist(), rng.integers(1, 3, 2).tolist(), rng.integers(0, 3, 2).tolist()
    wanted = F.conv2d(_t(x), _t(weight), _t(bias), strides, amount, dilations, groups)
    pad = [amount[0], amount[0], amount[1], amount[1]]
    parameters = {"weight": weight, "bias": bias, "strides": strides, "dilations": dilations, "groups": groups}
    return Case({"x": x}, {**parameters, "pad_type": "custom", "pad": pad}, wanted)


def _pool(function: Callable[..., Tensor], **parameters: Any) -> Callable[[Rng], Case]:
    def made(rng: Rng) -> Case:
        x = rng.normal(size=(1, 3, 8, 9)).astype(np.float32)
        kernel, stride, amount = int(rng.integers(2, 4)), int(rng.integers(1, 3)), int(rng.integers(0, 2))
        wanted = function(_t(x), kernel, stride, amount)
        given = {"kernel_sizes": [kernel] * 2, "strides": [stride] * 2, "pad_type": "custom", "pad": [amount] * 4}
        return Case({"x": x}, {**given, **parameters}, wanted)

    return made


def _nearest(rng: Rng) -> Case:
    x = _x(rng, 4)
    high, wide = rng.integers(1, 4, 2).tolist()
    parameters = {"scale_factor_height": float(high), "scale_factor_width": float(wide)}
    return Case({"x": x}, parameters, F.interpolate(_t(x), scale_factor=(high, wide), mode="nearest"))


def _bilinear(rng: Rng) -> Case:
    x = _x(rng, 4, low=2)
    high, wide = rng.integers(1, 4, 2).tolist()
    corners = bool(rng.integers(2))
    parameters = {"scale_factor_height": float(high), "scale_factor_width": float(wide), "align_corners": corners}
    wanted = F.interpolate(_t(x), scale_factor=(high, wide), mode="bilinear", align_corners=corners)
    return Case({"x": x}, {**parameters, "half_pixel_centers": not corners}, wanted)


def _resize_bilinear(rng: Rng) -> Case:
    x = _x(rng, 4, low=2)
    high, wide = rng.integers(2, 9, 2).tolist()
    mode = ("STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS")[rng.integers(2)]
    wanted = F.interpolate(_t(x), size=(high, wide), mode="bilinear", align_corners=mode == "STRICT_ALIGN_CORNERS")
    return Case({"x": x}, {"target_size_height": high, "target_size_width": wide, "sampling_mode": mode}, wanted)


def _shuffle(rng: Rng) -> Case:
    x = rng.normal(size=(2, 8, 3, 4)).astype(np.float32)
    return Case({"x": x}, {"upscale_factor": 2}, F.pixel_shuffle(_t(x), 2))


def _unshuffle(rng: Rng) -> Case:
    x = rng.normal(size=(2, 3, 4, 6)).astype(np.float32)
    return Case({"x": x}, {"downscale_factor": np.uint32(2)}, F.pixel_unshuffle(_t(x), 2))


def _scales(rng: Rng, n: int) -> tuple[Array, Array]:
    return rng.uniform(0.01, 0.05, n).astype(np.float32), rng.integers(-20, 20, n).astype(np.int8)


def _quantize(rng: Rng) -> Case:
    x = _x(rng, 3)
    if rng.integers(2):
        scale, zero = _scales(rng, x.shape[1])
        codes = ((_t(x) / _t(scale)[:, None]).round() + _t(zero)[:, None]).clamp(-128, 127)
        return Case({"input": x}, {"scale": scale, "zero_point": zero, "axis": 1, "output_dtype": "int8"}, codes)
    codes = (_t(x) / 0.03).round().clamp(0, 255)
    return Case({"input": x}, {"scale": np.float32(0.03), "output_dtype": "uint8"}, codes)


def _dequantize(rng: Rng) -> Case:
    codes = rng.integers(-128, 128, rng.integers(1, 5, 3)).astype(np.int8)
    scale, zero = _scales(rng, codes.shape[1])
    wanted = (_t(codes).float() - _t(zero).float()[:, None]) * _t(scale)[:, None]
    return Case({"input": codes}, {"scale": scale, "zero_point": zero, "axis": 1}, wanted)


def _blockwise(rng: Rng) -> Case:
    data = rng.integers(-128, 128, (4, 6)).astype(np.int8)
    scale = rng.uniform(0.01, 0.1, (4, int(rng.choice([1, 2, 3, 6])))).astype(np.float32)
    wanted = _t(data).float() * _t(scale).repeat_interleave(6 // scale.shape[1], 1)
    return Case({}, {"data": data, "scale": scale}, wanted)


def _affine(rng: Rng) -> Case:
    data = rng.integers(-128, 128, (4, 6)).astype(np.int8)
    scale, zero = _scales(rng, 4)
    wanted = (_t(data).float() - _t(zero).float()[:, None]) * _t(scale)[:, None]
    return Case({}, {"quantized_data": data, "scale": scale, "zero_point": zero, "axis": 0}, wanted)


CASES: dict[str, Callable[[Rng], Case]] = {
    "relu": _one(F.relu), "relu6": _one(F.relu6), "sigmoid": _one(torch.sigmoid), "silu": _one(F.silu),
    "softplus": _one(F.softplus), "tanh": _one(torch.tanh), "exp": _one(torch.exp), "square": _one(torch.square),
    "abs": _one(torch.abs), "erf": _one(torch.erf), "identity": _one(torch.clone), "sqrt": _one(torch.sqrt, positive=True),
    "rsqrt": _one(torch.rsqrt, positive=True), "log": _one(torch.log, positive=True),
    "inverse": _one(lambda x: 1 / (x + 1e-4), positive=True), "gelu": _one(F.gelu, mode="EXACT"),
    "leaky_relu": _one(lambda x: F.leaky_relu(x, 0.2), alpha=np.float32(0.2)),
    "add": _two(torch.add), "sub": _two(torch.sub), "mul": _two(torch.mul), "real_div": _two(torch.div, positive=True),
    "maximum": _two(torch.maximum), "minimum": _two(torch.minimum), "pow": _two(torch.pow, positive=True),
    "reduce_mean": _reduced(torch.mean), "reduce_sum": _reduced(torch.sum), "reduce_max": _reduced(torch.amax),
    "reduce_min": _reduced(torch.amin), "softmax": _softmax, "clip": _clip, "cast": _cast, "reshape": _reshape,
    "transpose": _transpose, "expand_dims": _expand_dims, "squeeze": _squeeze, "concat": _joined(torch.cat, same=False),
    "stack": _joined(torch.stack, same=True), "split": _split, "tile": _tile, "gather": _gather,
    "slice_by_index": _slice_by_index, "slice_by_size": _slice_by_size, "pad": _pad, "linear": _linear, "matmul": _matmul,
    "scaled_dot_product_attention": _attention, "layer_norm": _layer_norm, "batch_norm": _batch_norm, "conv": _conv,
    "max_pool": _pool(F.max_pool2d), "avg_pool": _pool(F.avg_pool2d, exclude_padding_from_average=False),
    "upsample_nearest_neighbor": _nearest, "upsample_bilinear": _bilinear, "resize_bilinear": _resize_bilinear,
    "pixel_shuffle": _shuffle, "pixel_unshuffle": _unshuffle, "quantize": _quantize, "dequantize": _dequantize,
    "constexpr_blockwise_shift_scale": _blockwise, "constexpr_affine_dequantize": _affine,
}  # fmt: skip


def main() -> None:
    """Print how far each operator was from PyTorch at worst, over as many random cases as the command line says."""
    import logging
    import sys
    import tempfile

    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    logging.disable(logging.WARNING)
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    table = Table("operator", "cases", "largest error", title="the evaluator against PyTorch, relative to the largest value")
    for name in track(CASES, "operators", console=Console(stderr=True)):
        worst = 0.0
        for seed in range(n):
            case = CASES[name](np.random.default_rng(seed))
            with tempfile.TemporaryDirectory() as folder:
                worst = max(worst, error(evaluated(name, case, Path(folder)), case.wanted))
        table.add_row(name, str(n), f"{worst:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
