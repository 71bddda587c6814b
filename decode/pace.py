"""What a step may take: as long as it takes, or as long as it would on a device that is emulated."""

from typing import Protocol


class Pace(Protocol):
    """Called by the decoder twice in a step. Moments are on the engine's clock."""

    @property
    def emulated(self) -> str:
        """The device whose pace this is; empty for the replica's own."""
        ...

    def drafted(self, began: float, requests: int, context: int) -> None:
        """Drafts have been made since `began`: wait as long as that should take."""
        ...

    def verified(self, began: float, requests: int, tokens: int, context: int) -> bool:
        """So many tokens have been verified since `began`. True if this step took longer than it should have."""
        ...


class OwnPace:
    """Nobody waits."""

    emulated = ""

    def drafted(self, began: float, requests: int, context: int) -> None:
        pass

    def verified(self, began: float, requests: int, tokens: int, context: int) -> bool:
        return False
