"""Files of token orders, and the search that finds them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tasktok_edge.data.official import Training, open_dataset
from tasktok_edge.errors import UsageError
from tasktok_edge.train.greedy_frames import Orders, find_orders, official_frames
from tasktok_edge.train.joint_data import sizes_of
from tasktok_edge.train.loop import Progress
from tasktok_edge.train.orders import read_orders, write_orders
from tasktok_edge.train.search import Order, deadline, search
from tests.train import helpers_joint as helpers

TASKS = ("cls", "det", "seg")
WEIGHTS = torch.tensor([3.0, 1.0, 5.0, 1.0, 0.5])  # how much each token is missed; 1 and 3 equally


def score(tokens: Tensor) -> float:
    """1 with clean tokens (ones); each degraded one (zero) costs its weight."""
    return float((tokens[..., 0] * WEIGHTS).sum() / WEIGHTS.sum())


def found(**options: Any) -> Order:
    clean = torch.ones(1, 5, 1)
    last: Any = None
    for last in search(score, clean, 0 * clean, name="order", stop=options.pop("stop", lambda: False), **options):
        assert isinstance(last, Progress | Order)
    assert isinstance(last, Order)
    assert torch.equal(clean, torch.ones(1, 5, 1))
    return last


def test_the_order_of_a_case_that_is_known() -> None:
    order = found()
    assert order.tokens == [4, 1, 3, 0, 2]  # least missed first; of equals the lowest index
    assert order.rounds == 5
    assert order.metrics == pytest.approx([10 / 10.5, 9 / 10.5, 8 / 10.5, 5 / 10.5, 0])
    assert (order.clean, order.degraded) == (1.0, 0.0)


def test_a_search_that_stops_early_ranks_the_rest_by_their_last_score() -> None:
    assert found(rounds=2) == Order([4, 1, 3, 0, 2], 2, pytest.approx([10 / 10.5, 9 / 10.5]), 1.0, 0.0)
    assert found(rounds=99).rounds == 5
    calls: Iterator[bool] = iter([*[False] * 5, *[True] * 9])  # in the middle of the third round
    stopped = found(stop=lambda: next(calls))
    assert stopped.rounds == 2
    assert stopped.tokens == [4, 1, 3, 0, 2]
    assert found(stop=lambda: True).rounds == 1  # without a round there are no scores


def test_deadlines() -> None:
    assert not deadline(None, helpers.alone())()
    assert not deadline(60, helpers.alone())()
    assert deadline(0, helpers.alone())()


def test_orders_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "orders.pt"
    rows = helpers.orders()
    story = write_orders(path, {task: Order(row, 2, [0.5], 1.0, 0.0) for task, row in rows.items()}, facts={"seed": 3})
    assert read_orders(path, tasks=TASKS, tokens=6) == rows
    raw = torch.load(path, weights_only=True)
    assert raw["orders"].dtype == torch.int64
    assert (tuple(raw["orders"].shape), raw["task_names"], raw["rounds"]) == ((3, 6), list(TASKS), [2, 2, 2])
    told = json.loads(story.read_text())
    assert told["seed"] == 3
    assert told["orders"]["det"]["tokens"] == rows["det"]
    assert told["orders"]["det"]["rounds"] == 2


def test_an_official_file_is_read(tmp_path: Path) -> None:
    """It has more entries, and perhaps another order of tasks."""
    path = tmp_path / "greedy.pt"
    data = {"orders": torch.tensor([[1, 0], [0, 1], [1, 0]]), "task_names": ["seg", "cls", "det"], "metrics": {"cls": [1.0]}}
    torch.save(data, path)
    assert read_orders(path, tasks=TASKS, tokens=2) == {"cls": [0, 1], "det": [1, 0], "seg": [1, 0]}


GOOD = torch.arange(3).repeat(3, 1)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"orders": GOOD}, "lacks 'orders' or 'task_names'"),
        ([1], "lacks 'orders' or 'task_names'"),
        ({"orders": GOOD, "task_names": ["cls", "det"]}, "the model's tasks are cls, det, seg"),
        ({"orders": GOOD, "task_names": ["cls", "det", "sgm"]}, "tasks are cls, det, seg"),
        ({"orders": GOOD, "task_names": 3}, "tasks are cls, det, seg"),
        ({"orders": GOOD.float(), "task_names": list(TASKS)}, "expected int64 (3, 3)"),
        ({"orders": GOOD.tolist(), "task_names": list(TASKS)}, "'orders' is list"),
        ({"orders": GOOD[:2], "task_names": list(TASKS)}, "expected int64 (3, 3)"),
        ({"orders": GOOD.repeat(1, 2), "task_names": list(TASKS)}, "orders 6 tokens, the model has 3"),
        ({"orders": GOOD.clamp(max=1), "task_names": list(TASKS)}, "does not hold every token 0 to 2 once"),
        ({"orders": GOOD - 1, "task_names": list(TASKS)}, "does not hold every token"),
        ({"orders": GOOD, "task_names": list(TASKS), "path": Path()}, "nothing of it was executed"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, data: object, told: str) -> None:
    path = tmp_path / "orders.pt"
    torch.save(data, path)
    with pytest.raises(UsageError) as caught:
        read_orders(path, tasks=TASKS, tokens=3)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_of_torch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "orders.pt"
    with pytest.raises(UsageError, match="no orders at"):
        read_orders(path, tasks=TASKS, tokens=3)
    for content in (b"", b"PK\x03\x04", b"<html>", b"\x80\x04}"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="tasktok-edge greedy"):
            read_orders(path, tasks=TASKS, tokens=3)


def test_the_orders_of_a_model(trees: Path) -> None:
    """Whatever the networks answer, each order is one of all tokens, and the ends are those of all-clean, all-degraded."""
    model, oracles = helpers.build()
    accelerator, sizes = helpers.alone(), sizes_of(helpers.CONFIG)
    frames = {
        task: official_frames(
            open_dataset(task, trees / ("imagenet" if task == "cls" else "voc"), Training(123), sizes=sizes),
            task, n=3, seed=123, accelerator=accelerator,
        )
        for task in TASKS
    }  # fmt: skip
    *progress, last = find_orders(model, oracles, frames, accelerator=accelerator, rounds=1)
    assert isinstance(last, Orders)
    assert {step.stage for step in progress if isinstance(step, Progress)} == {"order-cls", "order-det", "order-seg"}
    for task in TASKS:
        order = last.found[task]
        assert sorted(order.tokens) == list(range(helpers.TOKENS))
        assert order.rounds == len(order.metrics) == 1
        assert all(0 <= value <= 1 for value in (order.clean, order.degraded, *order.metrics))
