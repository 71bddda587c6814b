"""Tables of the committed benchmark results, as Markdown. `make docs` puts them into docs/benchmarks.md."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.shape import RESULTS

Result = dict[str, Any]
Rows = list[dict[str, Any]]


def read_results(folder: Path = RESULTS) -> dict[str, Result]:
    """Return the content of every result file by benchmark name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def summary(results: dict[str, Result]) -> str:
    """Return a Markdown section for each benchmark: machine and date, tables, and the goals that were missed."""
    parts = []
    for name, (what, tables) in SECTIONS.items():
        parts += [f"## {name}", _headline(results[name], what), *tables(results[name]), _goals(results[name])]
    return "\n\n".join(parts)


def highlights(results: dict[str, Result]) -> str:
    """Return the few figures that the README quotes, as a Markdown list."""
    (decode,) = results["decode"]["figures"].values()
    ratios = [row["over_generate"] for row in decode]
    ((_, killed),), (redeploys, _) = results["chaos"]["figures"].values(), results["rolling"]["figures"].values()
    failed = next(goal["figure"] for goal in results["chaos"]["goals"] if goal["what"] == "requests that failed")
    lines = [
        f"One decode replica gives {min(ratios):.1f} to {max(ratios):.1f} times the output tokens per second of "
        f"transformers' `generate`, depending on the model and on the number of requests "
        f"({_machine(results['decode'])}).",
        f"With {killed['what']} under load, {failed:g} requests failed; {killed['sent round again']} were prefilled "
        "again.",
        f"While every replica was replaced under load, {redeploys[0]['failed']} of {redeploys[0]['requests']} requests "
        "failed.",
    ]
    return _list(lines)


def _decode(result: Result) -> Iterator[str]:
    (rows,) = result["figures"].values()
    columns = ["Sparkpool", "`generate`", "continuous batching", "over `generate`", "over continuous batching"]
    keys = ["ours_tok_s", "generate_tok_s", "continuous_tok_s", "over_generate", "over_continuous"]
    yield _table(["model", "requests at once", *columns], _columns(rows, "model", "at_once", *keys))


def _kernels(result: Result) -> Iterator[str]:
    peak = result["ceilings"]["multiply-add, Gflop/s"]
    products, steps = result["figures"].values()
    sides = {"Sparkpool": "ours_gflop_s", "oneDNN": "onednn_gflop_s", "MKL": "mkl_gflop_s"}
    rows = [[r["rows"], *(r[key] for key in sides.values()), r["ours_gflop_s"] / peak] for r in products]
    yield _table(["rows", *sides, "Sparkpool / peak"], rows)
    columns = ["a step of one request", "MB read", "ms to read them", "ms of the step", "step / reading"]
    yield _table(columns, _columns(steps, "model", "mbytes", "reading_ms", "step_ms", "over_reading"))


def _engine(result: Result) -> Iterator[str]:
    (rows,) = result["figures"].values()
    yield _table(["requests at once", "engine ms", "model ms"], _columns(rows, "at_once", "own_ms", "model_ms"))


def _start(result: Result) -> Iterator[str]:
    (rows,) = result["figures"].values()
    yield _table(["stage", "seconds"], _columns(rows, "until", "seconds"))


def _handoff(result: Result) -> Iterator[str]:
    reads, handoffs, control = result["figures"].values()
    rows = [
        [f"read of {r['pages']} pages, {r['page']}", r["adjacent_gb_s"], r["raw_gb_s"], r["adjacent_over_raw"]]
        for r in reads
        if r["pages"] in (1, 64)
    ]
    rows += [
        [f"handoff of {r['pages']} pages, {r['pool']} pool", r["handoff_gb_s"], r["raw_gb_s"], r["over_raw"]]
        for r in handoffs
    ]
    yield _table(["what", "GB/s", "raw read, GB/s", "ratio"], rows)
    times = ", ".join(f"{row['handoff']}: {row['p50']:.1f} ms" for row in control)
    yield f"Control path, from the end of prefill to admission in decode, median: {times}."


def _front(result: Result) -> Iterator[str]:
    yield _list(f"{goal['what']}: {goal['figure']:.3g} {goal['unit']}" for goal in result["goals"])
    if latencies := result["figures"].get("latency"):
        yield _table(["ms", *list(latencies[0])[1:]], [[*row.values()] for row in latencies])
    tables = {title: rows for title, rows in result["figures"].items() if "processor time" in title}
    columns = ["processor seconds per 1,000 tokens", *(row["process"] for row in next(iter(tables.values())))]
    rows = [[title.partition(":")[0], *(r["s per 1,000 tokens"] for r in rows)] for title, rows in tables.items()]
    yield _table(columns, rows)


def _local(result: Result) -> Iterator[str]:
    alone, beside = result["figures"].values()
    keys = ("prompt", "local_first_ms", "handoff_first_ms", "local_second_ms", "handoff_second_ms")
    columns = ["prompt tokens", "first token, local, ms", "by handoff, ms", "second token, local, ms", "by handoff, ms"]
    yield _table(columns, _columns(alone, *keys))
    rates = ("alone_tok_s", "local_tok_s", "handoff_tok_s", "local_prompts_s", "handoff_prompts_s")
    columns = ["tok/s alone", "tok/s, local", "tok/s, by handoff", "prompts/s, local", "prompts/s, by handoff"]
    yield _table(["8 answers beside prompts of", *columns], _columns(beside, "prompt", *rates))


def _whole(result: Result) -> Iterator[str]:
    """Every table of the result with all its columns, then its notes."""
    for rows in result["figures"].values():
        yield _table([*rows[0]], _columns(rows, *rows[0]))
    if result["notes"]:
        yield _list(result["notes"])


def _speculation(result: Result) -> Iterator[str]:
    (rows,) = result["figures"].values()
    cells = {(r["at_once"], r["side"]): f"{_number(r['tok_s'])} ({r['tau']:.2f})" for r in rows}
    yield _pivot(["requests at once"], [(n,) for n, _ in cells], [side for _, side in cells], cells)
    yield "![tokens per second in all, over tokens per second of each user](../bench/results/speculation.png)"


def _planning(result: Result) -> Iterator[str]:
    (planning, plans), (drafting, (one,)), _ = result["figures"].items()
    yield _table(
        [planning, "steps", "planning ms", "step ms", "share"],
        _columns(plans, "planner", "steps", "planning_ms", "step_ms", "share"),
    )
    yield (
        f"Of {drafting}: drafting {one['draft_ms']:.2f} ms, verification {one['verify_ms']:.2f} ms; "
        f"drafting is {one['drafting_share']:.0%}."
    )


def _acceptance(result: Result) -> Iterator[str]:
    rows = result["figures"]["accepted length"]
    cells = {(r["domain"], r["setting"], r["drafter"]): r["accepted_length"] for r in rows}
    kinds, drafters = [key[:2] for key in cells], [key[2] for key in cells]
    yield _pivot(["domain", "setting"], kinds, drafters, cells)


def _training(result: Result) -> Iterator[str]:
    columns = ["step", "how", "tok/s", "over plain", "peak KiB per token", "of plain"]
    keys = ("step", "side", "tok_s", "over_plain", "peak_kib_per_token", "memory_over_plain")
    yield _table(columns, _columns(result["figures"]["training"], *keys))


def _prediction(result: Result) -> Iterator[str]:
    (rows,) = result["figures"].values()
    kinds = ("throughput", "tpot", "ttft50", "ttft95")
    measured = ("side", "concurrency", "tok_s", "tpot_ms", "ttft50_ms", "ttft95_ms")
    columns = ["", "requests at once", "tok/s", "TPOT ms", "TTFT p50 ms", "TTFT p95 ms"]
    columns += [f"{name}, predicted / measured" for name in ("tok/s", "TPOT", "TTFT p50", "TTFT p95")]
    yield _table(columns, _columns(rows, *measured, *(f"{kind}_ratio" for kind in kinds)))
    spread = {kind: f"{max(row[f'{kind}_spread'] for row in rows):.0%}" for kind in kinds}
    yield (
        f"Repeated runs differ by up to {spread['throughput']} (tok/s), {spread['tpot']} (TPOT), "
        f"{spread['ttft50']} and {spread['ttft95']} (TTFT p50 and p95)."
    )
    yield _list(result["notes"])


def _validation(result: Result) -> Iterator[str]:
    table = []
    groups = {title: rows for title, rows in result["figures"].items() if title != "reports"}
    for group, rows in groups.items():
        for how, fitted in (("predicted", False), ("fitted", True)):
            if off := [abs(row["off"]) for row in rows if row["fitted"] == fitted]:
                table.append([group, how, len(off), f"{median(off):.1%}", f"{max(off):.1%}"])
    yield _table(["published", "how", "points", "median error", "largest error"], table)
    yield _list(result["notes"])
    reports = ", ".join(f"{row['scenario']} {row['seconds']:.0f} s" for row in result["figures"]["reports"])
    yield f"Time to write the reports of the shipped scenarios from nothing: {reports}."


def _gpu(result: Result) -> Iterator[str]:
    figures = result["figures"]
    steps = [row for row in figures["steps, eager torch"] if row["tokens_each"] == 1]
    columns = ["a step of", "requests", "context", "ms", "device ms", "idle share", "launches", "of copy bandwidth"]
    keys = ("model", "requests", "context", "step_ms", "device_ms", "idle", "launches", "of_copy_bandwidth")
    yield _table(columns, _columns(steps, *keys))
    columns = ["as a CUDA graph", "requests", "tokens each", "context", "eager ms", "graph ms", "eager / graph"]
    graph_keys = ("model", "requests", "tokens_each", "context", "eager_ms", "graph_ms", "eager_over_graph")
    yield _table(columns, _columns(figures["steps as CUDA graphs"], *graph_keys))
    columns = ["serving", "dtype", "drafts", "requests at once", "tok/s", "tokens per step"]
    yield _table(columns, _columns(figures["serving"], "model", "dtype", "side", "at_once", "tok_s", "tau"))


SECTIONS: dict[str, tuple[str, Callable[[Result], Iterator[str]]]] = {
    "decode": ("output tokens per second of one replica beside transformers, prefill included", _decode),
    "kernels": ("products of packed matrices in Gflop/s, beside the machine's multiply-add peak", _kernels),
    "engine": ("a decode step of the shipped model: the engine's own time, and the model's", _engine),
    "start": ("`sparkpool generate --local` on the shipped model, stage by stage, in a process of its own", _start),
    "handoff": ("pages moved between two processes, beside one raw NIXL read of as many bytes", _handoff),
    "front": ("the front (gRPC, proxy, gateway) around the same two engines, 16 streams", _front),
    "local": ("a prompt prefilled by the decode engine itself, and by a prefill engine on the same cores", _local),
    "chaos": ("three replicas in each pool, 64 requests under way, random replicas killed", _whole),
    "rolling": ("every replica replaced under load; then bursts, with 1 to 3 replicas in each pool", _whole),
    "speculation": ("decoding the shipped model; output tokens per second (tokens per step)", _speculation),
    "planning": ("what planning costs in a step, and drafting in a step of one request", _planning),
    "acceptance": ("tokens per step with every draft verified, on held-out Python", _acceptance),
    "training": ("a step of the drafter's training beside the same loop in plain transformers", _training),
    "prediction": ("this machine's own cluster, simulated from a profile taken at other concurrencies", _prediction),
    "simulator": ("an hour of nine replicas of eight GPUs on one core; then the fast simulator over the exact", _whole),
    "validation": ("predictions against published points; `fitted` means fitted on these very points", _validation),
    "gpu": ("eager torch, random models in bfloat16; `idle` is the share of a step without work on the device", _gpu),
}


def _machine(result: Result) -> str:
    machine = result["machine"]
    if machine["device"] != "cpu":
        return str(machine["device"])
    return f"{machine['cpu']}, {machine['cores']} cores, no GPU"


def _headline(result: Result, what: str) -> str:
    return f"{what[0].upper()}{what[1:]} ({_machine(result)}, {result['date'][:10]})."


def _goals(result: Result) -> str:
    missed = [goal["what"] for goal in result["goals"] if not goal["met"]]
    met = f"{len(result['goals']) - len(missed)} of {len(result['goals'])} goals met"
    return f"{met}; missed: {'; '.join(missed)}." if missed else f"{met}."


def _columns(rows: Rows, *keys: str) -> list[list[Any]]:
    return [[row[key] for key in keys] for row in rows]


def _pivot(names: list[str], kinds: Sequence[tuple[Any, ...]], sides: Sequence[str], cells: dict[Any, Any]) -> str:
    """Return a table with a line for each kind and a column for each side."""
    sides, kinds = list(dict.fromkeys(sides)), list(dict.fromkeys(kinds))
    return _table([*names, *sides], [[*kind, *(cells[*kind, side] for side in sides)] for kind in kinds])


def _list(lines: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_number(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
