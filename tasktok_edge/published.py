"""The forward as TaskTok publishes it, every row of every layer computed: what savings are counted and timed against."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tasktok_edge.model.tasktok import TaskTok


class Published:
    """The same function as the model, without any cut: frames (1, 3, S, S) in nominal [0, 1] to frames."""

    def __init__(self, model: TaskTok) -> None:
        self.model = model

    def encode(self, image: Tensor) -> Tensor:
        """A pre-restored image of the tokenizer's own size to tokens (B, N, C)."""
        encoder = self.model.tokenizer.encoder
        first, latents = (rows.expand(image.shape[0], -1, -1) for rows in encoder.constant_rows())
        x = encoder.transformer(encoder.ln_pre(torch.cat([first, encoder.patches(image), latents], 1)))
        return encoder.conv_out(encoder.ln_post(x[:, encoder.latent_rows]))

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C) to an image of the tokenizer's own size."""
        decoder = self.model.tokenizer.decoder
        if decoder.cross:
            return decoder(tokens)
        x = torch.cat([decoder.constant_rows().expand(tokens.shape[0], -1, -1), decoder.latents(tokens)], 1)
        return decoder.image(decoder.ln_post(decoder.transformer(decoder.ln_pre(x))[:, decoder.patch_rows]))

    def restore(self, image: Tensor, task: str) -> Tensor:
        """The whole way of a frame."""
        config = self.model.config
        z = self.encode(_resized(self.model.prerestorer(image), config.tokenizer.image_size))
        return _resized(self.decode(self.model.replace_selected(z, task)), config.image_size)


def _resized(image: Tensor, size: int) -> Tensor:
    if image.shape[-1] == size:
        return image
    return F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False, antialias=False)


def candidates(model: TaskTok, task: str) -> dict[str, Callable[[], object]]:
    """The published forward beside the graph that is exported, both in PyTorch on one frame, for bench."""
    from tasktok_edge.export.graph import Deployed, Function

    size = model.config.image_size
    frame = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    published, graph = Published(model), Deployed(model, [Function("restore", task)]).eval()

    @torch.inference_mode()
    def as_published() -> Tensor:
        return published.restore(frame.permute(0, 3, 1, 2).float() / 255, task)

    @torch.inference_mode()
    def as_exported() -> Tensor:
        return graph(frame)[0]

    return {"as published": as_published, "as exported": as_exported}
