"""The 1-D tokenizer: an image becomes N latent tokens, and back (TiTok, arXiv 2406.07550; TaskTok bypasses the quantiser)."""

from typing import cast

import torch
from torch import Tensor, nn

from tasktok_edge.model.config import TokenizerConfig
from tasktok_edge.model.vit import Transformer, embedding, grid_embedding, init_weights, token_embedding


def _positions(config: TokenizerConfig, width: int) -> nn.Parameter:
    """The class embedding's place, then the patches', (1 + G*G, D)."""
    return nn.Parameter(torch.cat([torch.zeros(1, width), grid_embedding(config.grid, config.grid, width).data]))


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
        self.latent_rows = slice(config.grid**2 + 1, config.grid**2 + 1 + config.tokens)
        self.patch_embed = nn.Conv2d(3, width, config.patch, config.patch)
        self.class_embedding = embedding(1, width)
        self.positional_embedding = _positions(config, width)
        self.latent_tokens = nn.Parameter(torch.zeros(config.tokens, width))
        self.latent_positional_embedding = token_embedding(config.tokens, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(config.encoder)
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Linear(width, config.channels)  # a 1x1 convolution in the official file
        self.apply(init_weights)
        _see_contrast(self.patch_embed)

    def forward(self, image: Tensor) -> Tensor:
        first, latents = (rows.expand(image.shape[0], -1, -1) for rows in self.constant_rows())
        x = self.ln_pre(torch.cat([first, self.patches(image), latents], 1))
        x = self.transformer(x, self.latent_rows)  # only the latents are read afterwards: an exact cut
        return self.conv_out(self.ln_post(x))

    def patches(self, image: Tensor) -> Tensor:
        """The rows that depend on the image, (B, G*G, D)."""
        return self.patch_embed(image).flatten(2).transpose(1, 2) + self.positional_embedding[1:]

    def constant_rows(self) -> tuple[Tensor, Tensor]:
        """The rows before and after the patches, the same for every image: (1, 1, D) and (1, N, D)."""
        first = self.class_embedding + self.positional_embedding[:1]
        return first[None], (self.latent_tokens + self.latent_positional_embedding)[None]


class Decoder(nn.Module):
    """Tokens (B, N, C) to an image (B, 3, S, S), nominal [0, 1] and never clamped."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        width = config.decoder.width
        self.patch, self.grid = config.patch, config.grid
        self.patch_rows = slice(1, config.grid**2 + 1)
        self.decoder_embed = nn.Linear(config.channels, width)
        self.class_embedding = embedding(1, width)
        self.positional_embedding = _positions(config, width)
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.latent_positional_embedding = token_embedding(config.tokens, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(config.decoder)
        self.ln_post = nn.LayerNorm(width)
        self.ffn = nn.Linear(width, config.patch**2 * 3)  # a 1x1 convolution in the official file
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
        self.apply(init_weights)
        # Starts as an even grey: what is learned first is then a read-out of the features, and their content survives.
        nn.init.zeros_(self.ffn.weight)
        nn.init.constant_(self.ffn.bias, 0.5)
        nn.init.dirac_(self.conv_out.weight)
        nn.init.zeros_(cast(nn.Parameter, self.conv_out.bias))

    def forward(self, tokens: Tensor) -> Tensor:
        masks = self.constant_rows().expand(tokens.shape[0], -1, -1)
        x = self.ln_pre(torch.cat([masks, self.latents(tokens)], 1))  # the latents stand last
        return self.image(self.transformer(x, self.patch_rows))

    def latents(self, tokens: Tensor) -> Tensor:
        """The rows that depend on the tokens, (B, N, D)."""
        return self.decoder_embed(tokens) + self.latent_positional_embedding

    def constant_rows(self) -> Tensor:
        """The rows before the latents, the same for every image: class and mask tokens, (1, 1 + G*G, D)."""
        position = self.positional_embedding
        return torch.cat([self.class_embedding + position[:1], self.mask_token + position[1:]])[None]

    def image(self, rows: Tensor) -> Tensor:
        """The patches' rows (B, G*G, D) to the image."""
        b, g, p = rows.shape[0], self.grid, self.patch
        x = self.ffn(self.ln_post(rows))  # (B, G*G, p*p*3) in the order (p1, p2, c), as the official file has it
        return self.conv_out(x.reshape(b, g, g, p, p * 3).transpose(2, 3).reshape(b, g * p, g * p, 3).permute(0, 3, 1, 2))


class Tokenizer(nn.Module):
    """Encoder and decoder of one `TokenizerConfig`."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
