"""Whatever is drafted and however much of it is verified, greedy and seeded tokens are those without speculation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import Config
from engine.drafters import Drafter
from engine.pages import Pages
from engine.transfer import new_agent_name
from engine.types import Request, Sampling
from local import Builder, Pair
from tests.drafters import OracleDrafter, save_random_drafter
from tests.local.rig import MIB, request

LENGTHS = [1, 2, 63, 64, 65, 130, 200, 33]
SEEDED = Sampling(temperature=0.8, top_p=0.95, seed=5, seeded=True)


@pytest.fixture(scope="module", params=["qwen3", "deepseek_v3", "qwen3_sliding"])
def target(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def drafter(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_drafter(target, tmp_path_factory.mktemp("drafter"))


def pair(path: Path, drafter: Path | None, decode: dict[str, Any] | None = None, **prefill: Any) -> Pair:
    return Pair(pair_config(path, drafter, decode, **prefill))


def pair_config(path: Path, drafter: Path | None, decode: dict[str, Any] | None = None, **prefill: Any) -> Config:
    config = {
        "model": {"path": path, "drafter": drafter},
        "prefill": {"cache_bytes": 8 * MIB, "chunk_tokens": 96, **prefill},
        "decode": {"default": {"cache_bytes": 8 * MIB, "planner": "fixed", **(decode or {})}},
    }
    return Config.parse(config)


def with_other_prefill(config: Config, prefill: Config) -> Pair:
    """A pair whose prefill replica was built from another configuration."""
    mixed = Pair(config)
    mixed.prefiller = Builder(prefill, prefill.prefill).prefiller(new_agent_name("prefill"), mixed._join, mixed.clock)
    return mixed


def asked(sampling: Sampling) -> list[Request]:
    return [replace(request(f"r{i}", tokens=n, max_tokens=40), sampling=sampling) for i, n in enumerate(LENGTHS)]


@pytest.mark.parametrize("sampling", [Sampling(), SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize(
    "decode",
    [{"fixed_drafts": 0}, {"fixed_drafts": 2}, {"fixed_drafts": 5}, {"planner": "causal"}, {"planner": "lagged"}],
    ids=str,
)
def test_tokens_are_those_without_speculation(
    target: Path, drafter: Path, sampling: Sampling, decode: dict[str, Any]
) -> None:
    plain = pair(target, None).generate(asked(sampling))

    assert pair(target, drafter, decode).generate(asked(sampling)) == plain


def test_a_prefill_pool_without_the_drafter_is_served_too(target: Path, drafter: Path) -> None:
    plain = pair(target, None).generate(asked(Sampling()))

    mixed = with_other_prefill(pair_config(target, drafter, {"fixed_drafts": 5}), pair_config(target, None))

    assert mixed.generate(asked(Sampling())) == plain
    assert mixed.decoder.stats().drafted > 0


class KnowingBuilder(Builder):
    """Builds engines whose drafter knows the answers, but for an error in every so many tokens."""

    def __init__(self, config: Config, answers: list[list[int]], error_every: int) -> None:
        super().__init__(config, config.prefill)
        self._knows = OracleDrafter(answers, 5, error_every, self.facts.vocab_size)

    @property
    def block_length(self) -> int:
        return self._knows.block_length

    def _drafter(self, pages: Pages) -> Drafter:
        return self._knows


@pytest.mark.parametrize("error_every", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("sampling", [Sampling(), SEEDED], ids=["greedy", "seeded"])
def test_errors_at_every_place_change_nothing_but_the_number_of_steps(
    target: Path, sampling: Sampling, error_every: int
) -> None:
    one = replace(request("r", tokens=70, max_tokens=60), sampling=sampling)
    plain = pair(target, None).generate([one])
    config = pair_config(target, None, {"fixed_drafts": 5})
    knowing = Pair(config, builder=KnowingBuilder(config, [[*one.prompt, *plain["r"]]], error_every))

    assert knowing.generate([one]) == plain

    stats = knowing.decoder.stats()
    assert stats.steps == rounds(71, 60, error_every)
    assert (stats.drafted, stats.accepted) == (5 * stats.steps, 59 - stats.steps)
    assert stats.accepted <= stats.verified <= stats.drafted


def rounds(position: int, max_tokens: int, error_every: int) -> int:
    """Steps for the tokens after the first: each says its drafts up to the first planted error, and one more."""
    steps, left = 0, max_tokens - 1
    while left > 0:
        drafts = min(5, left - 1)
        good = next((i for i in range(drafts) if (position + i) % error_every == 0), drafts)
        position, left, steps = position + good + 1, left - good - 1, steps + 1
    return steps
