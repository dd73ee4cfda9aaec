"""The recipe: every number of a training run, in the order in which the stages run."""

from pydantic import BaseModel, ConfigDict, Field

from tasktok_edge.errors import unknown_word


class _Stage(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    batch: int = Field(ge=2)


class TaskNetStage(_Stage):
    """Task networks on clean frames: the oracles, and later the teachers."""

    learning_rate: float = 2e-3
    weight_decay: float = 1e-2


class PreRestorerStage(_Stage):
    """L1 to the clean frame, as EDTR trains its SwinIR."""

    learning_rate: float = 1e-3


class TokenizerStage(_Stage):
    """L1 of clean frames to themselves; `degraded_share` of a batch are pre-restored frames instead, so that the encoder has
    seen what it will be given. Task features come later: a decoder that shows nothing yet learns to please them with noise."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warm_up: int = 50
    beta_2: float = 0.95
    degraded_share: float = Field(default=0.25, ge=0, lt=1)


class GreedyStage(BaseModel):
    """How many training frames order the tokens of each task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: int = Field(ge=1)


class JointStage(_Stage):
    """Refiner, decoder, switches and task networks, one task a step (TaskTok)."""

    decoder_rate: float = 2e-4
    refiner_rate: float = 5e-4
    task_net_rate: float = 5e-4
    weight_decay: float = 1e-2
    token_weight: float = 0.1
    mask_weight: float = 0.05
    # TaskTok has no pixel loss. With a run this short, a little of one keeps the picture one that a person recognises.
    pixel_weight: float = 0.5
    # TaskTok has no task loss on the restored image either; a second, short round that has one catches up on seg and det.
    task_weight: float = 0.0
    # False leaves the restorer and the switches as they are: only step B, the task networks on what they will be shown.
    restorer_learns: bool = True
    task_draw: dict[str, float] = {"cls": 2.0, "det": 1.0, "seg": 1.0}
    # The official switch learns at 1e-3 for the first 5 % of its task's steps: a summed rate of 1.75 (cls) and 0.88. A short
    # run keeps the sum, which is what bounds how far a token can move, and not the rate.
    switch_share: float = 0.05
    switch_rate_sum: dict[str, float] = {"cls": 1.751, "det": 0.876, "seg": 0.876}


class Recipe(BaseModel):
    """One run from nothing to a checkpoint. Frames are scenes of the split `train` under Mix-B."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str
    seed: int = 7777
    frames: int = Field(ge=2)
    versions: int = Field(ge=1)
    task_nets: TaskNetStage
    prerestorer: PreRestorerStage
    tokenizer: TokenizerStage
    greedy: GreedyStage
    joint: tuple[JointStage, ...]  # rounds; the switches start from the greedy order in each


RECIPES: dict[str, Recipe] = {
    "scenes-server": Recipe(
        preset="scenes-server",
        frames=16000,
        versions=2,
        task_nets=TaskNetStage(steps=1600, batch=32),
        prerestorer=PreRestorerStage(steps=1000, batch=16),
        tokenizer=TokenizerStage(steps=1000, batch=24),
        greedy=GreedyStage(frames=16),
        joint=(
            # The refiner knows nothing yet when the switches move: what they choose is kept from the second round.
            JointStage(steps=1250, batch=20),
            JointStage(
                steps=2200,
                batch=20,
                decoder_rate=3e-4,
                task_net_rate=1e-3,
                task_weight=0.5,
                mask_weight=0.02,
                task_draw={"cls": 1.0, "det": 2.0, "seg": 2.0},
            ),
            JointStage(
                steps=1300, batch=20, task_net_rate=1e-3, restorer_learns=False, task_draw={"cls": 0.2, "det": 1.0, "seg": 0.8}
            ),
        ),
    ),
    "tiny": Recipe(
        preset="tiny",
        frames=16,
        versions=1,
        task_nets=TaskNetStage(steps=2, batch=4),
        prerestorer=PreRestorerStage(steps=2, batch=4),
        tokenizer=TokenizerStage(steps=2, batch=4),
        greedy=GreedyStage(frames=2),
        joint=(JointStage(steps=4, batch=4), JointStage(steps=2, batch=4, restorer_learns=False)),
    ),
}


def recipe(name: str) -> Recipe:
    """Give the recipe of this name; UsageError lists what there is."""
    if name not in RECIPES:
        raise unknown_word("recipe", name, RECIPES)
    return RECIPES[name]
