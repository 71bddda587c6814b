"""Tables for the terminal."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from cluster.proto import sparkpool_pb2 as pb
from engine.facts import SYNTHETIC_WARNING

if TYPE_CHECKING:
    from train.drafter.calibrate import CalibrationFit
    from train.drafter.evaluation import DrafterResult


def replica_table(stats: pb.Stats) -> Table:
    """One row for each replica of both pools."""
    columns = ("waiting", "running", "tokens", "preempted", "prefix hits", "pages free+cached/held/total")
    table = _table("replicas", ("pool", "replica"), (*columns, "leases", "reads (lost)", "moved"))
    for replica in stats.replicas:
        pages = [f"{name} {p.free}+{p.cached}/{p.held}/{p.total}" for name, p in sorted(replica.pages.items())]
        table.add_row(
            replica.pool,
            replica.replica,
            str(replica.waiting),
            str(replica.running),
            str(replica.tokens),
            str(replica.preempted),
            f"{replica.prefix_hit_tokens / max(1, replica.prompt_tokens):.0%}",
            ", ".join(pages),
            str(replica.leases_held) if replica.role == "prefill" else "-",
            f"{replica.reads} ({replica.reads_lost})" if replica.role == "decode" else "-",
            size(replica.moved_bytes) if replica.role == "decode" else "-",
        )
    return table


def speculation_table(stats: pb.Stats) -> Table | None:
    """One row for each decode replica that has drafted; None if there is none. Means are over its own steps."""
    replicas = [replica for replica in stats.replicas if replica.drafted]
    if not replicas:
        return None
    columns = ("steps", "ms a step: draft+plan+verify", "verified a step", "accepted length")
    table = _table("speculation", ("pool", "replica"), (*columns, "acceptance by place", "without context"))
    for replica in replicas:
        seconds = (replica.draft_seconds, replica.plan_seconds, replica.verify_seconds)
        table.add_row(
            replica.pool,
            replica.replica,
            str(replica.steps),
            "+".join(f"{value / replica.steps * 1e3:.1f}" for value in seconds),
            f"{replica.verified / replica.steps:.1f}",
            f"{accepted_length(replica):.2f}",
            by_place(replica.accepted_at, replica.verified_at),
            str(replica.handoffs_without_context),
        )
    return table


def accepted_length(replica: pb.Replica) -> float:
    """Tokens that a step gave a request, in the mean. The first token of each request came with its handoff."""
    stepped = replica.tokens - replica.requests
    return stepped / max(1, stepped - replica.accepted)


def by_place(accepted_at: Iterable[int], verified_at: Iterable[int]) -> str:
    """The acceptance at each place of a block, first to last."""
    return " ".join(f"{a / v:.0%}" if v else "-" for a, v in zip(accepted_at, verified_at, strict=True))


def warnings(stats: pb.Stats) -> list[str]:
    """What nobody should overlook."""
    pools = sorted({replica.pool for replica in stats.replicas if replica.synthetic})
    return [f"{SYNTHETIC_WARNING} (pool {', '.join(pools)})"] if pools else []


def size(num_bytes: int) -> str:
    """Bytes in the unit that fits."""
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def calibration_table(fit: "CalibrationFit") -> Table:
    """Each place's temperature, and how well survival was foreseen there before and after."""
    columns = ("place", "drafts", "temperature", "ECE before", "after", "AUC before", "after")
    table = _table("confidences by place of the draft", (), columns)
    places = zip(
        fit.drafts, fit.temperatures, fit.before.ece, fit.after.ece, fit.before.auc, fit.after.auc, strict=True
    )
    for place, (drafts, temperature, *values) in enumerate(places, start=1):
        before, after, area_before, area_after = values
        table.add_row(
            str(place),
            str(drafts),
            f"{temperature:.2f}",
            f"{before:.1%}",
            f"{after:.1%}",
            f"{area_before:.2f}",
            f"{area_after:.2f}",
        )
    return table


def evaluation_table(results: "Sequence[DrafterResult]") -> Table:
    """One row for each domain and setting. Times are medians of a step of so many requests; the speed-up is that of
    decoding with every draft verified."""
    requests = results[0].cost.requests
    title = f"accepted length, every draft verified; ms of a step of {requests} requests"
    columns = ("rounds", "length", "ECE", "AUC", "draft", "verify", "plain", "speed-up")
    table = _table(title, ("domain", "setting"), columns)
    for result in results:
        found, cost = result.figures, result.cost
        table.add_row(
            result.domain,
            result.setting,
            str(found.rounds),
            f"{found.accepted_length:.2f}±{found.accepted_length_error:.2f}",
            "-" if found.ece is None else f"{found.ece:.1%}",
            "-" if found.auc is None else f"{found.auc:.2f}",
            f"{cost.draft_ms:.1f}",
            f"{cost.verify_ms:.1f}",
            f"{cost.plain_ms:.1f}",
            f"{cost.speedup(found.accepted_length):.2f}",
        )
    return table


def places_table(results: "Sequence[DrafterResult]") -> Table:
    """How often the draft at each place was accepted if those before it were."""
    places = len(results[0].figures.acceptance)
    table = _table("acceptance by place", ("domain", "setting"), [str(place + 1) for place in range(places)])
    for result in results:
        table.add_row(result.domain, result.setting, *(f"{value:.0%}" for value in result.figures.acceptance))
    return table


def _table(title: str, names: Sequence[str], figures: Sequence[str]) -> Table:
    """An empty one: columns of names, to the left, then columns of figures, to the right."""
    table = Table(title=title)
    for name in names:
        table.add_column(name)
    for figure in figures:
        table.add_column(figure, justify="right")
    return table
