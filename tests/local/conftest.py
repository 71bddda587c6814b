from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.models import LoadedModel, load_model
from tests.local.mixed import MixedRig
from tests.local.rig import Rig

MakeRig = Callable[..., Rig]
MakeMixed = Callable[..., MixedRig]


@pytest.fixture(scope="session")
def sliding_model(qwen3_sliding: Path) -> LoadedModel:
    """A model with both kinds of page group. Holds no cache, so all rigs share it."""
    return load_model(qwen3_sliding, torch.float32, torch.device("cpu"))


@pytest.fixture
def make_rig(qwen3_sliding: Path, sliding_model: LoadedModel) -> MakeRig:
    def make(**sections: dict[str, Any]) -> Rig:
        return Rig(qwen3_sliding, sliding_model, **sections)

    return make


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig()


@pytest.fixture
def make_mixed(qwen3_sliding: Path, sliding_model: LoadedModel) -> MakeMixed:
    def make(**sections: dict[str, Any]) -> MixedRig:
        return MixedRig(qwen3_sliding, sliding_model, **sections)

    return make
