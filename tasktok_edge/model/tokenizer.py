"""The 1-D tokenizer: an image becomes N latent tokens, and back (TiTok, arXiv 2406.07550; TaskTok bypasses the quantiser)."""

from typing import cast

import torch
from torch import Tensor, nn

from tasktok_edge.model.config import TokenizerConfig
from tasktok_edge.model.vit import Transformer, embedding, grid_embedding, init_weights, token_embedding


def _positions(config: TokenizerConfig, width: int) -> nn.Parameter:
    """The class embedding's place where there is one, then the patches', (1 + G*G, D)."""
    return nn.Parameter(torch.cat([torch.zeros(_first(config), width), grid_embedding(config.grid, config.grid, width).data]))


def _first(config: TokenizerConfig) -> int:
    """How many rows stand before the patches'."""
    return int(config.class_token)


@torch.no_grad()
def _see_contrast(patch_embed: nn.Conv2d) -> None:
    """Start with mid grey at zero and contrasts as loud as positions: images in [0, 1] are nearly constant else."""
    patch_embed.weight *= 8
    cast(nn.Parameter, patch_embed.bias).copy_(-0.5 * patch_embed.weight.sum((1, 2, 3)))


class Encoder(nn.Module):
    """Image (B, 3, S, S), nominal [0, 1], to tokens (B, N, C)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        width = config.encoder.width
        self.first = _first(config)
        self.latent_rows = slice(self.first + config.grid**2, self.first + config.grid**2 + config.tokens)
        patch_embed = nn.Conv2d(3, width, config.patch, config.patch)
        self.patch_embed: nn.Module = patch_embed  # or a `fuse.Front`
        self.class_embedding = embedding(1, width) if config.class_token else None
        self.positional_embedding = _positions(config, width)
        self.latent_tokens = nn.Parameter(torch.zeros(config.tokens, width))
        self.latent_positional_embedding = token_embedding(config.tokens, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(config.encoder)
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Linear(width, config.channels)  # a 1x1 convolution in the official file
        self.apply(init_weights)
        _see_contrast(patch_embed)

    def forward(self, image: Tensor) -> Tensor:
        first, latents = (rows.expand(image.shape[0], -1, -1) for rows in self.constant_rows())
        x = self.ln_pre(torch.cat([first, self.patches(image), latents], 1))
        x = self.transformer(x, self.latent_rows)  # only the latents are read afterwards: an exact cut
        return self.conv_out(self.ln_post(x))

    def patches(self, image: Tensor) -> Tensor:
        """The rows that depend on the image, (B, G*G, D)."""
        return self.patch_embed(image).flatten(2).transpose(1, 2) + self.positional_embedding[self.first :]

    def constant_rows(self) -> tuple[Tensor, Tensor]:
        """The rows before and after the patches, the same for every image: (1, 1 or 0, D) and (1, N, D)."""
        first = self.positional_embedding[: self.first]
        if self.class_embedding is not None:
            first = self.class_embedding + first
        return first[None], (self.latent_tokens + self.latent_positional_embedding)[None]


class Decoder(nn.Module):
    """Tokens (B, N, C) to an image (B, 3, S, S), nominal [0, 1] and never clamped."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        width = config.decoder.width
        self.patch, self.grid, self.first, self.cross = config.patch, config.grid, _first(config), config.cross
        self.patch_rows = slice(self.first, self.first + config.grid**2)
        self.decoder_embed = nn.Linear(config.channels, width)
        self.class_embedding = embedding(1, width) if config.class_token else None
        self.positional_embedding = _positions(config, width)
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.latent_positional_embedding = token_embedding(config.tokens, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(config.decoder)
        self.ln_post = nn.LayerNorm(width)
        self.ffn = nn.Linear(width, config.patch**2 * 3)  # a 1x1 convolution in the official file
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1) if config.smooth else nn.Identity()
        self.apply(init_weights)
        # Starts as an even grey: what is learned first is then a read-out of the features, and their content survives.
        nn.init.zeros_(self.ffn.weight)
        nn.init.constant_(self.ffn.bias, 0.5)
        if isinstance(self.conv_out, nn.Conv2d):
            nn.init.dirac_(self.conv_out.weight)
            nn.init.zeros_(cast(nn.Parameter, self.conv_out.bias))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.image(self.features(tokens))

    def features(self, tokens: Tensor) -> Tensor:
        """What the image is read out of, a row a patch: (B, G*G, D)."""
        masks = self.constant_rows().expand(tokens.shape[0], -1, -1)
        if self.cross:  # CrossMAE (arXiv 2401.14391)
            x, latents = self.ln_pre(masks[:, self.patch_rows]), self.ln_pre(self.latents(tokens))
            return self.ln_post(self.transformer.cross(x, latents))
        x = self.ln_pre(torch.cat([masks, self.latents(tokens)], 1))  # the latents stand last
        return self.ln_post(self.transformer(x, self.patch_rows))

    def latents(self, tokens: Tensor) -> Tensor:
        """The rows that depend on the tokens, (B, N, D)."""
        return self.decoder_embed(tokens) + self.latent_positional_embedding

    def constant_rows(self) -> Tensor:
        """The rows before the latents, the same for every image: class and mask tokens, (1, 1 + G*G, D)."""
        position, first = self.positional_embedding, self.first
        masks = self.mask_token + position[first:]
        if self.class_embedding is not None:
            masks = torch.cat([self.class_embedding + position[:first], masks])
        return masks[None]

    def image(self, features: Tensor) -> Tensor:
        """The patches' features (B, G*G, D) to the image (B, 3, S, S)."""
        b, g, p = features.shape[0], self.grid, self.patch
        x = self.ffn(features)  # (B, G*G, p*p*3) in the order (p1, p2, c), as the official file has it
        return self.conv_out(x.reshape(b, g, g, p, p * 3).transpose(2, 3).reshape(b, g * p, g * p, 3).permute(0, 3, 1, 2))


class Tokenizer(nn.Module):
    """Encoder and decoder of one `TokenizerConfig`."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
