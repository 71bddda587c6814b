"""The clock of a decode step: when its phases end, and the overhead between two steps."""

from decode.batch import StepLoad
from decode.pace import Pace
from decode.step_result import StepTimestamps
from engine.clock import Clock
from engine.drafters import DraftBlock
from engine.mean import ExponentialMean

OVERHEAD_WEIGHT = 0.1


class StepTimer:
    """Notes when the phases of a step end. The pace first waits until a phase has taken as long as it should."""

    def __init__(self, clock: Clock, pace: Pace) -> None:
        self._clock = clock
        self._pace = pace
        self._overhead = ExponentialMean(OVERHEAD_WEIGHT, 0.0)
        self._last_ended: float | None = None
        self._began = self._drafted = self._planned = 0.0

    @property
    def overhead_seconds(self) -> float:
        """The mean time between the end of a step and the beginning of the next."""
        return self._overhead.or_else(0.0)

    def begin(self) -> None:
        self._began = self._clock.now()
        if self._last_ended is not None:
            self._overhead.observe(self._began - self._last_ended)

    def drafted(self, load: StepLoad, block: DraftBlock) -> None:
        if block.length:
            self._pace.drafted(self._began, len(load.names), load.context)
        self._drafted = self._clock.now()

    def planned(self) -> None:
        self._planned = self._clock.now()

    def verified(self, load: StepLoad, lengths: list[int]) -> StepTimestamps:
        requests = len(lengths)
        overran = self._pace.verified(self._planned, requests, requests + sum(lengths), load.context)
        self._last_ended = self._clock.now()
        return StepTimestamps(self._began, self._drafted, self._planned, self._last_ended, overran)

    def pause(self) -> None:
        """The next step will not follow at once: the time until then is no overhead."""
        self._last_ended = None
