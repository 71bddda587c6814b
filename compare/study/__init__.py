"""A scenario's systems: what they consist of, what they do in steady state and in simulation, and at what cost."""
