"""Steps: the draw of tasks and samples is a function of seed and step, whoever asks, and with however many workers."""

from collections import Counter
from collections.abc import Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasktok_edge.data.geometry import Sizes
from tasktok_edge.data.official import TASKS, Draw, Evaluation, Task, TaskDataset, Training, open_dataset
from tasktok_edge.data.steps import BATCH, LISTS, TASK_WEIGHTS, Batch, Plan, Step, evaluation_batches, training_batches
from tasktok_edge.errors import UsageError
from tests.data.helpers_trees import write_imagenet, write_voc

SMALL = Sizes.scaled(64)
LENGTHS: dict[Task, int] = {"cls": 50, "det": 13, "seg": 7}
SMALL_BATCH = {"cls": 4, "det": 2, "seg": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trees")
    write_imagenet(root / "imagenet")
    write_voc(root / "voc")
    return root


@pytest.fixture(scope="module")
def training(root: Path) -> dict[Task, TaskDataset]:
    places: dict[Task, str] = {"cls": "imagenet", "det": "voc", "seg": "voc"}
    return {task: open_dataset(task, root / place, Training(), sizes=SMALL) for task, place in places.items()}


def small_plan(training: Mapping[Task, TaskDataset], seed: int = 0) -> Plan:
    return Plan({task: len(data) for task, data in training.items()}, seed=seed, batch=SMALL_BATCH)


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    """Lists joined, so that batches compare."""
    return {key: torch.cat(value) if isinstance(value, list) else value for key, value in batch.items()}


def assert_same(one: Step, other: Step) -> None:
    assert one.number == other.number
    assert one.task == other.task
    mine, yours = tensors(one.batch), tensors(other.batch)
    assert mine.keys() == yours.keys()
    for key in mine:
        assert torch.equal(mine[key], yours[key]), key


def test_the_official_weights_and_batches() -> None:
    assert TASK_WEIGHTS == {"cls": 2, "det": 1, "seg": 1}
    assert BATCH == {"cls": 16, "det": 8, "seg": 8}


def test_tasks_are_drawn_two_to_one_to_one_and_independently() -> None:
    plan = Plan(LENGTHS, seed=1)
    tasks = [plan.task(step)[0] for step in range(10_000)]
    counts = Counter(tasks)
    assert abs(counts["cls"] - 5000) < 250  # five deviations
    assert abs(counts["det"] - 2500) < 220
    pairs = Counter(pairwise(tasks))
    assert abs(pairs["cls", "cls"] - 2500) < 220
    assert abs(pairs["det", "seg"] - 625) < 125
    assert tasks[:4096] != tasks[4096:8192]  # blocks differ
    for step in (0, 5, 4095, 4096, 9999):
        assert plan.task(step)[1] == tasks[:step].count(tasks[step])


def test_weights_may_be_others_and_a_task_may_be_missing() -> None:
    plan = Plan({"det": 5, "cls": 5}, seed=1, weights={"cls": 1, "det": 3})
    counts = Counter(plan.task(step)[0] for step in range(2000))
    assert counts.keys() == {"cls", "det"}
    assert abs(counts["det"] - 1500) < 100


def test_the_plan_depends_on_seed_and_step_alone() -> None:
    def seen(plan: Plan, steps: range) -> list[tuple[str, list[Draw]]]:
        return [(plan.task(step)[0], plan.draws(step)) for step in steps]

    whole = seen(Plan(LENGTHS, seed=1), range(5000, 5030))
    assert seen(Plan(LENGTHS, seed=1), range(5010, 5030)) == whole[10:]
    assert seen(Plan(dict(reversed(LENGTHS.items())), seed=1), range(5000, 5030)) == whole
    assert seen(Plan(LENGTHS, seed=2), range(5000, 5030)) != whole
    assert [task for task, _ in whole] != [task for task, _ in seen(Plan(LENGTHS, seed=1), range(30))]


def test_every_epoch_shows_every_sample_once_in_another_order() -> None:
    plan = Plan(LENGTHS, seed=5)
    shown: dict[str, list[Draw]] = {task: [] for task in TASKS}
    for step in range(60):
        draws = plan.draws(step)
        assert len(draws) == BATCH[plan.task(step)[0]]
        shown[plan.task(step)[0]] += draws
    for task, n in LENGTHS.items():
        epochs = len(shown[task]) // n
        assert epochs >= 3
        orders = []
        for epoch in range(epochs):
            part = shown[task][epoch * n : (epoch + 1) * n]
            assert {draw.epoch for draw in part} == {epoch}
            assert sorted(draw.index for draw in part) == list(range(n))
            orders.append([draw.index for draw in part])
        assert orders[0] != orders[1]


def test_batches_hold_what_the_plan_says(training: dict[Task, TaskDataset]) -> None:
    plan = small_plan(training)
    seen = set()
    for step in training_batches(training, plan, start=4, steps=14):
        task, _ = plan.task(step.number)
        assert step.task == task
        seen.add(task)
        samples = [training[task][draw] for draw in plan.draws(step.number)]
        assert step.batch.keys() == samples[0].keys()
        for key, value in step.batch.items():
            assert isinstance(value, list) == (key in LISTS)
            assert len(value) == SMALL_BATCH[task]
            assert all(torch.equal(row, sample[key]) for row, sample in zip(value, samples, strict=True))
    assert step.number == 13
    assert seen == set(TASKS)


def test_steps_have_no_end_and_a_run_resumes(training: dict[Task, TaskDataset]) -> None:
    plan = small_plan(training)
    whole = list(islice(training_batches(training, plan), 9))
    resumed = list(training_batches(training, small_plan(training), start=6, steps=9))
    assert [step.number for step in whole] == list(range(9))
    for one, other in zip(whole[6:], resumed, strict=True):
        assert_same(one, other)


def test_processes_share_each_step(training: dict[Task, TaskDataset]) -> None:
    plan = small_plan(training)
    whole = training_batches(training, plan, steps=8)
    halves = [training_batches(training, small_plan(training), steps=8, process=r, processes=2) for r in (0, 1)]
    for step, first, second in zip(whole, *halves, strict=True):
        assert step.task == first.task == second.task
        for key, value in step.batch.items():
            for part, half in enumerate((first, second)):
                assert all(torch.equal(a, b) for a, b in zip(value[part::2], half.batch[key], strict=True))


def test_workers_change_nothing_and_faults_keep_their_one_sentence(training: dict[Task, TaskDataset], tmp_path: Path) -> None:
    # One test for both: two workers take seconds to start.
    tree = write_voc(tmp_path)
    faulty = training | {"det": open_dataset("det", tmp_path, Training(), sizes=SMALL)}
    path = tree / "Annotations" / f"{faulty['det'].pictures.names[1]}.xml"
    path.write_text("<annotation></annotation>")

    def take(workers: int) -> tuple[list[Step], str]:
        steps: list[Step] = []
        with pytest.raises(UsageError) as caught:
            steps.extend(training_batches(faulty, small_plan(faulty), workers=workers))
        return steps, str(caught.value)

    alone, fault = take(0)
    assert {step.task for step in alone} == set(TASKS)  # the faulty sample is none of the first
    assert fault.startswith(str(path))
    assert "\n" not in fault
    shared, same_fault = take(2)
    assert same_fault == fault
    for one, other in zip(alone, shared, strict=True):
        assert_same(one, other)


def test_global_generators_are_left_alone(training: dict[Task, TaskDataset]) -> None:
    torch.manual_seed(3)
    before, numbers = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"]
    list(training_batches(training, small_plan(training), steps=3))
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(numbers, np.random.get_state(legacy=False)["state"]["key"])


def test_evaluation_goes_through_the_data_in_order(root: Path) -> None:
    data = open_dataset("det", root / "voc", Evaluation(), sizes=SMALL)
    samples = [data[Draw(i)] for i in range(3)]

    def shown(options: dict[str, Any]) -> list[list[torch.Tensor]]:
        return [list(batch["degraded"]) for batch in evaluation_batches(data, **options)]

    for options, expected in (
        ({"batch": 2}, [[0, 1], [2]]),
        ({"limit": 2}, [[0], [1]]),
        ({"batch": 2, "process": 0, "processes": 2}, [[0, 2]]),
        ({"batch": 2, "process": 1, "processes": 2}, [[1]]),
    ):
        got = shown(options)
        assert [len(batch) for batch in got] == [len(batch) for batch in expected]
        for batch, indices in zip(got, expected, strict=True):
            assert all(torch.equal(image, samples[i]["degraded"]) for image, i in zip(batch, indices, strict=True))


def test_segmentation_is_evaluated_one_by_one(root: Path) -> None:
    data = open_dataset("seg", root / "voc", Evaluation(), sizes=SMALL)
    shapes = [tuple(tensors(batch)["semantic"].shape) for batch in evaluation_batches(data)]
    assert shapes == [(1, 70, 70), (1, 70, 93), (1, 112, 70)]
    with pytest.raises(UsageError, match="batch of 1"):
        list(evaluation_batches(data, batch=3))


def test_wrong_plans_are_refused_before_anything_is_read(training: dict[Task, TaskDataset], root: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'seg'"):
        Plan({"sgm": 3}, seed=0)  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="no task"):
        Plan({}, seed=0)
    for bad in ({"lengths": {"cls": 0}}, {"weights": {"cls": 0.0}}, {"batch": {"cls": 0}}):
        with pytest.raises(UsageError, match="more than 0"):
            Plan(**({"lengths": {"cls": 3}, "seed": 0} | bad))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="shared by 3 processes"):
        training_batches(training, small_plan(training), processes=3)
    with pytest.raises(UsageError, match="wants 50 samples of cls"):
        training_batches(training, Plan(LENGTHS, seed=0))
    fixed = training | {"cls": open_dataset("cls", root / "imagenet", Evaluation(), split="train", sizes=SMALL)}
    with pytest.raises(UsageError, match=r"Training\(\)"):
        training_batches(fixed, small_plan(training))
