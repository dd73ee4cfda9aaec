"""Official files: every array of the published forward, for all variants; damaged, swapped and hostile files named as such."""

import hashlib
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tasktok_edge.cli import run
from tasktok_edge.convert import convert
from tasktok_edge.errors import CheckpointError, UsageError
from tasktok_edge.export.graph import model_functions
from tasktok_edge.inspect import inspect_checkpoint
from tasktok_edge.model.checkpoint import load_checkpoint
from tasktok_edge.model.official.files import find_parts
from tasktok_edge.model.official.infer import NETS
from tasktok_edge.model.official.load import load_official
from tests.official_files import TASKS, VARIANTS, image, shapes, write, write_nets

# Of the published listings "name shape", sorted; SwinIR's is the same in all.
LISTINGS = {
    "mini": ("ec6e8d2872d95c37", "97c015909ddb31ef", "125024f3faf5d44b"),
    "bl64": ("ec6e8d2872d95c37", "30148841c16b8928", "ab6c67e6eb3c6f70"),
    "sl256": ("ec6e8d2872d95c37", "c2ff113a62476445", "5314f3b5b7faf824"),
    "bl64_input512": ("ec6e8d2872d95c37", "f8c55c9355190ed5", "ab6c67e6eb3c6f70"),
}
large = pytest.mark.large


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("mini"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_and_shapes_are_the_published_ones(variant: str) -> None:
    for wanted, listing in zip(LISTINGS[variant], shapes(variant).values(), strict=True):
        rows = sorted((name, "x".join(map(str, shape))) for name, shape in listing.items())
        text = "\n".join(f"{name} {shape}" for name, shape in rows)
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == wanted


@pytest.mark.parametrize(
    "variant", ["mini", "bl64", pytest.param("sl256", marks=large), pytest.param("bl64_input512", marks=large)]
)
def test_every_array_of_the_published_forward(variant: str, tmp_path: Path) -> None:
    expected = np.load(Path(__file__).with_name("expected.npz"))
    model = load_checkpoint(write(tmp_path, variant)).model
    assert model.config.preset == VARIANTS[variant].preset
    with torch.inference_mode():
        pre = model.prerestorer(image())
        z = model.tokens(pre)
        refined = model.refiner(z)
        close(pre[0, :, ::32, ::32], expected[f"{variant}/pre"])
        close(z.transpose(1, 2)[:, :, None], expected[f"{variant}/z"])
        close(refined.transpose(1, 2)[:, :, None], expected[f"{variant}/z_refined"])
        for i, task in enumerate(TASKS):
            assert model.switch.selected(task) == expected[f"{variant}/selected_{i}"].tolist()
            assert 0 not in model.switch.selected(task)  # its logit is exactly zero
            restored = model.decode(model.switch(z, refined, task))
            close(restored[0, :, ::32, ::32], expected[f"{variant}/restored_{i}"])


def close(found: Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-4, rtol=0)


def test_other_seeds_are_other_models(mini: Path, tmp_path: Path) -> None:
    a, b = load_checkpoint(mini).model, load_checkpoint(write(tmp_path, seed=1)).model
    tokens = torch.zeros(1, 32, 64)
    with torch.inference_mode():
        assert (a.decode(tokens) - b.decode(tokens)).abs().max() > 0.1
    assert a.switch.selected("cls") != b.switch.selected("cls")


def test_a_module_prefix_changes_nothing(mini: Path, tmp_path: Path) -> None:
    plain, wrapped = load_checkpoint(mini).model, load_checkpoint(write(tmp_path, prefix="module.")).model
    for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_codebook_is_not_needed_and_not_kept(mini: Path, tmp_path: Path) -> None:
    edit(write(tmp_path) / "tasktok_last.pt", lambda state: state.pop("quantize.embedding.weight"))
    a, b = load_checkpoint(mini).model, load_checkpoint(tmp_path).model
    assert sum(p.numel() for p in a.parameters()) == sum(p.numel() for p in b.parameters())


def test_converted_keeps_every_bit_and_tells_its_sources(mini: Path, tmp_path: Path) -> None:
    made = convert(mini, tmp_path / "ckpt")
    for a, b in zip(load_checkpoint(mini).model.parameters(), made.model.parameters(), strict=True):
        assert torch.equal(a, b)
    digest = hashlib.sha256((mini / "tasktok_last.pt").read_bytes()).hexdigest()
    assert digest in (tmp_path / "ckpt" / "provenance.json").read_text()
    with pytest.raises(UsageError, match="already"):
        convert(tmp_path / "ckpt", tmp_path / "again")
    with pytest.raises(UsageError, match="exists"):
        convert(mini, tmp_path / "ckpt")


def test_a_step_or_the_best_of_a_task_can_be_picked(tmp_path: Path) -> None:
    write(tmp_path)
    for pick in ("0140000", "best_cls"):
        (tmp_path / f"tasktok_{pick}.pt").symlink_to(tmp_path / "tasktok_last.pt")
        (tmp_path / f"token_predictor_{pick}.pt").symlink_to(tmp_path / "token_predictor_last.pt")
    assert find_parts(tmp_path).pick == "last"
    assert find_parts(tmp_path, "best_cls").missing == {"clsnet": "clsnet_best.pt"}
    load_official(find_parts(tmp_path, "0140000"))
    with pytest.raises(CheckpointError, match=r"tasktok_best_det\.pt; there is: 0140000, best_cls, last"):
        find_parts(tmp_path, "best_det")
    (tmp_path / "tasktok_last.pt").rename(tmp_path / "hidden.bin")
    with pytest.raises(CheckpointError, match="--pick"):
        find_parts(tmp_path)


def test_the_upstream_tree_is_found(tmp_path: Path) -> None:
    write(tmp_path / "experiments" / "joint" / "tasktok_bl64" / "checkpoints")
    (tmp_path / "experiments" / "joint" / "tasktok_bl64" / "checkpoints" / "weights").rename(tmp_path / "weights")
    assert not find_parts(tmp_path / "experiments" / "joint" / "tasktok_bl64").missing.keys() & {"prerestorer", "tokenizer"}


def edit(path: Path, change: Callable[[OrderedDict[str, Tensor]], object]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


class Hostile:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def hostile(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    state["encoder.extra"] = Hostile(path.parent / "executed")
    torch.save(state, path)


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Hostile(path.parent / "executed")))


def swap(path: Path) -> None:
    other = path.with_name("token_predictor_last.pt")
    a, b = path.read_bytes(), other.read_bytes()
    path.write_bytes(b)
    other.write_bytes(a)


def set_to(name: str, change: Callable[[Tensor], object]) -> Callable[[Path], None]:
    return lambda path: edit(path, lambda state: state.update({name: change(state[name])}))


OUT = "encoder.transformer.1.mlp.c_fc.weight"
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated": ("tasktok_last.pt", lambda p: p.write_bytes(p.read_bytes()[:-5000]), "damaged or not whole"),
    "half downloaded": ("tasktok_last.pt", lambda p: p.write_bytes(p.read_bytes()[: 10**7] + bytes(10**7)), "damaged or not"),
    "empty": ("tasktok_last.pt", lambda p: p.write_bytes(b""), "it is empty"),
    "a web page": ("tasktok_last.pt", lambda p: p.write_text("<!DOCTYPE html><html>quota"), "web page"),
    "git lfs": ("tasktok_last.pt", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "hostile": ("tasktok_last.pt", hostile, "nothing of it was executed"),
    "a bare pickle": ("tasktok_last.pt", bare_pickle, "bare pickle, which is never read"),
    "wrapped": ("tasktok_last.pt", lambda p: torch.save({"model": torch.load(p, weights_only=True)}, p), "'model' is a"),
    "a list": ("tasktok_last.pt", lambda p: torch.save([torch.zeros(3)], p), "expected a state dict"),
    "swapped files": ("tasktok_last.pt", swap, "are files swapped"),
    "transposed": ("tasktok_last.pt", set_to(OUT, lambda t: t.T.contiguous()), rf"'{OUT}' is \(512, 2048\).*transposed"),
    "transposed latents": ("tasktok_last.pt", set_to("latent_tokens", lambda t: t.T.contiguous()), "latent_tokens.*transposed"),
    "not contiguous": ("tasktok_last.pt", set_to(OUT, lambda t: t.T), "not contiguous"),
    "shuffled": (
        "tasktok_last.pt",
        lambda p: edit(p, lambda s: s.update({OUT: s["encoder.ln_pre.bias"], "encoder.ln_pre.bias": s[OUT]})),
        OUT,
    ),
    "no latents": ("tasktok_last.pt", lambda p: edit(p, lambda s: s.pop("latent_tokens")), "lacks the tensor 'latent_tokens'"),
    "no bias": ("tasktok_last.pt", lambda p: edit(p, lambda s: s.pop("decoder.conv_out.bias")), "no 'decoder.conv_out.bias'"),
    "unexpected tensor": (
        "token_predictor_last.pt",
        lambda p: edit(p, lambda s: s.update({"extra": torch.zeros(1)})),
        "unexpected 'extra'",
    ),
    "NaN": ("tasktok_last.pt", set_to(OUT, lambda t: t * float("nan")), f"'{OUT}' holds NaN"),
    "integers": ("tasktok_last.pt", set_to(OUT, lambda t: t.int()), f"'{OUT}' is int32, expected float32"),
    "a NaN switch": ("token_predictor_last.pt", set_to("token_switch_tasks.1", lambda t: t / 0), "tasks.1' holds NaN"),
    "no switch": (
        "token_predictor_last.pt",
        lambda p: edit(p, lambda s: s.pop("token_switch_tasks.2")),
        r"lacks the tensor 'token_switch_tasks\.2'",
    ),
    "wrong variant": (
        "token_predictor_last.pt",
        lambda p: edit(p, lambda s: s.update({f"token_switch_tasks.{i}": torch.zeros(64) for i in range(3)})),
        "for 64 tokens, the tokenizer has 32: they are of different variants",
    ),
    "legacy": ("tasktok_last.pt", lambda p: edit(p, lambda s: s.update({"decoder.ffn.2.weight": torch.ones(1)})), "legacy"),
    "other windows": (
        "weights/codeformer_swinir_tiny.pt",
        set_to("layers.0.residual_group.blocks.0.attn.relative_position_index", lambda t: t.flip(0).contiguous()),
        "not the index of SwinIR's windows",
    ),
    "a huge claim": ("tasktok_last.pt", set_to("latent_tokens", lambda t: torch.zeros(1).expand(10**9, 512)), "not contiguous"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_the_reason(damage: str, mini: Path, tmp_path: Path) -> None:
    for file in shapes("mini"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((mini / file).read_bytes())
    file, spoil, reason = DAMAGES[damage]
    spoil(tmp_path / file)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(tmp_path)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    found = inspect_checkpoint(tmp_path)
    assert found.variant is None and any(Path(file).name in fault for fault in found.faults), found.faults
    assert not (tmp_path / "executed").exists()


def test_missing_files_are_named(mini: Path, tmp_path: Path) -> None:
    (tmp_path / "tasktok_last.pt").write_bytes((mini / "tasktok_last.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"lacks weights/codeformer_swinir_tiny\.pt, token_predictor_last\.pt"):
        load_checkpoint(tmp_path)
    found = inspect_checkpoint(tmp_path)
    assert [p.name for p in found.parts if not p.found] == ["prerestorer", "predictor", "clsnet", "detnet", "segnet"]


def test_a_flipped_byte_in_the_archive_never_escapes_as_another_error(mini: Path, tmp_path: Path) -> None:
    whole = (mini / "token_predictor_last.pt").read_bytes()
    with zipfile.ZipFile(mini / "token_predictor_last.pt") as archive:
        pickled = next(i for i in archive.infolist() if i.filename.endswith("data.pkl"))
    rng = np.random.default_rng(0)
    (tmp_path / "weights").mkdir()
    for file in ("tasktok_last.pt", "weights/codeformer_swinir_tiny.pt"):
        (tmp_path / file).symlink_to(mini / file)
    for at in rng.integers(pickled.header_offset, pickled.header_offset + pickled.file_size, 12):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "token_predictor_last.pt").write_bytes(bytes(damaged))
        try:
            load_checkpoint(tmp_path)
        except CheckpointError as error:
            assert "token_predictor_last.pt" in str(error) or "predictor" in str(error)


def test_task_networks_are_loaded_and_checked(mini: Path, tmp_path: Path) -> None:
    for file in shapes("mini"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).symlink_to(mini / file)
    write_nets(tmp_path)
    model = load_checkpoint(tmp_path).model
    assert {task: c.net for task, c in model.config.tasks.items()} == NETS
    assert model.config.tasks["seg"].labels[:2] == ("background", "aeroplane") and len(model.config.tasks["det"].labels) == 20
    stored = torch.load(tmp_path / "segnet_last.pt", weights_only=True)
    assert torch.equal(model.task_nets["seg"].state_dict()["classifier.4.weight"], stored["classifier.4.weight"])
    assert [f.name for f in model_functions(model.config) if f.kind == "predict"] == ["predict/cls", "predict/seg"]
    edit(tmp_path / "clsnet_last.pt", lambda state: state.pop("layer1.0.bn1.running_var"))
    with pytest.raises(CheckpointError, match=r"clsnet_last\.pt': no 'layer1\.0\.bn1\.running_var'"):
        load_checkpoint(tmp_path)
    write_nets(tmp_path)
    (tmp_path / "labels_seg.txt").write_text("sky\nground\n")
    with pytest.raises(CheckpointError, match=r"labels_seg\.txt has 2 lines, the seg network answers with 21"):
        load_checkpoint(tmp_path)


def test_the_commands(mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(mini)]) == 0
    told = capsys.readouterr().out
    assert "tasktok-32" in told and "17 of 32" in told and "clsnet_last.pt" in told and "GMACs" in told
    assert run(["inspect", str(mini), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["variant"] == "tasktok-32" and found["sizes"]["fp32"] > found["sizes"]["int8"]
    assert run(["convert", str(mini), "--out", str(tmp_path / "ckpt")]) == 0
    assert run(["inspect", str(tmp_path / "ckpt")]) == 0
    assert run(["convert", str(mini), "--out", str(tmp_path / "ckpt")]) == 2
    assert run(["inspect", str(tmp_path)]) == 2
    capsys.readouterr()
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "tasktok_last.pt").write_bytes(b"")
    assert run(["inspect", str(bad)]) == 2
    lines = capsys.readouterr()
    assert "it is empty" in lines.err and "Traceback" not in lines.err


@pytest.mark.parametrize("words", ["validate --bundle x", "demo", "quantize --method distill --out x"])
def test_commands_that_know_the_scenes_alone_say_so(words: str, mini: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words.split(), "--checkpoint", str(mini)]) == 2
    assert "does not answer the scenes' labels" in capsys.readouterr().err
