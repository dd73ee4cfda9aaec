"""Examples in docstrings are run, so that none of them is wrong."""

import doctest
import importlib

import pytest

MODULES = [
    "tasktok_edge.errors",
    "tasktok_edge.frames",
    "tasktok_edge.interval",
    "tasktok_edge.runtimes.cameras",
    "tasktok_edge.data.sources",
    "tasktok_edge.scores",
    "tasktok_edge.macs",
    "tasktok_edge.model.official.names",
    "tasktok_edge.model.own_net",
    "tasktok_edge.model.tasktok",
    "tasktok_edge.quantize.judge",
    "tasktok_edge.runtimes.selection",
    "tasktok_edge.sensitivity_picture",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
