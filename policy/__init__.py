"""Decisions without I/O: where a request goes, whether it is let in, how many replicas there should be.

Pure functions of what replicas say of themselves (engine.facts.ReplicaStats). The cluster applies them, the simulator
replays them. No torch here: Serve runs the scaling policy in its controller.
"""
