"""Odds that a sample comes from the distribution it should come from (tails from torch's incomplete gamma)."""

import math

import torch
from torch import Tensor

FAMILY_LEVEL = 1e-4  # the chance that a correct sampler fails a family of tests; each of n tests gets 1/n of it


def chi_square_p(counts_V: Tensor, probs_V: Tensor) -> float:
    """The chance of counts at least this far from `probs_V`. Cells that expect fewer than 5 are joined into one."""
    expected_V = probs_V.double() * counts_V.sum()
    large = expected_V >= 5
    expected = torch.cat([expected_V[large], expected_V[~large].sum()[None]])
    counted = torch.cat([counts_V[large], counts_V[~large].sum()[None]]).double()
    expected, counted = expected[expected > 0], counted[expected > 0]
    statistic = ((counted - expected) ** 2 / expected).sum()
    degrees = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(degrees, statistic / 2).item()


def kolmogorov_p(uniforms: Tensor) -> float:
    """The chance that uniforms on (0, 1) stray at least this far from their distribution (Kolmogorov 1933)."""
    n = uniforms.numel()
    ordered = uniforms.flatten().double().sort().values
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max((steps[1:] - ordered).max().item(), (ordered - steps[:-1]).max().item())
    return 2 * sum((-1) ** (j - 1) * math.exp(-2 * n * (j * distance) ** 2) for j in range(1, 101))
