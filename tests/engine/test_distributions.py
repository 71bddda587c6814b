"""Tests that every sampling option has the distribution of its published formula (chi-square, 1e-4 in all)."""

import pytest
import torch

from engine.logits_processors import LogitsProcessors, TokenHistory
from engine.sampling import SamplingBatch, sample
from engine.types import Request
from tests.formulas import EVERY_OPTION, Options, processed
from tests.statistics import FAMILY_LEVEL, chi_square_p

CPU = torch.device("cpu")
VOCAB, EOS, DRAWS = 16, 3, 40_000
PROMPT, GENERATED = (1, 2, 2, 11), (7, 2, 7)
LEVEL = FAMILY_LEVEL / (3 * len(EVERY_OPTION))


def counts(request: Request, generated: tuple[int, ...], seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Count how often each token is sampled, over rows that differ in seed or position alone."""
    alone = SamplingBatch.of([(request.sampling, 0)], CPU)
    many = {name: value.expand(DRAWS) for name, value in vars(alone).items() if isinstance(value, torch.Tensor)}
    batch = SamplingBatch(**{**vars(alone), **many, "seed_R": seeds, "position_R": positions})
    logits_processors = LogitsProcessors.of([TokenHistory(request, request.prompt + generated)], (EOS,), CPU)
    if logits_processors is not None:
        rows, repeated = torch.arange(DRAWS), {n: v.repeat(DRAWS) for n, v in vars(logits_processors).items()}
        logits_processors = LogitsProcessors(
            **{**repeated, "row_E": rows.repeat_interleave(len(logits_processors.row_E))}
        )
    return sample(logits().expand(DRAWS, VOCAB), batch, logits_processors).token_R.bincount(minlength=VOCAB)


def logits() -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(8)) * 1.3


@pytest.mark.parametrize("one", EVERY_OPTION, ids=lambda one: one.name)
def test_drawn_tokens_have_the_distribution_of_the_formulas(one: Options) -> None:
    """Tokens are sampled first and after others, over seeds and over positions of one seed."""
    request = Request(id="r", prompt=PROMPT, sampling=one.sampling, stop=one.stop)
    many, same = torch.arange(DRAWS), torch.full((DRAWS,), 7)

    for generated, seeds, positions in (((), many, same), (GENERATED, many, same), (GENERATED, same, many)):
        probs_V = torch.tensor(processed(logits().tolist(), request, generated, EOS), dtype=torch.float64)
        counts_V = counts(request, generated, seeds, positions)
        assert not counts_V[probs_V == 0].any(), "a token that the options rule out was drawn"
        assert chi_square_p(counts_V, probs_V) > LEVEL


@pytest.mark.parametrize("one", EVERY_OPTION[1:], ids=lambda one: one.name)
def test_every_option_changes_the_distribution(one: Options) -> None:
    """Or the test above could not tell whether it is heeded."""
    plain, asked = (Request(id="r", prompt=PROMPT, sampling=o.sampling, stop=o.stop) for o in (EVERY_OPTION[0], one))

    changes = []
    for generated in ((), GENERATED):
        before, after = (processed(logits().tolist(), request, generated, EOS) for request in (plain, asked))
        changes.append(sum(abs(p - q) for p, q in zip(before, after, strict=True)))

    assert max(changes) > 0.02
