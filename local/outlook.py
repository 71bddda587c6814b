"""What the replicas of a configuration would take, from the small files of its checkpoints: nothing is loaded."""

from dataclasses import dataclass

from engine.config import Config, EngineConfig
from engine.drafters.load import examine_drafter
from engine.errors import ConfigError
from engine.models import entries_of, examine
from engine.models.preflight import gib
from engine.pages import CacheLayout
from local.build import page_budget, page_counts


@dataclass(frozen=True)
class Outlook:
    """One replica of a pool: bytes of its weights as loaded, and the layout of its pages."""

    weights_bytes: int
    layout: CacheLayout
    section: EngineConfig

    def taken(self, free: int, where: str) -> int:
        """Bytes that it takes of `free` bytes: weights, then pages. Raises ConfigError with the numbers.

        `where` says whose memory that is.
        """
        if self.weights_bytes > free:
            raise ConfigError(f"{gib(self.weights_bytes)} of weights, {gib(free)} free on {where}")
        budget = page_budget(self.section, free - self.weights_bytes, where)
        page_counts(self.layout, self.section, budget, step_tokens=1)
        return self.weights_bytes + budget


def outlooks(config: Config) -> dict[str, Outlook]:
    """A replica of each pool by the section's key: prefill, decode.POOL.

    Raises CheckpointRefused if the model or its drafter could not be served anywhere.
    """
    model, dtype = config.model, config.model.torch_dtype
    looked = examine(model.path)
    entries, weights = entries_of(looked, dtype), looked.loaded_bytes(dtype)
    drafter = examine_drafter(model.drafter, looked, dtype) if model.drafter is not None else None
    found = {}
    for key, section in config.sections.items():
        drafts = drafter is not None and section.drafting
        own = [*entries, *(drafter.entries if drafter and drafts else ())]
        extra = drafter.num_parameters * dtype.itemsize if drafter and drafts else 0
        found[key] = Outlook(weights + extra, CacheLayout.of(own, model.page_tokens), section)
    return found
