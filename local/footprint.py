"""The memory that the replicas of a configuration would take, from the small files of its checkpoints alone."""

from dataclasses import dataclass

from engine.config import Config, EngineConfig
from engine.drafters.load import examine_drafter
from engine.errors import ConfigError
from engine.models import entries_of, examine
from engine.models.preflight import gib
from engine.pages import CacheLayout
from local.page_budget import page_budget, page_counts


@dataclass(frozen=True)
class ReplicaFootprint:
    """Bytes of a replica's weights once they are loaded, and the layout of its pages."""

    weights_bytes: int
    layout: CacheLayout
    section: EngineConfig

    def taken(self, free: int, where: str) -> int:
        """Return the bytes that the replica takes of `free` bytes: weights, then pages.

        `where` says whose memory that is. Raises ConfigError with the numbers if it is too little.
        """
        if self.weights_bytes > free:
            raise ConfigError(f"{gib(self.weights_bytes)} of weights, {gib(free)} free on {where}")
        budget = page_budget(self.section, free - self.weights_bytes, where)
        page_counts(self.layout, self.section, budget, step_tokens=1)
        return self.weights_bytes + budget


def replica_footprints(config: Config) -> dict[str, ReplicaFootprint]:
    """Return the footprint of one replica of each pool by its section's key: prefill, decode.POOL.

    Raises CheckpointRefused if the model or its drafter could not be served anywhere.
    """
    model, dtype = config.model, config.model.torch_dtype
    looked = examine(model.path)
    entries, weights = entries_of(looked, dtype), looked.loaded_bytes(dtype)
    drafter = examine_drafter(model.drafter, looked, dtype) if model.drafter is not None else None
    footprints = {}
    for key, section in config.sections.items():
        if drafter is not None and section.drafting:
            layout = CacheLayout.of([*entries, *drafter.entries], model.page_tokens)
            drafter_bytes = drafter.num_parameters * dtype.itemsize
            footprints[key] = ReplicaFootprint(weights + drafter_bytes, layout, section)
        else:
            footprints[key] = ReplicaFootprint(weights, CacheLayout.of(entries, model.page_tokens), section)
    return footprints
