"""Tables that commands print on the terminal."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from cluster.proto import sparkpool_pb2 as pb
from engine.facts import SYNTHETIC_WARNING

if TYPE_CHECKING:
    from train.drafter.calibrate import CalibrationFit
    from train.drafter.evaluation import DrafterResult


def replica_table(stats: pb.Stats) -> Table:
    """Return one row for each replica of every pool."""
    columns = ("waiting", "running", "tokens", "preempted", "prefix hits", "pages free+cached/held/total")
    table = _table("replicas", ("pool", "replica"), (*columns, "leases", "reads (lost)", "moved"))
    for replica in stats.replicas:
        counters, transfers = replica.counters, replica.transfers
        pages = [f"{name} {p.free}+{p.cached}/{p.held}/{p.total}" for name, p in sorted(replica.pages.items())]
        prefills = replica.identity.role == "prefill"
        table.add_row(
            replica.identity.pool,
            replica.identity.replica,
            str(replica.waiting),
            str(replica.running),
            str(counters.tokens),
            str(counters.preempted),
            f"{counters.prefix_hit_tokens / max(1, counters.prompt_tokens):.0%}",
            ", ".join(pages),
            str(replica.leases.held) if prefills else "-",
            "-" if prefills else f"{transfers.reads} ({transfers.reads_lost})",
            "-" if prefills else size(transfers.moved_bytes),
        )
    return table


def speculation_table(stats: pb.Stats) -> Table | None:
    """Return one row for each decode replica that has drafted, or None if none has. Means are over its own steps."""
    replicas = [replica for replica in stats.replicas if replica.counters.drafted]
    if not replicas:
        return None
    columns = ("steps", "ms per step: draft+plan+verify", "verified per step", "accepted length")
    table = _table("speculation", ("pool", "replica"), (*columns, "acceptance by position", "without context"))
    for replica in replicas:
        counters = replica.counters
        seconds = (counters.draft_seconds, counters.plan_seconds, counters.verify_seconds)
        table.add_row(
            replica.identity.pool,
            replica.identity.replica,
            str(counters.steps),
            "+".join(f"{value / counters.steps * 1e3:.1f}" for value in seconds),
            f"{counters.verified / counters.steps:.1f}",
            f"{accepted_length(counters):.2f}",
            by_position(counters.accepted_at, counters.verified_at),
            str(counters.handoffs_without_context),
        )
    return table


def accepted_length(counters: pb.Counters) -> float:
    """Return the mean tokens that a step gave a request. The first token of each request came with its handoff."""
    stepped = counters.tokens - counters.requests
    return stepped / max(1, stepped - counters.accepted)


def by_position(accepted_at: Iterable[int], verified_at: Iterable[int]) -> str:
    """Format the acceptance rate at each position of a draft block, first to last."""
    return " ".join(f"{a / v:.0%}" if v else "-" for a, v in zip(accepted_at, verified_at, strict=True))


def warnings(stats: pb.Stats) -> list[str]:
    """Return warnings to print below the tables: pools whose acceptance is synthetic."""
    pools = sorted({replica.identity.pool for replica in stats.replicas if replica.identity.synthetic})
    return [f"{SYNTHETIC_WARNING} (pool {', '.join(pools)})"] if pools else []


def size(num_bytes: int) -> str:
    """Format bytes in the largest unit that leaves at least 1."""
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def calibration_table(fit: "CalibrationFit") -> Table:
    """Return each position's temperature, and how well survival was predicted there before and after calibration."""
    columns = ("position", "drafts", "temperature", "ECE before", "after", "AUC before", "after")
    table = _table("confidences by position in the draft block", (), columns)
    positions = zip(
        fit.drafts, fit.temperatures, fit.before.ece, fit.after.ece, fit.before.auc, fit.after.auc, strict=True
    )
    for position, (drafts, temperature, *values) in enumerate(positions, start=1):
        before, after, area_before, area_after = values
        table.add_row(
            str(position),
            str(drafts),
            f"{temperature:.2f}",
            f"{before:.1%}",
            f"{after:.1%}",
            f"{area_before:.2f}",
            f"{area_after:.2f}",
        )
    return table


def evaluation_table(results: "Sequence[DrafterResult]") -> Table:
    """Return one row for each domain and setting. Times are medians per step of `cost.requests` requests; the speed-up
    is over decoding without drafts, if every draft is verified."""
    requests = results[0].cost.requests
    title = f"accepted length, every draft verified; ms per step of {requests} requests"
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


def acceptance_table(results: "Sequence[DrafterResult]") -> Table:
    """Return how often the draft at each position was accepted if all before it were."""
    length = len(results[0].figures.acceptance)
    table = _table("acceptance by position", ("domain", "setting"), [str(number + 1) for number in range(length)])
    for result in results:
        table.add_row(result.domain, result.setting, *(f"{value:.0%}" for value in result.figures.acceptance))
    return table


def _table(title: str, names: Sequence[str], figures: Sequence[str]) -> Table:
    """Return an empty table: columns of names, aligned left, then columns of figures, aligned right."""
    table = Table(title=title)
    for name in names:
        table.add_column(name)
    for figure in figures:
        table.add_column(figure, justify="right")
    return table
