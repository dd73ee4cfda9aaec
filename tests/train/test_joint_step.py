"""A step against the same step written plainly, and by hand; and that it moves what it should, and nothing else."""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from tasktok_edge.data.official import TASKS
from tasktok_edge.train.joint_step import JointStep, clean_half, with_clean_half
from tasktok_edge.train.views import BatchMean, View, answer_loss, feature_distance, look
from tests.train import helpers_joint as helpers


def features(net: Any, images: Tensor) -> list[Tensor]:
    return net.features(images)


def distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """The mean of the maps' L1: a half each for the detector's two."""
    return torch.stack([F.l1_loss(x, y) for x, y in zip(a, b, strict=True)]).mean()


def plain_step(model: Any, oracles: Any, task: str, batch: dict[str, Any]) -> None:
    """The step as section 2.1 of the technical brief tells it: one AdamW, one SGD, losses from torch."""
    student, teacher = model.task_nets[task], oracles[task]
    clean, degraded = batch["clean"], batch["degraded"]
    model.eval().requires_grad_(False)
    for module in (model.tokenizer.decoder, model.refiner, model.switch):
        module.requires_grad_(True)
    settings = [(model.tokenizer.decoder, 1e-5), (model.refiner, 1e-4), (model.switch, 1e-3)]
    adam = torch.optim.AdamW([{"params": module.parameters(), "lr": rate} for module, rate in settings])
    z = model.tokens(model.prerestorer(degraded))
    refined = model.refiner(z)
    p = torch.sigmoid(model.switch.logits[task])
    chosen = p > 0.5
    soft = p[:, None] * refined + (1 - p[:, None]) * z
    restored = model.decode(torch.where(chosen[:, None], refined, z).detach() - soft.detach() + soft)
    high = distance(features(student, restored), features(student, clean))
    high = high + distance(features(teacher, restored), features(teacher, clean))
    missed = (refined - model.tokens(clean)).abs()[:, chosen].sum() / max(int(chosen.sum()) * len(clean) * z.shape[2], 1)
    (high + 0.1 * missed + 0.05 * p.mean()).backward()
    adam.step()

    student.train().requires_grad_(True)
    rates = {"cls": 5e-3, "det": 5e-3, "seg": 1e-3}
    sgd = torch.optim.SGD(student.parameters(), rates[task], momentum=0.9, weight_decay=1e-4)
    half = len(clean) // 2
    seen = features(student, torch.cat([restored.detach(), clean[:half]]))
    wanted = [f.detach() for f in features(teacher, torch.cat([clean, clean[:half]]))]
    if task == "cls":
        answer = F.cross_entropy(student.answer(seen), torch.cat([batch["label"], batch["label"][:half]]))
    elif task == "seg":
        mask = torch.cat([batch["semantic"], batch["semantic"][:half]])
        answer = F.cross_entropy(student.answer(seen, (64, 64)), mask, ignore_index=255)
    else:
        labels = batch["box_labels"] + batch["box_labels"][:half]
        answer = sum(student.losses(seen, (64, 64), batch["boxes"] + batch["boxes"][:half], labels).values())
    (answer + 0.5 * distance(seen, wanted)).backward()
    sgd.step()
    student.eval()


@pytest.mark.parametrize("task", TASKS)
def test_a_step_is_the_one_of_the_paper(task: str) -> None:
    """The same weights afterwards, so: losses, their weights, what is detached, optimisers, rates, decay."""
    model, oracles = helpers.build()
    for name, order in helpers.orders().items():
        model.switch.start_from_order(name, order)
    oracles[task].load_state_dict(helpers.build(1)[1][task].state_dict())  # a teacher that is not the student
    theirs = deepcopy(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = helpers.batch(task)
    step = JointStep(helpers.quick(steps=140_000), model, oracles, helpers.alone())
    torch.manual_seed(5)
    step(task, batch)
    torch.manual_seed(5)
    plain_step(theirs, oracles, task, batch)
    after, wanted = model.state_dict(), theirs.state_dict()
    for name, value in after.items():
        assert torch.allclose(value.double(), wanted[name].double(), rtol=1e-4, atol=1e-6), name
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    may_move = ("tokenizer.decoder.", "refiner.", f"switch.logits.{task}", f"task_nets.{task}.")
    assert all(name.startswith(may_move) for name in moved)  # other tasks' switches and networks: bit for bit as before
    assert all(any(name.startswith(part) for name in moved) for part in may_move)


def test_a_second_task_leaves_the_first_alone() -> None:
    """AdamW would decay a switch, and momentum carry a network on, if their gradients were zero and not None."""
    model, oracles = helpers.build()
    for name, order in helpers.orders().items():
        model.switch.start_from_order(name, order)
    step = JointStep(helpers.quick(), model, oracles, helpers.alone())
    step("cls", helpers.batch("cls"))
    kept = {name: value.clone() for name, value in model.state_dict().items() if ".cls" in name}
    step("seg", helpers.batch("seg"))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())
    assert [step.groups[name].updates for name in ("decoder", "switch-cls", "switch-seg", "net-det")] == [2, 1, 1, 0]


def test_feature_distance_by_hand() -> None:
    a = [View([0], (2, 2), [torch.tensor([1.0, 2]), torch.tensor([5.0])]), View([1], (4, 4), [torch.zeros(4), torch.zeros(1)])]
    b = [View([0], (2, 2), [torch.tensor([2.0, 4]), torch.tensor([1.0])]), View([1], (4, 4), [torch.ones(4), torch.ones(1)])]
    # Map 0: (1 + 2 + 4) / 6; map 1: (4 + 1) / 2.
    assert feature_distance(a, b, BatchMean(helpers.alone())) == pytest.approx((7 / 6 + 5 / 2) / 2)


def test_a_mean_over_processes_counts_every_pixel_once() -> None:
    """Two processes with 3 and 1 valid pixels: sums 6 and 4 make 10 / 4, the mean of 6 / 2 and 4 / 2."""
    two = cast(Accelerator, SimpleNamespace(num_processes=2, reduce=lambda n, reduction: torch.full_like(n, 2.0)))
    parts = [BatchMean(two)(torch.tensor(total), count) for total, count in ((6.0, 3), (4.0, 1))]
    assert torch.stack(parts).mean() == pytest.approx(10 / 4)
    none = cast(Accelerator, SimpleNamespace(num_processes=2, reduce=lambda n, reduction: torch.zeros_like(n)))
    assert BatchMean(none)(torch.tensor(0.0), 0) == 0.0  # no valid pixel anywhere


def test_the_detector_sees_no_padding_and_all_losses_count() -> None:
    net: Any = helpers.build()[0].task_nets["det"].eval()
    batch = helpers.batch("det", n=3)
    batch["valid_size"] = torch.tensor([[64, 64], [40, 64], [64, 64]])
    batch["boxes"][1] = torch.tensor([[1.0, 2, 30, 39], [5, 5, 20, 30]])
    views = look(net, batch["clean"], batch["valid_size"])
    assert [view.rows for view in views] == [[0, 2], [1]]
    torch.testing.assert_close(views[1].features[0], net.features(batch["clean"][1:2, :, :40])[0])
    dirty = batch["clean"].clone()
    dirty[1, :, 40:] = 9.0
    assert torch.equal(look(net, dirty, batch["valid_size"])[1].features[1], views[1].features[1])
    # Means over all three images: each size's own means, weighted by what was sampled in it.
    torch.manual_seed(0)
    found = answer_loss(net, "det", views, batch, BatchMean(helpers.alone()))
    torch.manual_seed(0)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for view in views:
        boxes, labels = [batch["boxes"][i] for i in view.rows], [batch["box_labels"][i] for i in view.rows]
        sampled = count_sampled(net, view, boxes, labels)
        for name, loss in net.losses(view.features, view.size, boxes, labels).items():
            part = "rpn" if name in ("loss_objectness", "loss_rpn_box_reg") else "roi"
            sums[name] = sums.get(name, torch.zeros(())) + loss * sampled[part]
        for part, n in sampled.items():
            counts[part] = counts.get(part, 0) + n
    wanted = sum(total / counts["rpn" if "object" in name or "rpn" in name else "roi"] for name, total in sums.items())
    torch.testing.assert_close(found, cast(Tensor, wanted))


def count_sampled(net: Any, view: View, boxes: list[Tensor], labels: list[Tensor]) -> dict[str, int]:
    """What the detector itself samples, watched from outside; leaves the random numbers as they were."""
    from tasktok_edge.model import detection_ops as ops

    counted: list[int] = []
    original, state = ops.sample, torch.get_rng_state()

    def watched(kind: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
        found = original(kind, count, share)
        counted.append(len(found[0]) + len(found[1]))
        return found

    ops.sample = watched
    try:
        net.losses(view.features, view.size, boxes, labels)
    finally:
        ops.sample = original
        torch.set_rng_state(state)
    n = len(view.rows)
    return {"rpn": sum(counted[:n]), "roi": sum(counted[n:])}


def test_clean_half_is_the_same_images_however_they_are_shared() -> None:
    for n, processes in ((16, 1), (4, 4), (1, 8), (2, 3)):
        taken = [row for r in range(processes) for row in range(r, n * processes, processes)[: clean_half(n, r, processes)]]
        assert sorted(taken) == list(range(n * processes // 2))
    twice = with_clean_half(helpers.batch("det"), 4, helpers.alone())
    assert len(twice["clean"]) == len(twice["boxes"]) == len(twice["valid_size"]) == 6
    assert "degraded" not in twice
