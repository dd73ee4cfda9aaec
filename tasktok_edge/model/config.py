"""What a TaskTok model is made of, as numbers. A checkpoint's config.json is one `TaskTokConfig`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from tasktok_edge.errors import unknown_word

Level = Literal["exact", "context", "selected"]
TaskKind = Literal["cls", "seg", "det"]
TaskNetName = Literal["scenes", "resnet18", "deeplabv3_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_fpn", "own", "none"]

STRIDE = 4  # of the first stage of a scenes' network, of its pyramid, and of the detector's heat map


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ViTConfig(_Config):
    """A stack of pre-norm transformer blocks; a head is `width / heads` wide, however many of them are left."""

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    activation: Literal["gelu", "relu"] = "gelu"  # int8 engines make ReLU a part of the layer before it
    kept: tuple[tuple[int, int], ...] = ()  # of each block, what slimming left: heads and hidden units of the MLP

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def block(self, i: int) -> tuple[int, int]:
        """Heads and hidden units of block i."""
        return self.kept[i] if self.kept else (self.heads, int(self.width * self.mlp_ratio))


class TokenizerConfig(_Config):
    """TiTok (arXiv 2406.07550) without its quantiser: image to 1-D latent tokens and back."""

    image_size: int
    patch: int
    tokens: int
    channels: int
    encoder: ViTConfig
    decoder: ViTConfig
    class_token: bool = True  # a row of neither patches nor latents, which nobody reads
    cross: bool = False  # the decoder's patches see the latents alone, not each other, and the latents stay as they are
    smooth: bool = True  # a 3x3 convolution over the decoded pixels

    @property
    def grid(self) -> int:
        return self.image_size // self.patch


class PreRestorerConfig(_Config):
    """A residual convolution net on space-to-depth features; `blocks = 0` leaves the frame as it is."""

    width: int
    blocks: int
    unshuffle: int


class SwinIRConfig(_Config):
    """SwinIR (arXiv 2108.10257) on space-to-depth features, as TaskTok's pre-restorer has it; frozen there."""

    width: int = 180
    depths: tuple[int, ...] = (3, 3, 3, 3)
    heads: int = 6
    window: int = 8
    mlp_ratio: float = 2.0
    unshuffle: int = 8
    head_width: int = 64  # channels of the convolutions that bring the grid back to the frame's size


class TaskConfig(_Config):
    """A task, its labels, and the network that answers it; `net = "none"` for a model that only restores."""

    kind: TaskKind
    labels: tuple[str, ...]
    net: TaskNetName = "scenes"
    framing: Literal["windows", "pad"] = "windows"  # how a frame that is not square is brought to the model's square
    # What follows is for the small networks of the scenes alone.
    stem: int = 0
    patch: int = 0  # in the place of a stem of two convolutions, one that reads the image in patches of this side
    widths: tuple[int, ...] = ()  # one stage each, the first at stride 4, each further one halves the grid
    head: int = 0  # channels of the feature pyramid; unused by classification

    @property
    def n_outputs(self) -> int:
        return len(self.labels)

    def heat_map(self, image_size: int) -> int:
        """The side of the grid whose cells give a box each; 0 for a network that finds boxes otherwise."""
        return image_size // STRIDE if self.kind == "det" and self.net == "scenes" else 0

    @property
    def is_incomplete(self) -> bool:
        return self.net == "scenes" and not (self.widths and (self.stem or self.patch))


class TaskTokConfig(_Config):
    """Everything that is needed to build the module again. `image_size` is the side of the square frame it takes."""

    preset: str
    image_size: int
    prerestorer: PreRestorerConfig | SwinIRConfig
    tokenizer: TokenizerConfig
    refiner: ViTConfig
    tasks: dict[str, TaskConfig]
    level: Level = "exact"
    fused: bool = False  # layers that meet at an image are one, and the image is never made: see model/fuse.py
    int8: dict[str, str] = {}  # layers that compute in int8, and where their input is quantised: see model/int8.py
    resize: Literal["area", "bicubic"] = "area"  # how a frame is brought to `image_size`; official models alias by design

    @property
    def fuses_front(self) -> bool:
        """Whether the pre-restorer's last convolution and the patch embedding can be one: nothing but sums lies between."""
        pre, tokenizer = self.prerestorer, self.tokenizer
        light = isinstance(pre, PreRestorerConfig) and pre.blocks > 0
        return light and tokenizer.image_size == self.image_size and tokenizer.patch % pre.unshuffle == 0

    def fuses_stem(self, task: str) -> bool:
        """Whether the decoder's last layer and the first of this task's network can be one."""
        tokenizer, patch = self.tokenizer, self.tasks[task].patch
        plain = self.tasks[task].net == "scenes" and not tokenizer.smooth and tokenizer.image_size == self.image_size
        return plain and patch > 0 and tokenizer.patch % patch == 0

    @property
    def can_fuse(self) -> bool:
        return not self.fused and (self.fuses_front or any(self.fuses_stem(task) for task in self.tasks))

    @model_validator(mode="after")
    def _sizes_fit(self) -> "TaskTokConfig":
        tokenizer, pre = self.tokenizer, self.prerestorer
        fits = [
            ("tokenizer.image_size", tokenizer.image_size, "patch", tokenizer.patch),
            ("image_size", self.image_size, "prerestorer.unshuffle", pre.unshuffle),
            ("encoder.width", tokenizer.encoder.width, "heads", tokenizer.encoder.heads),
            ("decoder.width", tokenizer.decoder.width, "heads", tokenizer.decoder.heads),
            ("refiner.width", self.refiner.width, "heads", self.refiner.heads),
        ]
        if isinstance(pre, SwinIRConfig):
            fits += [
                ("image_size", self.image_size, "prerestorer.unshuffle x window", pre.unshuffle * pre.window),
                ("prerestorer.width", pre.width, "heads", pre.heads),
            ]
        faults = [
            f"{what} {size} is not a multiple of {unit_name} {unit}"
            for what, size, unit_name, unit in fits
            if unit < 1 or size % unit
        ]
        for name, vit in (("encoder", tokenizer.encoder), ("decoder", tokenizer.decoder), ("refiner", self.refiner)):
            if vit.kept and (len(vit.kept) != vit.layers or any(h < 1 or m < 1 for h, m in vit.kept)):
                faults.append(f"{name}.kept {vit.kept} is not heads and hidden units of {vit.layers} blocks")
        faults += [
            f"task {name} has a network of the scenes without widths" for name, t in self.tasks.items() if t.is_incomplete
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return self


SCENE_KINDS = ("ball", "box", "triangle", "star", "ring", "cross", "crescent", "capsule")


def _scene_tasks(widths: tuple[int, ...], head: int, *, stem: int = 0, patch: int = 0) -> dict[str, TaskConfig]:
    return {
        "cls": TaskConfig(kind="cls", labels=SCENE_KINDS, stem=stem, patch=patch, widths=widths),
        "seg": TaskConfig(kind="seg", labels=("background", *SCENE_KINDS), stem=stem, patch=patch, widths=widths, head=head),
        "det": TaskConfig(kind="det", labels=SCENE_KINDS, stem=stem, patch=patch, widths=widths, head=head),
    }


PRESETS: dict[str, TaskTokConfig] = {
    "scenes-server": TaskTokConfig(
        preset="scenes-server",
        image_size=128,
        prerestorer=PreRestorerConfig(width=48, blocks=3, unshuffle=8),
        tokenizer=TokenizerConfig(
            image_size=128,
            patch=16,
            tokens=32,
            channels=64,
            encoder=ViTConfig(width=128, layers=4, heads=4),
            decoder=ViTConfig(width=192, layers=5, heads=6),
        ),
        refiner=ViTConfig(width=128, layers=4, heads=4),
        tasks=_scene_tasks((32, 64, 128), 48, stem=24),
    ),
    "scenes-edge": TaskTokConfig(
        preset="scenes-edge",
        image_size=128,
        prerestorer=PreRestorerConfig(width=48, blocks=3, unshuffle=8),
        tokenizer=TokenizerConfig(
            image_size=128,
            patch=16,
            tokens=32,
            channels=64,
            encoder=ViTConfig(width=128, layers=2, heads=4, activation="relu"),
            decoder=ViTConfig(width=192, layers=2, heads=6, activation="relu"),
            class_token=False,
            cross=True,
            smooth=False,
        ),
        refiner=ViTConfig(width=128, layers=2, heads=4, activation="relu"),
        tasks=_scene_tasks((32, 64, 128), 48, patch=4),
    ),
    # Not trained, not shipped: seconds to build and export, for tests. N differs from the channel count on purpose, so that
    # a transposed token tensor shows.
    "tiny": TaskTokConfig(
        preset="tiny",
        image_size=32,
        prerestorer=PreRestorerConfig(width=8, blocks=1, unshuffle=4),
        tokenizer=TokenizerConfig(
            image_size=32,
            patch=8,
            tokens=6,
            channels=10,
            encoder=ViTConfig(width=16, layers=2, heads=2),
            decoder=ViTConfig(width=16, layers=2, heads=2),
        ),
        refiner=ViTConfig(width=16, layers=2, heads=2),
        tasks=_scene_tasks((8, 8, 16), 8, stem=8),
    ),
    "tiny-edge": TaskTokConfig(
        preset="tiny-edge",
        image_size=32,
        prerestorer=PreRestorerConfig(width=8, blocks=1, unshuffle=4),
        tokenizer=TokenizerConfig(
            image_size=32,
            patch=8,
            tokens=24,  # 12 selected: OpenVINO 2026.4 errs in int8 linears of 8 rows and fewer as narrow as these
            channels=10,
            encoder=ViTConfig(width=16, layers=1, heads=2, activation="relu"),
            decoder=ViTConfig(width=16, layers=2, heads=2, activation="relu"),
            class_token=False,
            cross=True,
            smooth=False,
        ),
        refiner=ViTConfig(width=16, layers=1, heads=2, activation="relu"),
        tasks=_scene_tasks((8, 8, 16), 8, patch=4),
    ),
}


def preset(name: str) -> TaskTokConfig:
    """Give the preset of this name; UsageError lists what there is."""
    if name not in PRESETS:
        raise unknown_word("preset", name, PRESETS)
    return PRESETS[name]
