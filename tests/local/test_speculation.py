"""Whatever is drafted and however much of it is verified, greedy and seeded tokens are those without speculation."""

import argparse
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL, Config
from engine.text import Text
from engine.transfer import new_agent_name
from engine.types import Request, Sampling, StopRules
from local import Builder, Pair
from tests.drafters import KnowingBuilder, save_random_drafter
from tests.engine.drafters.reference import MTPReference, Reference
from tests.local.rig import MIB, request

LENGTHS = [1, 2, 63, 64, 65, 130, 200, 33]
SEEDED = Sampling(temperature=0.8, top_p=0.95, seed=5, seeded=True)


@pytest.fixture(scope="module", params=["qwen3", "deepseek_v3", "qwen3_sliding"])
def target(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module", params=["dspark", "mtp"])
def drafter(request: pytest.FixtureRequest, target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path | str:
    if request.param == "dspark":
        return save_random_drafter(target, tmp_path_factory.mktemp("drafter"))
    if "qwen3" in target.name:
        pytest.skip("Qwen3 checkpoints have no next-token layer")
    return "mtp"


def pair(path: Path, drafter: Path | str | None, decode: dict[str, Any] | None = None, **prefill: Any) -> Pair:
    return Pair(pair_config(path, drafter, decode, **prefill))


def pair_config(path: Path, drafter: Path | str | None, decode: dict[str, Any] | None = None, **prefill: Any) -> Config:
    config = {
        "model": {"path": path, "drafter": drafter, "mtp_drafts": 4},
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
    target: Path, drafter: Path | str, sampling: Sampling, decode: dict[str, Any]
) -> None:
    plain = pair(target, None).generate(asked(sampling))

    assert pair(target, drafter, decode).generate(asked(sampling)) == plain


def test_a_prefill_pool_without_the_drafter_is_served_too(target: Path, drafter: Path | str) -> None:
    plain = pair(target, None).generate(asked(Sampling()))

    mixed = with_other_prefill(pair_config(target, drafter, {"fixed_drafts": 5}), pair_config(target, None))

    assert mixed.generate(asked(Sampling())) == plain
    assert mixed.decoder.stats().counters.drafted > 0


@pytest.mark.parametrize("error_every", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("sampling", [Sampling(), SEEDED], ids=["greedy", "seeded"])
def test_wrong_drafts_at_any_position_change_only_the_number_of_steps(
    target: Path, sampling: Sampling, error_every: int
) -> None:
    one = replace(request("r", tokens=70, max_tokens=60), sampling=sampling)
    plain = pair(target, None).generate([one])
    config = pair_config(target, None, {"fixed_drafts": 5})
    knowing = Pair(config, builder=KnowingBuilder(config, [[*one.prompt, *plain["r"]]], error_every))

    assert knowing.generate([one]) == plain

    stats = knowing.decoder.stats()
    assert stats.counters.steps == rounds(71, 60, error_every)
    assert stats.counters.accepted == 59 - stats.counters.steps
    assert stats.counters.accepted <= stats.counters.verified == stats.counters.drafted, (
        "no draft is made beyond the end of an answer"
    )


def rounds(position: int, max_tokens: int, error_every: int) -> int:
    """Steps for the tokens after the first: each says its drafts up to the first planted error, and one more."""
    steps, left = 0, max_tokens - 1
    while left > 0:
        drafts = min(5, left - 1)
        good = next((i for i in range(drafts) if (position + i) % error_every == 0), drafts)
        position, left, steps = position + good + 1, left - good - 1, steps + 1
    return steps


@pytest.mark.parametrize("drafter", [SHIPPED_DRAFTER, "mtp"], ids=str)
def test_drafts_after_a_prefix_hit_are_as_good(drafter: Path | str) -> None:
    """Step by step the same tokens are accepted, whether the prompt's pages were computed or found, all or some."""
    text = Text.load(SHIPPED_MODEL).encode(inspect.getsource(json.decoder))
    stop = StopRules(max_tokens=48, ignore_eos=True)
    asked = [
        Request(id=f"r{i}", prompt=tuple(text[:n]), sampling=Sampling(), stop=stop)
        for i, n in enumerate((150, 192, 65, 300, 256))
    ]
    engines = pair(SHIPPED_MODEL, drafter, {"fixed_drafts": 4})

    def steps(name: str, salt: str) -> list[list[int]]:
        for one in asked:
            engines.add(replace(one, id=name + one.id, cache_salt=salt or one.id))
            engines.run()
        return [[len(chunk.tokens) for chunk in engines.chunks[name + one.id]] for one in asked]

    alone = steps("alone", "")
    assert engines.prefiller.stats().counters.prefix_hit_tokens == 0
    together = steps("first", "shared") + steps("again", "shared")
    assert engines.prefiller.stats().counters.prefix_hit_tokens > 1500
    assert engines.decoder.stats().counters.prefix_hit_tokens > 1500

    assert together == alone + alone
    assert sum(map(len, alone)) < 0.75 * 48 * len(asked), "hardly anything was accepted"


@pytest.mark.parametrize("drafter", [SHIPPED_DRAFTER, "mtp"], ids=str)
def test_every_step_accepts_the_drafts_that_the_formulas_accept(drafter: Path | str) -> None:
    """The reference drafts after all committed tokens; the drafts count up to the first that the target rejects."""
    text = Text.load(SHIPPED_MODEL).encode(inspect.getsource(argparse))
    stop = StopRules(max_tokens=30, ignore_eos=True)
    asked = [
        Request(id=str(at), prompt=tuple(text[at : at + 70]), sampling=Sampling(), stop=stop)
        for at in range(1000, 5000, 1000)
    ]
    engines = pair(SHIPPED_MODEL, drafter, {"fixed_drafts": 4})
    answers = engines.generate(asked)
    if drafter == "mtp":
        mtp = MTPReference(SHIPPED_MODEL)
    else:
        raw = json.loads((SHIPPED_DRAFTER / "config.json").read_text())
        dspark = Reference(SHIPPED_MODEL, SHIPPED_DRAFTER, raw)

    for one in asked:
        answer, said, expected = answers[one.id], 1, [1]
        while said < len(answer):
            so_far, left = [*one.prompt, *answer[:said]], answer[said:]
            drafts = mtp.draft(so_far, 4)[0] if drafter == "mtp" else dspark.draft(so_far).tokens[:4]
            good = next((i for i, (d, a) in enumerate(zip(drafts, left, strict=False)) if d != a), len(drafts))
            expected.append(min(good + 1, len(left)))
            said += expected[-1]
        assert [len(chunk.tokens) for chunk in engines.chunks[one.id]] == expected
