"""A task network of the user's: found, checked, put in the place of the checkpoint's own, exported and run as documented."""

import dataclasses
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasktok_edge.cli import run
from tasktok_edge.errors import UsageError
from tasktok_edge.export import Target
from tasktok_edge.export.graph import Deployed, functions_of
from tasktok_edge.model.checkpoint import load_checkpoint
from tasktok_edge.model.config import TaskKind
from tasktok_edge.model.onnx_net import OnnxNet
from tasktok_edge.model.own_net import load_own_net, parse_task_nets, read_labels, use_task_nets, with_task_net
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.parity import export_verified
from tasktok_edge.runtimes import Classification, load

SIZE = 32
README = Path(__file__).parents[2] / "README.md"


class Small(nn.Module):
    """Classifier of five labels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(image * 2 - 1)).mean((2, 3)))


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small().eval()


def write_onnx(path: Path, net: nn.Module | None = None) -> Path:
    torch.onnx.export(net or small(), (torch.zeros(1, 3, SIZE, SIZE),), path, dynamo=False, opset_version=17, verbose=False)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def nets(folder: Path, code: str) -> None:
    """Write nets.py: `code` is what the function returns, `Net` calls `answer(image)`."""
    (folder / "nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, answer):\n        super().__init__()\n        self.answer = answer\n"
        "    def forward(self, image):\n        return self.answer(image)\n"
        f"def net():\n{textwrap.indent(code, '    ')}\n"
    )


def refused(spec: str, kind: TaskKind = "cls") -> str:
    with pytest.raises(UsageError) as caught:
        load_own_net(spec, kind=kind, image_size=SIZE)
    told = str(caught.value)
    assert "\n" not in told and spec.split(":")[0] in told
    return told


def test_words() -> None:
    tasks = ["cls", "seg", "det"]
    assert parse_task_nets(["cls=a=b.onnx", "seg=pkg.nets:roads"], tasks) == {"cls": "a=b.onnx", "seg": "pkg.nets:roads"}
    assert parse_task_nets([], tasks) == {}
    for words, told in (
        (["sgm=a.onnx"], "did you mean 'seg'"),
        (["a.onnx"], "expected TASK=FILE.onnx"),
        (["cls="], "expected TASK=FILE.onnx"),
        (["=a.onnx"], "expected TASK=FILE.onnx"),
        (["cls=a.onnx", "cls=b.onnx"], "names cls twice: 'a.onnx' and 'b.onnx'"),
    ):
        with pytest.raises(UsageError, match=re.escape(told)):
            parse_task_nets(words, tasks)


def test_a_function_of_the_current_directory(here: Path) -> None:
    (here / "pkg").mkdir()
    (here / "pkg" / "parts.py").write_text("from torch import nn\n")
    (here / "pkg" / "flowers.py").write_text(
        "def net():\n"
        "    from pkg.parts import nn  # found while the function runs too\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7)).eval()\n"
    )
    net, count = load_own_net("pkg.flowers:net", kind="cls", image_size=SIZE)
    assert count == 7 and not any(p.requires_grad for p in net.parameters())


def test_a_file(here: Path) -> None:
    net, count = load_own_net(str(write_onnx(here / "net.onnx")), kind="cls", image_size=SIZE)
    assert isinstance(net, OnnxNet) and count == 5
    assert "(1, 5), expected logits (1, K, 32, 32)" in refused("net.onnx", "seg")
    with pytest.raises(UsageError, match=r"is \(1, 3, 32, 32\), expected \(1, 3, 64, 64\)"):
        load_own_net("net.onnx", kind="cls", image_size=64)
    assert "no ONNX file at 'other.onnx'" in refused("other.onnx")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("net.pt", "expected a path ending in .onnx, or package.module:callable"),
        ("nets.py:net", "callable (without .py)"),
        ("nets", "expected a path ending in .onnx"),
        ("../nets:net", "expected a path ending in .onnx"),
        ("nowhere:net", "there is no module 'nowhere' in"),
        ("nowhere.at.all:net", "there is no module 'nowhere'"),
        ("torch.nowhere:net", "there is no module 'torch.nowhere'"),
        ("nets:nett", "did you mean 'net'"),
        ("nets:number", "number is a int, expected a function"),
        ("nets:made", "made is a Linear, expected a function"),
        ("nets:text", "text() gave a str, expected an nn.Module"),
        ("nets:broken", "broken() raised RuntimeError: no weights here"),
        ("nets:leaves", "leaves() raised SystemExit: 3"),
        ("nets:asks", "asks() raised TypeError: asks() missing 1 required positional argument"),
        ("nets:training", "in training mode: return it after .eval()"),
        ("needs:net", "importing needs raised ModuleNotFoundError: No module named 'not_installed'"),
        ("typo:net", "importing typo raised SyntaxError"),
    ],
)
def test_what_is_not_found_or_no_network(spec: str, told: str, here: Path) -> None:
    nets(here, "return Net(lambda image: image.mean((2, 3))).eval()")
    with (here / "nets.py").open("a") as stream:
        stream.write(
            "number = 3\nmade = nn.Linear(2, 2)\n"
            "def text(): return 'x'\n"
            "def broken(): raise RuntimeError('no weights here\\nsecond line')\n"
            "def leaves(): raise SystemExit(3)\n"
            "def asks(path): return net()\n"
            "def training(): return net().train()\n"
        )
    (here / "needs.py").write_text("import not_installed\n")
    (here / "typo.py").write_text("def net(:\n")
    assert told in refused(spec)


CONTRACT: list[tuple[TaskKind, str, str]] = [
    ("cls", "image.mean((2, 3))[0]", "gave float32 (3,), expected logits (1, C)"),
    ("cls", "(image.mean((2, 3)), image)", "return the main one alone"),
    ("cls", "{'out': image.mean((2, 3))}", "a dict of 'out', expected logits (1, C): return the tensors themselves"),
    ("cls", "image.mean((2, 3)).argmax(1)", "int64 (1,)"),
    ("cls", "image.mean((2, 3)).long()", "expected float32 logits"),
    ("cls", "image.mean((2, 3)) / 0", "NaN or infinity for a grey image"),
    ("cls", "image.mean((2, 3))[:, :0]", "expected float32 logits"),
    ("cls", "image.nothing", "running it on a grey image raised AttributeError"),
    ("cls", "image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3))", "torch.export of it raised"),
    ("seg", "image[:, :, ::4, ::4]", "let the network resize its logits to the image's size"),
    ("seg", "image.mean((2, 3))", "expected logits (1, K, 32, 32)"),
    ("seg", "image[:, :1].expand(-1, 300, -1, -1) * 1", "300 labels, a seg task has at most 256"),
    ("det", "image.flatten(2)", "expected a pair, boxes (1, N, 4) in pixels of 32 and logits (1, N, C)"),
    ("det", "(image.flatten(2).mT, image.flatten(2).mT[..., [0, 1, 2, 0]])", "swap the two"),
    ("det", "(image.flatten(2).mT[..., [0, 1, 2, 0]], image.flatten(2).mT[:, 1:])", "raw logits, before any suppression"),
]


@pytest.mark.parametrize(("kind", "answer", "told"), CONTRACT)
def test_the_contract(kind: TaskKind, answer: str, told: str, here: Path) -> None:
    nets(here, f"return Net(lambda image: {answer}).eval()")
    assert told in refused("nets:net", kind)


def test_a_network_that_cannot_be_copied_is_refused(here: Path) -> None:
    nets(
        here, "import threading\nmade = Net(lambda image: image.mean((2, 3))).eval()\nmade.lock = threading.Lock()\nreturn made"
    )
    assert "copying it raised TypeError: cannot pickle" in refused("nets:net")


@pytest.mark.parametrize(
    ("kind", "answer", "count"),
    [
        ("cls", "image.mean((2, 3))", 3),
        ("seg", "image * 2", 3),
        ("det", "[image.flatten(2).mT[..., [0, 1, 2, 0]], image.flatten(2).mT]", 3),
    ],
)
def test_what_fits(kind: TaskKind, answer: str, count: int, here: Path, tiny: TaskTok) -> None:
    nets(here, f"return Net(lambda image: {answer}).eval()")
    net, found = load_own_net("nets:net", kind=kind, image_size=SIZE)
    assert found == count
    model = with_task_net(tiny, kind, net, ("a", "b", "c"))
    image = torch.rand(1, 3, SIZE, SIZE)
    wanted, answered = net(tiny.restore(image, kind)), model(image, kind)
    torch.testing.assert_close(answered, tuple(wanted) if isinstance(wanted, list) else wanted)
    frame = torch.randint(0, 256, (1, SIZE, SIZE, 3), dtype=torch.uint8)
    outputs = Deployed(model, functions_of([kind]))(frame)
    assert outputs[1].shape[1 if kind == "seg" else -1] == (4 if kind == "det" else 3)


def test_labels(here: Path) -> None:
    nets(here, "return Net(lambda image: image.mean((2, 3))).eval()")
    load_own_net("nets:net", kind="cls", image_size=SIZE)
    for spec in ("nets:net", str(here / "net.onnx"), "net.onnx"):
        assert read_labels(spec, task="seg", count=2) == ("label_0", "label_1")
        (here / "labels_cls.txt").write_bytes("\ufeffrose\r\ntulip \n\nSonnenhut – gelb\n".encode())
        assert read_labels(spec, task="cls", count=3) == ("rose", "tulip", "Sonnenhut – gelb")
        with pytest.raises(UsageError, match=r"labels_cls.txt' has 3 labels, the network answers with 2"):
            read_labels(spec, task="cls", count=2)
        (here / "labels_cls.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UsageError, match="not UTF-8"):
            read_labels(spec, task="cls", count=2)
        (here / "labels_cls.txt").unlink()


def test_a_model_with_it_shares_everything_else(tiny: TaskTok) -> None:
    net = small()
    model = with_task_net(tiny, "cls", net, tuple("abcde"))
    own, before = model.config.tasks["cls"], tiny.config.tasks["cls"]
    assert (own.net, own.labels, own.framing, own.kind) == ("own", tuple("abcde"), "windows", "cls")
    assert before.net == "scenes" and type(tiny.task_nets["cls"]).__name__ == "Classifier"
    assert model.config.tasks["seg"] == tiny.config.tasks["seg"]
    shared = {name: p.data_ptr() for name, p in tiny.state_dict(keep_vars=True).items()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not name.startswith("task_nets.cls"):
            assert tensor.data_ptr() == shared[name], name
    assert next(iter(model.task_nets["cls"].parameters())) is next(net.parameters())
    for task in ("cls", "seg", "det"):
        image = torch.rand(1, 3, SIZE, SIZE)
        assert torch.equal(model.restore(image, task), tiny.restore(image, task))
    with pytest.raises(UsageError, match="did you mean 'cls'"):
        with_task_net(tiny, "clss", net, ())


def test_framing(tiny: TaskTok) -> None:
    """The windows of the short side for networks of whole frames; a detector keeps the checkpoint's."""
    padded = {name: task.model_copy(update={"framing": "pad"}) for name, task in tiny.config.tasks.items()}
    tiny.config = tiny.config.model_copy(update={"tasks": padded})
    for task, framing in (("cls", "windows"), ("seg", "windows"), ("det", "pad")):
        assert with_task_net(tiny, task, small(), ("a",)).config.tasks[task].framing == framing


def test_several_networks_and_a_task_without_one(here: Path, tiny: TaskTok) -> None:
    tasks = {name: task.model_copy(update={"net": "none"}) for name, task in tiny.config.tasks.items()}
    restorer = TaskTok(tiny.config.model_copy(update={"tasks": tasks})).eval()
    nets(here, "return Net(lambda image: image.repeat(1, 2, 1, 1)).eval()")
    (here / "labels_cls.txt").write_text("a\nb\nc\nd\ne\n")
    model = use_task_nets(restorer, [f"cls={write_onnx(here / 'net.onnx')}", "seg=nets:net"])
    assert model.config.tasks["cls"].labels == tuple("abcde")
    assert model.config.tasks["seg"].n_outputs == 6
    assert list(model.task_nets) == ["cls", "seg"] and not restorer.task_nets
    with pytest.raises(UsageError, match="no network for det"):
        model.task_net("det")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnx"])
def test_a_bundle_answers_as_the_network_does(target: Target, tiny_checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(tiny_checkpoint)
    net, count = load_own_net(str(write_onnx(tmp_path / "net.onnx")), kind="cls", image_size=SIZE)
    labels = tuple(f"flower {i}" for i in range(count))
    own = dataclasses.replace(loaded, model=with_task_net(loaded.model, "cls", net, labels))
    done = export_verified(own, target, tmp_path / "out", tasks=("cls",), precision="fp32")
    parity = done.manifest.parity
    assert parity.status == "passed", parity.reason
    assert min(parity.psnr_db.values()) > 100
    frame = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    with load(done.path) as session:
        answer = session.predict(frame, "cls")
    assert isinstance(answer, Classification)
    image = torch.from_numpy(frame).permute(2, 0, 1)[None] / 255
    logits = small()(loaded.model.restore(image, "cls"))[0]
    assert answer.label == labels[int(logits.argmax())]
    np.testing.assert_allclose(answer.scores, torch.softmax(logits, 0).detach().numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_readmes_example_as_typed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cv2

    section = README.read_text().split("### Your own task network\n")[1].split("\n## ")[0]
    code = section.split("```python\n")[1].split("```")[0]
    name = code.splitlines()[0].removeprefix("# ")
    (here / name).write_text(code)
    cv2.imwrite(str(here / "photo.jpg"), np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    commands = [line.strip() for line in section.splitlines() if line.startswith(("    tasktok-edge ", "    python "))]
    assert len(commands) == 4
    for command in commands:
        program, *words = shlex.split(command)
        if program == "python":
            assert words == [name]
            exec(compile(code, name, "exec"), {"__name__": "__main__"})
        else:
            assert run(words) == 0, capsys.readouterr()
    assert "label_" in capsys.readouterr().out
