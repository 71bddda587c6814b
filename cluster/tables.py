"""Tables for the terminal."""

from rich.table import Table

from cluster.proto import sparkpool_pb2 as pb


def replica_table(stats: pb.Stats) -> Table:
    """One row for each replica of both pools."""
    table = Table(title="replicas")
    columns = ("pool", "replica", "waiting", "running", "tokens", "preempted", "prefix hits")
    for column in (*columns, "pages free+cached/held/total", "leases", "reads (lost)", "moved"):
        table.add_column(column, justify="left" if column in ("pool", "replica") else "right")
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


def size(num_bytes: int) -> str:
    """Bytes in the unit that fits."""
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
