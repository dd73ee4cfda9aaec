"""The examples in the docstrings do what they say."""

import doctest
from types import ModuleType

import pytest

from tasktok_edge import errors, frames
from tasktok_edge.runtimes import selection


@pytest.mark.parametrize("module", [errors, frames, selection])
def test_examples(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
