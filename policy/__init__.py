"""Decides without I/O where requests are sent, which are admitted, and how many replicas each pool should have.

The decisions depend only on the replicas' statistics (engine.stats.ReplicaStats). The cluster applies them and the
simulator replays them. No torch here: Serve runs the scaling policy in its controller.
"""
