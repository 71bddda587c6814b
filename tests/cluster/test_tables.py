"""What `sparkpool stats` shows, without a cluster."""

import pytest
from rich.console import Console

from cluster.proto import sparkpool_pb2 as pb
from cluster.tables import speculation_table, warnings

DECODE = pb.ReplicaStats(
    identity=pb.Identity(pool="fast", replica="r7", role="decode"),
    counters=pb.Counters(
        requests=10,
        tokens=310,
        steps=50,
        drafted=1000,
        verified=400,
        accepted=200,
        verified_at=[100, 60, 0],
        accepted_at=[80, 15, 0],
        draft_seconds=0.1,
        plan_seconds=0.05,
        verify_seconds=0.5,
        handoffs_without_context=3,
    ),
)


def shown(*replicas: pb.ReplicaStats) -> str:
    """The table as text; nothing if there is none."""
    table = speculation_table(pb.Stats(replicas=replicas))
    if table is None:
        return ""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_replica_that_drafts_is_shown_with_its_means() -> None:
    cells = [cell.strip() for cell in shown(DECODE).splitlines()[-2].strip("│").split("│")]

    assert cells == ["fast", "r7", "50", "2.0+1.0+10.0", "8.0", "3.00", "80% 25% -", "3"]


def test_without_drafts_there_is_no_table() -> None:
    prefill = pb.ReplicaStats(identity=pb.Identity(role="prefill"))
    decode = pb.ReplicaStats(identity=pb.Identity(role="decode"), counters=pb.Counters(steps=9, tokens=9))

    assert shown(prefill, decode) == ""


@pytest.mark.parametrize("pools", [[], ["fast"], ["fast", "slow"]])
def test_pools_with_synthetic_acceptance_are_named(pools: list[str]) -> None:
    replicas = [pb.ReplicaStats(identity=pb.Identity(pool=pool, synthetic=True)) for pool in (*pools, *pools)]

    told = warnings(pb.Stats(replicas=[*replicas, pb.ReplicaStats(identity=pb.Identity(pool="exact"))]))

    assert len(told) == bool(pools)
    for warning in told:
        assert warning.startswith("SYNTHETIC ACCEPTANCE")
        assert warning.endswith(f"(pool {', '.join(pools)})")
