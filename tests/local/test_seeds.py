"""A request with a seed gets the same tokens whatever goes on around it."""

from dataclasses import replace

import pytest

from engine.types import Request, Sampling
from tests.local.conftest import MakeRig
from tests.local.rig import Rig, request


def seeded(name: str = "r", seed: int = 5) -> Request:
    sampling = Sampling(temperature=1.0, top_k=50, top_p=0.95, seed=seed, seeded=True)
    return replace(request("prompt", tokens=100, max_tokens=20), id=name, sampling=sampling)


def alone(rig: Rig, seed: int = 5) -> list[int]:
    rig.add(seeded("alone", seed))
    rig.run()
    return rig.tokens("alone")


def test_a_seed_gives_the_same_tokens_in_any_batch(rig: Rig) -> None:
    expected = alone(rig)
    for i in range(5):
        rig.add(replace(seeded(f"other {i}", seed=i + 70), prompt=(i,) * (i + 3)))
    rig.add(request("greedy", max_tokens=20))
    rig.add(seeded())
    rig.run()

    assert rig.tokens("r") == expected


@pytest.mark.parametrize("chunk_tokens", [17, 512])
def test_a_seed_gives_the_same_tokens_for_any_chunk_size(rig: Rig, make_rig: MakeRig, chunk_tokens: int) -> None:
    assert alone(make_rig(prefill={"chunk_tokens": chunk_tokens})) == alone(rig)


@pytest.mark.parametrize("at", [1, 7, 19])
def test_a_seed_gives_the_same_tokens_after_an_interruption(rig: Rig, at: int) -> None:
    expected = alone(rig)
    rig.add(seeded().resumed(tuple(expected[:at])))
    rig.run()

    assert expected[:at] + rig.tokens("r") == expected


def test_another_seed_gives_other_tokens(rig: Rig, make_rig: MakeRig) -> None:
    assert alone(rig, seed=6) != alone(make_rig(), seed=7)
