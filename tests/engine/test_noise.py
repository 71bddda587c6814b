import itertools
import math

import pytest
import torch
from torch import Tensor

from engine.sampling import _mix, gumbel, uniform
from tests.statistics import FAMILY_LEVEL, chi_square_p, kolmogorov_p

SEEDS = [0, 1, 2, 12345, 2**62, 2**63 - 1]


def row(seed: int, position: int, purpose: int, count: int = 20_000) -> Tensor:
    return uniform(torch.tensor([seed]), torch.tensor([position]), purpose, count)[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_uniforms_are_uniform_inside_the_open_interval(seed: int) -> None:
    """Kolmogorov-Smirnov, level 1e-4 / 6: good noise fails one of these once in 10,000 choices of constants."""
    values = row(seed, position=17, purpose=0)

    assert 0.0 < values.min() <= values.max() < 1.0
    assert kolmogorov_p(values) > FAMILY_LEVEL / len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_index_over_positions_is_uniform_too(seed: int) -> None:
    """This stream, one vocabulary entry along a request, decides how often one token is sampled."""
    positions = torch.arange(20_000)

    values = uniform(torch.full_like(positions, seed), positions, 0, 4)

    for index in range(4):
        assert kolmogorov_p(values[:, index]) > FAMILY_LEVEL / (4 * len(SEEDS))


def test_other_seeds_positions_and_purposes_are_uncorrelated() -> None:
    """|correlation| of two independent streams of n is under 6 / sqrt(n), but for two in a billion."""
    keys = [(s, p, u) for s in (0, 1, 2**40) for p in (0, 1, 2, 4096) for u in (0, 1, 2)]
    streams = torch.stack([row(*key) for key in keys]).double()

    correlations = torch.corrcoef(streams) - torch.eye(len(keys))

    assert correlations.abs().max() < 6 / math.sqrt(streams.shape[1])
    shifted = torch.corrcoef(torch.cat([streams[:, 1:], streams[:, :-1]])) - torch.eye(2 * len(keys))
    assert shifted.abs().max() < 6 / math.sqrt(streams.shape[1]), "one stream is another, shifted"


def test_pairs_of_neighbours_fill_the_square() -> None:
    """Chi-square of 10 x 10 cells over (index, index + 1), and over (position, position + 1)."""
    index = row(3, position=5, purpose=0, count=40_000)
    positions = torch.arange(20_000)
    along = uniform(torch.full_like(positions, 3), positions, 0, 1)[:, 0]

    for a, b in ((index[::2], index[1::2]), (along[::2], along[1::2])):
        cells = (a * 10).long() * 10 + (b * 10).long()
        assert chi_square_p(cells.bincount(minlength=100), torch.full((100,), 0.01)) > FAMILY_LEVEL / 2


def test_bits_are_mixed_as_published() -> None:
    """The finaliser of SplitMix64 in whole numbers, against ours in wrapping int64 with arithmetic shifts."""

    def mixed(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    values = torch.tensor([0, 1, -1, 12345, 2**63 - 1, -(2**63), -(2**40) + 7])

    assert [x % 2**64 for x in _mix(values).tolist()] == [mixed(x % 2**64) for x in values.tolist()]


def test_noise_is_a_function_of_its_key_alone() -> None:
    keys = list(itertools.product([7, 8], [0, 90], [0, 1]))

    for purpose in (0, 1):
        batch = [(s, p) for s, p, u in keys if u == purpose]
        seeds, positions = (torch.tensor(column) for column in zip(*batch, strict=True))
        together = uniform(seeds, positions, purpose, 50)
        for i, (seed, position) in enumerate(batch):
            assert torch.equal(together[i], row(seed, position, purpose, 50))


def test_a_longer_vocabulary_extends_the_noise_of_a_shorter_one() -> None:
    assert torch.equal(row(5, 6, 0, 100), row(5, 6, 0, 200)[:100])


def test_gumbel_noise_is_finite_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    for bits in (0, 1, 2**63 - 1, -1, -(2**63)):
        monkeypatch.setattr("engine.sampling._mix", lambda x, bits=bits: torch.full_like(x, bits))
        assert gumbel(torch.tensor([0]), torch.tensor([0]), 0, 3).isfinite().all(), bits


def test_gumbel_noise_has_the_gumbel_distribution() -> None:
    """exp(-exp(-G)) of Gumbel noise is uniform."""
    noise = gumbel(torch.tensor([11]), torch.tensor([3]), 0, 20_000)[0].double()

    assert noise.isfinite().all()
    assert kolmogorov_p((-(-noise).exp()).exp()) > FAMILY_LEVEL
