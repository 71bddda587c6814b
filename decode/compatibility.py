"""The check that a handoff comes from the same model, and perhaps drafter, as the replica that decodes it."""

import logging
from dataclasses import dataclass, field

from engine.errors import HandoffRefused
from engine.types import Handoff

logger = logging.getLogger("sparkpool")
Fingerprint = dict[str, str]


@dataclass
class HandoffCompatibility:
    """Compares fingerprints. `target` is this replica's model, `drafter` its drafter or None if it does not draft."""

    target: Fingerprint
    drafter: Fingerprint | None
    _known: list[Fingerprint | None] = field(default_factory=list)

    def check(self, handoff: Handoff) -> None:
        """Raises HandoffRefused, naming the differences, for pages of another model."""
        theirs, ours = handoff.target_fingerprint, self.target
        differ = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
        if differ:
            parts = [f"{key}: prefill has {theirs.get(key)}, decode {ours.get(key)}" for key in differ]
            raise HandoffRefused("the pools serve different models; " + "; ".join(parts))

    def share_drafter(self, handoff: Handoff) -> bool:
        """Return whether the pages hold the context that the drafter here needs. If not, log that, once for each
        drafter of a peer."""
        theirs, ours = handoff.drafter_fingerprint, self.drafter
        if ours in (None, theirs):
            return True
        if theirs not in self._known:
            self._known.append(theirs)
            has = "no drafter" if theirs is None else f"another drafter ({theirs}; here it is {ours})"
            logger.warning(
                f"{handoff.agents[0].name} has {has}: its pages come without the context of this one, which therefore "
                "drafts over what is decoded here alone, with lower acceptance. Give both pools the same "
                "model.drafter, and drafting: true"
            )
        return False
