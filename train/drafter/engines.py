"""The prefill and decode engines that write training text and measure drafters."""

from pathlib import Path
from typing import Literal

from engine.config import Config
from engine.models import LoadedModel
from local import Builder, Pair

DrafterSource = Path | Literal["mtp"]


def engine_pair(
    model: LoadedModel,
    path: Path,
    max_requests: int,
    max_tokens: int,
    drafter: DrafterSource | None = None,
    **decode: object,
) -> Pair:
    """Return engines with room for `max_requests` requests of `max_tokens` each; `decode` adds keys to the decode pool.

    `path` is the folder of `model`.
    """
    section = {"path": path, "drafter": drafter, "dtype": model.fingerprint["dtype"]}
    room: dict[str, object] = {"device": str(model.device), "max_requests": max_requests, "prefix_caching": False}

    def builder() -> Builder:
        config = Config.parse({"model": section, "prefill": room, "decode": {"default": room | decode}})
        return Builder(config, config.prefill, model)

    layout = builder().layout
    pages = (max_requests + 1) * (2 + -(-max_tokens // layout.page_tokens))
    room["cache_bytes"] = pages * sum(group.page_bytes for group in layout.groups.values())
    sized = builder()
    return Pair(sized.config, builder=sized)
