"""One real bundle for each engine, built once: converting takes seconds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasktok_edge.bundle import Target
from tests.helpers_bundle import BUILDERS, build

RUNS_HERE: tuple[Target, ...] = tuple(BUILDERS)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Target], Path]:
    """Give the folder of a target's tiny bundle; tests that change it copy it first."""
    folders: dict[Target, Path] = {}

    def folder(target: Target) -> Path:
        if target not in folders:
            folders[target] = build(tmp_path_factory.mktemp(target) / "bundle", target)
        return folders[target]

    return folder


@pytest.fixture(params=RUNS_HERE)
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.param
    return found


@pytest.fixture
def bundle(built: Callable[[Target], Path], target: Target) -> Path:
    return built(target)
