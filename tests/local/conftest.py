from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.backend import Output, TorchBackend
from engine.batch import Batch
from engine.clock import ManualClock
from engine.models import LoadedModel, load_model
from tests.local.mixed import MixedRig
from tests.local.rig import Rig

MakeRig = Callable[..., Rig]
MakeMixed = Callable[..., MixedRig]
TakesTime = Callable[[ManualClock], None]


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
def computing_takes_time(monkeypatch: pytest.MonkeyPatch) -> TakesTime:
    """From now on each forward takes a millisecond of the clock that a test moves."""
    forward = TorchBackend.forward

    def on(clock: ManualClock) -> None:
        def timed(backend: TorchBackend, batch: Batch) -> Output:
            clock.advance(1e-3)
            return forward(backend, batch)

        monkeypatch.setattr(TorchBackend, "forward", timed)

    return on


@pytest.fixture
def make_mixed(qwen3_sliding: Path, sliding_model: LoadedModel) -> MakeMixed:
    def make(**sections: dict[str, Any]) -> MixedRig:
        return MixedRig(qwen3_sliding, sliding_model, **sections)

    return make
