"""What every test shares: one thread of arithmetic, repeatable examples, and random checkpoints made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.checkpoints import DEEPSEEK_V3, QWEN3, QWEN3_SLIDING, save_random
from tests.kernels import IMPLEMENTATIONS, chosen, name_of

# More threads than cores slow a small step by two orders of magnitude, and a test cannot know who else computes.
torch.set_num_threads(1)

settings.register_profile(
    "suite", deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def starts_ray(file: str) -> bool:
    """Return whether the tests of a file, given by its path from the repository's root, start Ray."""
    return file.split("/")[1] in ("cluster", "deploy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that start Ray at the end: they wait for processes, and would time out beside busy ones."""
    items.sort(key=lambda item: starts_ray(item.nodeid))


class FileScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Gives pytest-xdist's processes whole files in order; one gets all that start Ray: they share a cluster."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "tests that start Ray" if starts_ray(file) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> FileScheduling:
    return FileScheduling(config, log)


@pytest.fixture(scope="module", params=IMPLEMENTATIONS, ids=name_of)
def computed_by(request: pytest.FixtureRequest) -> Iterator[str]:
    """What a test that asks for this computes with, one after the other."""
    with chosen(request.param) as name:
        yield name


@pytest.fixture(scope="session")
def deepseek_v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(DEEPSEEK_V3, tmp_path_factory.mktemp("deepseek_v3"))


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(QWEN3, tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def qwen3_sliding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(QWEN3_SLIDING, tmp_path_factory.mktemp("qwen3_sliding"))
