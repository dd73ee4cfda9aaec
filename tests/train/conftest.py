"""What the tests of training share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from tests.train import helpers_joint as helpers


@pytest.fixture(autouse=True)
def _detectors_are_light() -> Iterator[None]:
    with helpers.light_detectors():
        yield


@pytest.fixture(autouse=True)
def _no_state_is_left() -> Iterator[None]:
    """Accelerate keeps one precision a process; tests use several."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.write_trees(tmp_path_factory.mktemp("trees"))


@pytest.fixture(scope="session")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with helpers.light_detectors():
        return helpers.write_init(tmp_path_factory.mktemp("init"))
