"""Summarizes a run of `sparkpool bench`: percentiles of latencies, rates, failures; as a table and as JSON.

The JSON file, for other programs (times are seconds from the start of the run unless a name says otherwise):

    kind      "sparkpool", or "endpoint" if an OpenAI-compatible server was measured (--endpoint)
    config    the options of the run, `seed` among them; for an endpoint also endpoint, model, api (never the key)
    started   date and time of the start, UTC
    summary   see `summary`; mean_prompt_tokens and mean_output_tokens are those of the completed requests
    requests  one `cluster.loadgen.load.RequestRecord` each, in the order of sending:
        index, scheduled (null in a closed loop), sent, messages [[time, tokens], ...], ended,
        status (OK, a gRPC status, EMPTY, NO_USAGE), details, finish_reason, prompt_tokens, cached_tokens,
        timings, acceptance (the last reply's, as cluster/proto/sparkpool.proto explains them; {} if it had none),
        vendor_times, throttled, throttled_seconds (all three empty or 0 unless an endpoint was measured)

An endpoint's tokens are those that its `usage` counts. A chunk does not say how many tokens it has, so the count is
spread evenly over the chunks with any, one token to the first: their times and their sum are measured, the counts of
single chunks are not. In a failed request, each such chunk counts as one token. finish_reason is the server's own word.
vendor_times are durations that the server reports, in seconds, under its own names: Cerebras's `time_info`, Groq's
times in `usage`; the summary has those that end in `_time`. HTTP statuses have the names of gRPC: 401 is
UNAUTHENTICATED, 429 is RESOURCE_EXHAUSTED. NO_USAGE: the answer was complete, but its tokens were not counted.
`throttled` is how often the server asked to send a request again later, and `sent` when it was sent last: TTFT and end
to end count from there. It was first sent `throttled_seconds` earlier; the latencies since due include that time.
"""

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from rich.table import Table

from cluster.loadgen.load import RequestRecord
from cluster.tables import by_position, size
from engine.facts import SYNTHETIC_WARNING
from policy.percentile import percentile

MAX_OVERRUNS = 0.01  # share of steps; with more, the times say nothing about the emulated device
LATE_SECONDS = 0.01  # if requests are sent later than this, the client has shaped the load rather than the schedule
Summary = dict[str, Any]


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """Return mean, p50, p95 and p99; None without values."""
    found = list(values)
    if not found:
        return None
    return {"mean": statistics.fmean(found), **{f"p{p}": percentile(found, p) for p in (50, 95, 99)}}


def summary(records: list[RequestRecord], client_cpu_seconds: float = 0.0) -> Summary:
    """Return the figures of a run, in seconds, tokens and bytes. Only requests that ended OK count, except in `failed`,
    `throttled` and `late`."""
    good = [record for record in records if record.ok]
    seconds = max((r.ended for r in records), default=0.0) - min((r.first_sent for r in records), default=0.0)
    prompt_tokens = sum(record.prompt_tokens for record in good)
    tokens = sum(record.output_tokens for record in good)
    messages = sum(len(record.token_times) for record in good)
    moved_bytes = int(sum(record.timings.get("moved_bytes", 0) for record in good))
    transfer_seconds = sum(record.timings.get("transfer_seconds", 0.0) for record in good)
    return {
        "seconds": seconds,
        "requests": len(records),
        "completed": len(good),
        "failed": dict(Counter(record.status for record in records if not record.ok)),
        "input_tokens": prompt_tokens,
        "cached_tokens": sum(record.cached_tokens for record in good),
        "output_tokens": tokens,
        "mean_prompt_tokens": _ratio(prompt_tokens, len(good)),
        "mean_output_tokens": _ratio(tokens, len(good)),
        "requests_per_second": _ratio(len(good), seconds),
        "output_tokens_per_second": _ratio(tokens, seconds),
        "messages": messages,
        "tokens_per_message": _ratio(tokens, messages),
        "latency": {
            "ttft": spread(record.ttft for record in good),
            "tpot": spread(record.tpot for record in good if record.tpot is not None),
            "itl": spread(gap for record in good for gap in record.itl),
            "e2e": spread(record.e2e for record in good),
            "scheduled_ttft": spread(r.late_seconds + r.ttft for r in good if r.scheduled is not None),
            "scheduled_e2e": spread(r.late_seconds + r.e2e for r in good if r.scheduled is not None),
            "late": spread(r.late_seconds - r.throttled_seconds for r in records if r.scheduled is not None),
        },
        "vendor_times": _vendor_times(good),
        "throttled": {
            "requests": sum(record.throttled > 0 for record in records),
            "times": sum(record.throttled for record in records),
            "seconds": sum(record.throttled_seconds for record in records),
        },
        "moved_bytes": moved_bytes,
        "transfer_seconds": transfer_seconds,
        "transfer_bytes_per_second": _ratio(moved_bytes, transfer_seconds),
        "speculation": _speculation(good),
        "emulated": _emulated(good),
        "client_cpu_seconds": client_cpu_seconds,
    }


def _vendor_times(records: list[RequestRecord]) -> Summary:
    """Return the spread of each duration that an endpoint reports of itself."""
    names = sorted({name for record in records for name in record.vendor_times if name.endswith("_time")})
    return {n: spread(r.vendor_times[n] for r in records if n in r.vendor_times) for n in names}


def _speculation(records: list[RequestRecord]) -> Summary | None:
    """Return sums and means over the answers with drafts; None if there are none."""
    found = [record.acceptance for record in records if record.acceptance.get("drafted")]
    if not found:
        return None
    sums = {name: sum(one[name] for one in found) for name in ("steps", "drafted", "verified", "accepted")}
    by_index = {
        name: [sum(counts) for counts in zip_longest(*(one[name] for one in found), fillvalue=0)]
        for name in ("verified_at", "accepted_at")
    }
    return {
        **sums,
        **by_index,
        "accepted_length": 1 + sums["accepted"] / sums["steps"],
        "verified_per_step": sums["verified"] / sums["steps"],
        "synthetic": any(one["synthetic"] for one in found),
    }


def _emulated(records: list[RequestRecord]) -> Summary | None:
    """Return which devices the decode replicas emulated, and whether the times are comparable to those of that device;
    None if none was emulated."""
    paced = [record for record in records if record.timings.get("emulated")]
    if not paced:
        return None
    steps = sum(record.acceptance["steps"] for record in paced)
    share = _ratio(sum(record.timings["overruns"] for record in paced), steps)
    devices = sorted({record.timings["emulated"] for record in paced})
    comparable = share <= MAX_OVERRUNS and len(devices) == 1 and len(paced) == len(records)
    return {"devices": devices, "requests": len(paced), "overruns": share, "comparable": comparable}


def _ratio(amount: float, of: float) -> float:
    return amount / of if of else 0.0


def as_json(
    config: dict[str, object], started: str, records: list[RequestRecord], figures: Summary
) -> dict[str, object]:
    """Return the content of `--json`, as the top of this file describes it."""
    requests = [asdict(record) for record in sorted(records, key=lambda r: r.index)]
    kind = "endpoint" if config["endpoint"] else "sparkpool"
    return {"kind": kind, "config": config, "started": started, "summary": figures, "requests": requests}


def reasons(records: list[RequestRecord]) -> list[str]:
    """Return the details of the first failure of each status, if it has any."""
    first = {record.status: record.details for record in reversed(records) if not record.ok and record.details}
    return [f"{status}: {details}" for status, details in sorted(first.items())]


LATENCIES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "end to end",
    "scheduled_ttft": "TTFT since due",
    "scheduled_e2e": "end to end since due",
}


def latency_table(figures: Summary) -> Table:
    """Return a table in milliseconds with one row for each latency that was measured."""
    table = Table(title="latency, ms")
    table.add_column("")
    for column in ("mean", "p50", "p95", "p99"):
        table.add_column(column, justify="right")
    rows = [(name, figures["latency"][key]) for key, name in LATENCIES.items()]
    for name, found in (*rows, *((f"the server's {name}", times) for name, times in figures["vendor_times"].items())):
        if found:
            table.add_row(name, *(f"{value * 1e3:.2f}" for value in found.values()))
    return table


def lines(figures: Summary) -> list[str]:
    """Return the other figures, one sentence each."""
    f = figures
    failed = ", ".join(f"{count} {status}" for status, count in sorted(f["failed"].items()))
    sentences = [
        f"{f['completed']} of {f['requests']} requests completed in {f['seconds']:.2f} s"
        + (f"; failed: {failed}" if failed else ""),
        f"{f['output_tokens_per_second']:.1f} output tok/s, {f['requests_per_second']:.2f} requests/s "
        f"({f['input_tokens']} tokens in, {f['output_tokens']} out)",
        f"{f['tokens_per_message']:.2f} tokens per message ({f['messages']} messages)",
        f"this client used {_ratio(f['client_cpu_seconds'], f['seconds']):.0%} of one core",
    ]
    if f["moved_bytes"]:
        rate = size(int(f["transfer_bytes_per_second"]))
        sentences.append(f"KV moved: {size(f['moved_bytes'])}, {rate}/s while reading")
    if (t := f["throttled"])["times"]:
        sentences.append(
            f"{t['requests']} requests were throttled {t['times']} times (HTTP 429, 503) and waited, "
            f"{t['seconds']:.2f} s in all"
        )
    if (s := f["speculation"]) is not None:
        sentences.append(
            f"accepted length {s['accepted_length']:.2f}, {s['verified_per_step']:.2f} drafts verified per request and "
            f"step; acceptance by position {by_position(s['accepted_at'], s['verified_at']) or '-'}"
        )
        sentences += [SYNTHETIC_WARNING] if s["synthetic"] else []
    if (e := f["emulated"]) is not None:
        sentences.append(f"EMULATED {', '.join(e['devices'])}: tokens are real, their times are modelled")
        if not e["comparable"]:
            sentences.append(
                f"NOT COMPARABLE: {e['overruns']:.1%} of the steps took longer here than on that device (1% may), or "
                "not all requests went to one such device; raise emulation.time_scale or name one --decode-pool"
            )
    late = f["latency"]["late"]
    if late and late["p99"] > LATE_SECONDS:
        sentences.append(
            f"FELL BEHIND: requests were sent up to {late['p99'] * 1e3:.0f} ms (p99) after they were due, "
            "because of this client or its --concurrency; read the latencies since due"
        )
    return sentences
