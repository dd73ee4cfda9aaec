"""From our parameter names to the official ones, and the shapes they have there."""

import re

from torch import Size

# Tensors of the official files that no output depends on, or that follow from the sizes.
UNUSED = re.compile(r"quantize\.embedding\.weight|.*\.attn_mask|.*\.relative_position_index|.*\.num_batches_tracked")

_BLOCK = (
    (r"transformer\.blocks\.", "transformer."),
    (r"\.attn\.qkv\.(weight|bias)", r".attn.in_proj_\1"),
    (r"\.fc\.", ".mlp.c_fc."),
    (r"\.proj\.", ".mlp.c_proj."),
    (r"latent_positional_embedding", "latent_token_positional_embedding"),
)
_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "tokenizer": (*_BLOCK, (r"^encoder\.latent_tokens$", "latent_tokens"), (r"^decoder\.ffn\.", "decoder.ffn.0.")),
    "refiner": (*_BLOCK, (r"^", "encoder.")),
    "prerestorer": (
        (r"^conv_first\.", "conv_first.1."),
        (r"^patch_norm\.", "patch_embed.norm."),
        (r"^groups\.(\d+)\.blocks\.", r"layers.\1.residual_group.blocks."),
        (r"^groups\.(\d+)\.conv\.", r"layers.\1.conv."),
        (r"\.norm_([12])\.", r".norm\1."),
        (r"\.fc_([12])\.", r".mlp.fc\1."),
        (r"^conv_before_upsample\.", "conv_before_upsample.0."),
    ),
}
_POINTWISE = re.compile(r"encoder\.conv_(in|out)\.weight|decoder\.ffn\.0\.weight")  # 1x1 convolutions there, linears here


def official_name(part: str, name: str) -> str:
    """Name in the official file of a parameter of our `tokenizer`, `refiner` or `prerestorer`.

    >>> official_name("tokenizer", "decoder.transformer.blocks.3.attn.qkv.weight")
    'decoder.transformer.3.attn.in_proj_weight'
    """
    if part == "prerestorer" and (up := re.match(r"ups\.(\d+)\.conv\.(\w+)", name)):
        return f"conv_up{int(up[1]) + 1}.{up[2]}"
    for pattern, there in _RULES[part]:
        name = re.sub(pattern, there, name)
    return name


def official_shape(name: str, shape: Size) -> tuple[int, ...]:
    """Shape that the tensor of official `name` has in the file, where ours has `shape`."""
    if _POINTWISE.fullmatch(name):
        return (*shape, 1, 1)
    if name == "decoder.mask_token":
        return (1, *shape)
    return tuple(shape)
