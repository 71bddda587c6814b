"""Computes how many pages a replica gets from the bytes that its section of the configuration allows."""

import torch

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.models.preflight import free_memory, gib
from engine.pages import CacheLayout

UNLIMITED_TOKENS = 2**62


def num_pages(layout: CacheLayout, section: EngineConfig, device: torch.device, step_tokens: int) -> dict[str, int]:
    """Return the pages of each group for a replica on `device`, as `page_counts` does."""
    return page_counts(layout, section, page_budget(section, free_memory(device), str(device)), step_tokens)


def page_budget(section: EngineConfig, free: int, where: str) -> int:
    """Return the bytes for pages, of `free` bytes of memory. Raises ConfigError if the section asks for more."""
    budget = section.cache_bytes if section.cache_bytes is not None else int(free * section.cache_fraction)
    if budget > free:
        raise ConfigError(f"cache_bytes: {gib(budget)} of pages, {gib(free)} free on {where}")
    return budget


def page_counts(layout: CacheLayout, section: EngineConfig, budget: int, step_tokens: int) -> dict[str, int]:
    """Return the pages of each group that `budget` bytes hold: for the same number of tokens in every group, but in a
    window group never more than `max_requests` requests can hold in steps of `step_tokens` tokens.

    Raises ConfigError if a group would have fewer than 2 pages.
    """
    counts: dict[str, int] = {}
    # Window groups first: the bytes that they cannot use go to the full group.
    groups = sorted(layout.groups.values(), key=lambda group: group.window or UNLIMITED_TOKENS)
    for i, group in enumerate(groups):
        count = budget // sum(g.page_bytes for g in groups[i:]) - 1  # one page is the scratch page
        if group.window is not None:
            count = min(count, section.max_requests * group.peak_pages(UNLIMITED_TOKENS, step_tokens))
        counts[group.name] = int(count)
        budget -= (counts[group.name] + 1) * group.page_bytes
    if min(counts.values()) < 2:
        raise ConfigError(f"cache_bytes: holds {counts} pages of {layout.page_tokens} tokens; at least 2 are needed")
    return counts
