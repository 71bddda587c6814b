"""From `Request` to token: what both engines draw has the distribution of the formulas over transformers' own logits.

All options run beside each other in one pair. A request comes with two tokens generated; the prefill engine draws the
third and the decode engine the fourth, which is judged together with the third.
"""

from typing import NamedTuple

import pytest
import torch
from transformers import Qwen3Config

from engine.config import Config
from engine.types import Chunk, Request
from local import Pair
from tests.checkpoints import QWEN3, save_random
from tests.formulas import EVERY_OPTION, Options, processed
from tests.local.rig import MIB
from tests.oracle import Oracle
from tests.statistics import FAMILY_LEVEL, chi_square_p

VOCAB, EOS, SEEDS = 16, 3, 1000
PROMPT, GENERATED = (*range(9, 13), 1, 2, 2, 11) * 3, (7, 2)
SMALL = Qwen3Config.from_dict(
    {**QWEN3.to_dict(), "layer_types": None, "vocab_size": VOCAB, "num_hidden_layers": 2, "eos_token_id": EOS}
)
LEVEL = FAMILY_LEVEL / (2 * len(EVERY_OPTION))


class SampledToken(NamedTuple):
    chunks: dict[str, list[Chunk]]
    logits: dict[tuple[int, ...], torch.Tensor]  # transformers', after the prompt and these tokens


def request(one: Options, seed: int) -> Request:
    sampling = type(one.sampling)(**{**vars(one.sampling), "seed": seed, "seeded": True, "top_logprobs": VOCAB})
    return Request(id=f"{one.name} {seed}", prompt=PROMPT, generated=GENERATED, sampling=sampling, stop=one.stop)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> SampledToken:
    path = save_random(SMALL, tmp_path_factory.mktemp("small"), seed=5)
    engine = {"cache_bytes": 32 * MIB, "max_requests": 128, "max_waiting": 10**6}
    model = {"path": path, "page_tokens": 16}
    pair = Pair(Config.parse({"model": model, "prefill": engine, "decode": {"default": engine}}))
    for seed in range(SEEDS):
        for one in EVERY_OPTION:
            pair.add(request(one, seed))
    pair.run()
    assert pair.prefiller.stats().counters.prefix_hit_tokens > 0
    ends = [GENERATED, *((*GENERATED, token) for token in range(VOCAB))]
    oracle = Oracle(path)._model
    with torch.inference_mode():
        logits = {end: oracle(torch.tensor([[*PROMPT, *end]])).logits[0, -1] for end in ends}
    return SampledToken(pair.chunks, logits)


@pytest.mark.parametrize("one", EVERY_OPTION, ids=lambda one: one.name)
def test_both_engines_draw_from_the_distribution_of_the_formulas(drawn: SampledToken, one: Options) -> None:
    counts_VV = torch.zeros(VOCAB, VOCAB, dtype=torch.int64)
    for seed in range(SEEDS):
        (third,), (fourth,) = (chunk.tokens for chunk in drawn.chunks[f"{one.name} {seed}"])
        counts_VV[third, fourth] += 1

    asked = request(one, 0)
    after = {end: processed(row.tolist(), asked, end, EOS) for end, row in drawn.logits.items()}
    third_V = torch.tensor(after[GENERATED], dtype=torch.float64)
    fourth_VV = torch.tensor([after[*GENERATED, token] for token in range(VOCAB)], dtype=torch.float64)
    both_VV = third_V[:, None] * fourth_VV

    assert not counts_VV[both_VV == 0].any(), "tokens that the options rule out were drawn"
    assert chi_square_p(counts_VV.sum(dim=1), third_V) > LEVEL
    assert chi_square_p(counts_VV.flatten(), both_VV.flatten()) > LEVEL


def test_every_logprob_is_the_log_softmax_of_the_models_own_logits(drawn: SampledToken) -> None:
    """Under all options, all tokens are returned, in the order of the model's own logits."""
    told, expected = [], []
    for chunks in drawn.chunks.values():
        end = GENERATED
        for chunk in chunks:
            alternatives = dict(chunk.top[0])
            assert [*alternatives.values()] == sorted(alternatives.values(), reverse=True)
            told.append([alternatives[token] for token in range(VOCAB)])
            expected.append(drawn.logits[end].log_softmax(-1))
            assert chunk.logprobs == (alternatives[chunk.tokens[0]],)
            end = (*end, *chunk.tokens)

    assert torch.allclose(torch.tensor(told), torch.stack(expected), atol=1e-4)
