"""The cluster in virtual time: the engines' own schedules, planners and policies, no model and no wall clock.

    arrivals -> SimulatedGateway (policy/board.py: route, admit) -> Replica (prefill) -> Link -> Replica (decode) ->
    Served policy/scale.py, once a second

A replica is a real `Prefiller`, `Decoder` or `ColocatedEngine` over pages without bytes (compare/replica.py).
"""

from compare.simulated_gateway import SimulatedGateway
from compare.simulator.outcome import SimulationResult
from compare.simulator.workload import Workload
from compare.system import System


def simulate(system: System, workload: Workload, seed: int = 0, concurrency: int | None = None) -> SimulationResult:
    """Serve a workload. With `concurrency`, its times are ignored: so many requests are under way, and the next comes
    when one has ended. The same system, workload and seed give the same result."""
    return SimulatedGateway(system, workload, seed, concurrency).run()
