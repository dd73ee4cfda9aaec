"""TaskTok's own training as numbers, one recipe a variant. Tasks are cls, det and seg, as its data sets have them."""

from pydantic import BaseModel, ConfigDict, Field

from tasktok_edge.data.official import TASKS
from tasktok_edge.data.steps import BATCH, TASK_WEIGHTS
from tasktok_edge.errors import unknown_word


class JointRecipe(BaseModel):
    """The defaults are the official ones. A shorter run keeps its schedules in proportion: all are shares of `steps`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int | None = None  # what the tokenizer must have; None takes any
    steps: int = Field(default=140_000, ge=1)
    seed: int = 7777
    batch: dict[str, int] = dict(BATCH)  # of all processes together
    task_draw: dict[str, float] = dict(TASK_WEIGHTS)

    decoder_rate: float = 1e-5  # AdamW, all three
    refiner_rate: float = 1e-4
    switch_rate: float = 1e-3
    restorer_decay: float = 1e-2
    switch_share: float = 0.05  # of its task's own steps, then the switch stays where the cosine ends
    net_rates: dict[str, float] = {"cls": 5e-3, "det": 5e-3, "seg": 1e-3}  # SGD
    net_momentum: float = 0.9
    net_decay: float = 1e-4

    feature_weight: float = 1.0
    token_weight: float = 0.1
    mask_weight: float
    drift_weight: float = 0.5  # of a task network's features from those of its teacher

    # False keeps batch normalisation and dropout of the task networks still: then several processes do exactly what one does.
    norms_learn: bool = True
    detector_sides: tuple[int, int] = (800, 1333)  # the detector's own short and long side, pixels
    save_every: int = Field(default=2_000, ge=1)  # steps
    validate_every: int = Field(default=10_000, ge=1)
    validate_frames: int | None = Field(default=None, ge=1)  # of each task; None for all

    def share(self, task: str) -> float:
        """How much of the steps are of this task, on average."""
        return self.task_draw[task] / sum(self.task_draw.values())

    def own_steps(self, task: str) -> int:
        """How many steps of this task its schedules count on."""
        return max(int(self.steps * self.share(task)), 1)

    def switch_steps(self, task: str) -> int:
        """How many steps of this task its switch learns for."""
        return max(int(self.own_steps(task) * self.switch_share), 1)


JOINT_RECIPES: dict[str, JointRecipe] = {
    "tasktok-64": JointRecipe(tokens=64, mask_weight=0.05),
    "tasktok-256": JointRecipe(tokens=256, mask_weight=0.5),
    # To try the machinery on small trees: seconds on a CPU, with any tokenizer.
    "tasktok-mini": JointRecipe(
        mask_weight=0.05,
        steps=6,
        batch={"cls": 4, "det": 2, "seg": 2},
        detector_sides=(64, 128),
        save_every=3,
        validate_every=6,
        validate_frames=2,
    ),
}
assert all(set(recipe.net_rates) == set(TASKS) for recipe in JOINT_RECIPES.values())


def joint_recipe(name: str) -> JointRecipe:
    """Give the recipe of this name; UsageError lists what there is."""
    if name not in JOINT_RECIPES:
        raise unknown_word("recipe", name, JOINT_RECIPES)
    return JOINT_RECIPES[name]
