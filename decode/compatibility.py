"""What a handoff must have in common with the replica that is to decode it."""

import logging
from dataclasses import dataclass, field

from engine.errors import HandoffRefused
from engine.types import Handoff

logger = logging.getLogger("sparkpool")
Fingerprint = dict[str, str]


@dataclass
class HandoffCompatibility:
    """`target` is this replica's model, `drafter` its drafter, None if it does not draft."""

    target: Fingerprint
    drafter: Fingerprint | None
    _known: list[Fingerprint | None] = field(default_factory=list)

    def check(self, handoff: Handoff) -> None:
        """Raises HandoffRefused, with the difference, for pages of another model."""
        theirs, ours = handoff.target_fingerprint, self.target
        differ = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
        if differ:
            parts = [f"{key}: prefill has {theirs.get(key)}, decode {ours.get(key)}" for key in differ]
            raise HandoffRefused("the pools serve different models; " + "; ".join(parts))

    def share_drafter(self, handoff: Handoff) -> bool:
        """Whether its pages hold the context of the very drafter that drafts here, if one does. If not, that is logged,
        once for each drafter that a peer has."""
        theirs, ours = handoff.drafter_fingerprint, self.drafter
        if ours in (None, theirs):
            return True
        if theirs not in self._known:
            self._known.append(theirs)
            has = "no drafter" if theirs is None else f"another drafter ({theirs}; here it is {ours})"
            logger.warning(
                f"{handoff.agents[0].name} has {has}: its pages come without the context of this one, which drafts "
                "over what is decoded here alone, and worse for it. Give both pools the same model.drafter, and "
                "drafting: true"
            )
        return False
