"""The cluster in virtual time: the engines' own schedules, planners and policies, without a model or a wall clock.

    arrivals -> SimulatedGateway -> Replica (prefill) -> Link -> Replica (decode) -> Served
                  policy/board.py: route, admit
                SimulatedAutoscaler, once a second
                  policy/scale.py

A replica runs a real `Prefiller`, `Decoder` or `ColocatedEngine` over pages without bytes (compare/replica.py).
"""

from compare.simulated_gateway import SimulatedGateway
from compare.simulator.outcome import SimulationResult
from compare.simulator.workload import Workload
from compare.system import System


def simulate(system: System, workload: Workload, seed: int = 0, concurrency: int | None = None) -> SimulationResult:
    """Serve a workload and return what became of its requests.

    With `concurrency`, arrival times are ignored: that many requests are under way at once, and the next arrives when
    one has ended. The same system, workload and seed give the same result.
    """
    return SimulatedGateway(system, workload, seed, concurrency).run()
