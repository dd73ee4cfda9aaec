"""Int8 on every engine: the codes of PyTorch's simulation, computed in integers, with int8 weights in the file."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tasktok_edge.bundle import read_bundle
from tasktok_edge.cli import run
from tasktok_edge.export import Target
from tasktok_edge.export.executorch import delegated, lower
from tasktok_edge.export.graph import Deployed, Function, model_functions
from tasktok_edge.export.int8 import Form, in_codes
from tasktok_edge.model.checkpoint import load_checkpoint, save_checkpoint
from tasktok_edge.model.tasktok import TaskTok
from tasktok_edge.parity import Exported, export_verified
from tasktok_edge.quantize import ptq
from tasktok_edge.runtimes import load
from tests.conftest import build_tiny
from tests.export.test_rewrite import official_kind

FORMS: list[Form] = ["int8", "uint8", "fake"]
# ExecuTorch takes long to lower a function, whatever its size.
CASES: list[tuple[Target, tuple[str, ...]]] = [("onnx", ("cls", "seg", "det")), ("openvino", ("cls", "seg", "det")), ("executorch", ("det",))]
FP = ["tokenizer.encoder.conv_out", "tokenizer.decoder.ffn"]


def quantised(model: TaskTok) -> TaskTok:
    """The int8 form of a model, two of its layers left as they are."""
    frames = torch.rand(4, 3, model.config.image_size, model.config.image_size, generator=torch.Generator().manual_seed(0))
    return ptq.to_int8(model, frames, keep_fp=FP)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    save_checkpoint(folder, quantised(build_tiny()), facts={})
    return folder


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def exported(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    target, tasks = request.param
    out = tmp_path_factory.mktemp("out") / target
    return export_verified(load_checkpoint(checkpoint), target, out, tasks=tasks, precision="int8")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [build_tiny, official_kind])
def test_every_form_is_the_simulation(form: Form, kind: Any) -> None:
    model = quantised(kind())
    graph = Deployed(model, model_functions(model.config)).eval()
    frame = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(in_codes(graph, form)(frame), graph(frame), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", [build_tiny, official_kind])
def test_layers_taken_apart_keep_their_codes(kind: Any) -> None:
    model = quantised(kind())
    graph = Deployed(model, model_functions(model.config)).eval()
    frame = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    wanted = model.restore(frame.permute(0, 3, 1, 2) / 255, "cls").permute(0, 2, 3, 1)
    for found in (graph(frame)[0], in_codes(delegated(graph), "int8")(frame)[0]):
        assert (found - wanted).abs().mean() < 1e-3  # a code on the border of two may fall to the other side
        assert (found - wanted).abs().median() < 1e-5
