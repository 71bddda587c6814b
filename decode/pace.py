"""The pace of decode steps: as fast as this machine can, or as slow as an emulated device."""

from typing import Protocol


class Pace(Protocol):
    """Is called twice in every step. Times are on the engine's clock."""

    @property
    def emulated(self) -> str:
        """The emulated device; "" for the replica's own."""
        ...

    def drafted(self, began: float, requests: int, context: int) -> None:
        """Wait until drafting, which began at `began`, has taken as long as it should."""
        ...

    def verified(self, began: float, requests: int, tokens: int, context: int) -> bool:
        """Wait until verifying `tokens` has taken as long as it should. Return True if the step took longer."""
        ...


class OwnPace:
    """Never waits."""

    emulated = ""

    def drafted(self, began: float, requests: int, context: int) -> None:
        pass

    def verified(self, began: float, requests: int, tokens: int, context: int) -> bool:
        return False
