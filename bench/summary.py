"""The README's figures, from the result files: `python -m bench.summary` writes them there, a test compares."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.shape import RESULTS
from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL
from train.drafter.card import drafter_card

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- figures: python -m bench.summary -->", "<!-- end of figures -->"
Rows = list[dict[str, Any]]


def summary(results: Path = RESULTS) -> str:
    """Markdown: a table for each benchmark, and the goals that were missed."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(results.glob("*.json"))}
    serving = [_handoff, _front, _local, _chaos, _rolling]
    drafting = [_speculation, _planning, _acceptance, _training]
    parts = [_decode, _kernels, _engine, _start, *serving, *drafting, _prediction, _simulator, _validation, _gpu]
    return "\n\n".join(text for part in parts for text in part(found[part.__name__.removeprefix("_")]))


def put_into(readme: str, text: str) -> str:
    """The README with `text` between the marks."""
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _decode(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("decode", result, "one replica beside transformers; output tokens per second, prefill included")
    (rows,) = result["figures"].values()
    columns = ["ours", "`generate`", "continuous batching", "over `generate`", "over continuous batching"]
    keys = ["ours_tok_s", "generate_tok_s", "continuous_tok_s", "over_generate", "over_continuous"]
    yield _table(["model", "at once", *columns], _columns(rows, ("model", "at_once", *keys)))
    yield _missed(result)


def _kernels(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("kernels", result, "products of packed matrices, Gflop/s, beside the multiply-add peak")
    peak = result["ceilings"]["multiply-add, Gflop/s"]
    products, steps = result["figures"].values()
    sides = {"ours": "ours_gflop_s", "oneDNN": "onednn_gflop_s", "MKL": "mkl_gflop_s"}
    rows = [[r["rows"], *(r[key] for key in sides.values()), r["ours_gflop_s"] / peak] for r in products]
    yield _table(["rows", *sides, "ours, of the peak"], rows)
    keys = ("model", "mbytes", "reading_ms", "step_ms", "over_reading")
    yield _table(["a step of one request", "MB", "reading them, ms", "the step, ms", "of it"], _columns(steps, keys))
    yield _missed(result)


def _engine(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("engine", result, "a decode step of the shipped model: the engine's own time, and the model's")
    (rows,) = result["figures"].values()
    yield _table(["at once", "own ms", "model ms"], _columns(rows, ("at_once", "own_ms", "model_ms")))
    yield _missed(result)


def _start(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("start", result, "`sparkpool generate --local` on the shipped model, a process each")
    (rows,) = result["figures"].values()
    yield _table(["until", "seconds"], _columns(rows, ("until", "seconds")))
    yield _missed(result)


def _columns(rows: Rows, keys: Sequence[str]) -> list[list[Any]]:
    return [[row[key] for key in keys] for row in rows]


def _handoff(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("handoff", result, "pages between two processes, beside one raw NIXL read of as many bytes")
    reads, handoffs, control = result["figures"].values()
    rows = [[f"reads of {r['pages']} pages, {r['page']}", r["adjacent_gb_s"], r["raw_gb_s"]] for r in reads]
    rows = [[*row, r["adjacent_over_raw"]] for row, r in zip(rows, reads, strict=True) if r["pages"] in (1, 64)]
    whole = [f"a handoff of {row['pages']} pages, {row['pool']} pool" for row in handoffs]
    rows += [[w, r["handoff_gb_s"], r["raw_gb_s"], r["over_raw"]] for w, r in zip(whole, handoffs, strict=True)]
    yield _table(["what", "GB/s", "raw GB/s", "of raw"], rows)
    times = ", ".join(f"{row['handoff']}: {row['p50']:.1f} ms" for row in control)
    yield f"Control path, from prefill done to decode admitted, p50: {times}."
    yield _missed(result)


def _front(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("front", result, "gRPC, proxy and gateway around the same two engines, 16 streams")
    shares = [f"{goal['what']}: {goal['figure']:.3g} {goal['unit']}" for goal in result["goals"]]
    yield "\n".join(f"* {share}" for share in shares)
    if latencies := result["figures"].get("latency"):
        yield _table(["ms", *list(latencies[0])[1:]], [[*row.values()] for row in latencies])
    tables = {title: rows for title, rows in result["figures"].items() if "processor time" in title}
    columns = ["of each 1,000 tokens, processor seconds", *(row["process"] for row in next(iter(tables.values())))]
    yield _table(
        columns, [[t.partition(":")[0], *(r["s per 1,000 tokens"] for r in rows)] for t, rows in tables.items()]
    )
    yield _missed(result)


def _chaos(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("chaos", result, "three replicas in each pool, 64 requests under way, random replicas killed")
    (rows,) = result["figures"].values()
    yield _table(["", "output tok/s", "s", "sent round again"], _columns(rows, [*rows[0]]))
    yield "\n".join(f"* {note}" for note in result["notes"])
    yield _missed(result)


def _local(result: dict[str, Any]) -> Iterator[str]:
    what = "a prompt prefilled by the decode engine itself, and by a prefill engine on the same cores"
    yield _headline("local", result, what)
    alone, beside = result["figures"].values()
    keys: tuple[str, ...]
    keys = ("prompt", "local_first_ms", "handoff_first_ms", "local_second_ms", "handoff_second_ms")
    names = ["a prompt of", "first token, local, ms", "by handoff", "second token, local, ms", "by handoff"]
    yield _table(names, _columns(alone, keys))
    keys = ("prompt", "alone_tok_s", "local_tok_s", "handoff_tok_s", "local_prompts_s", "handoff_prompts_s")
    names = [
        "8 answers beside prompts of",
        "tok/s alone",
        "local",
        "by handoff",
        "prompts a second, local",
        "by handoff",
    ]
    yield _table(names, _columns(beside, keys))
    yield _missed(result)


def _rolling(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("rolling", result, "every replica replaced under load; then bursts, with 1 to 3 replicas a pool")
    redeploys, scalings = result["figures"].values()
    for rows in (redeploys, scalings):
        yield _table([*rows[0]], _columns(rows, [*rows[0]]))
    yield "\n".join(f"* {note}" for note in result["notes"])
    yield _missed(result)


def _speculation(result: dict[str, Any]) -> Iterator[str]:
    yield _headline(
        "speculation", result, "decoding alone, the shipped model; output tokens per second (tokens a step)"
    )
    (rows,) = result["figures"].values()
    sides = list(dict.fromkeys(row["side"] for row in rows))
    by_place = {(row["at_once"], row["side"]): row for row in rows}

    def cell(at_once: int, side: str) -> str:
        row = by_place[at_once, side]
        return f"{_number(row['tok_s'])} ({row['tau']:.2f})"

    counts = list(dict.fromkeys(row["at_once"] for row in rows))
    yield _table(["at once", *sides], [[n, *(cell(n, side) for side in sides)] for n in counts])
    yield "![tokens per second in all, over tokens per second of each user](bench/results/speculation.png)"
    yield _missed(result)


def _planning(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("planning", result, "what planning costs in a step, and drafting in a round")
    planning, rounds, _ = result["figures"].items()
    rows = [[row["planner"], row["steps"], row["planning_ms"], row["step_ms"], row["share"]] for row in planning[1]]
    yield _table([planning[0], "steps", "planning ms", "step ms", "share"], rows)
    (one,) = rounds[1]
    yield (
        f"Of {rounds[0]}: drafting {one['draft_ms']:.2f} ms, verification {one['verify_ms']:.2f} ms; "
        f"drafting is {one['drafting_share']:.0%}."
    )
    yield _missed(result)


def _acceptance(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("acceptance", result, "tokens that a round gives, every draft verified, on held-out Python")
    rows = result["figures"]["accepted length"]
    drafters = list(dict.fromkeys(row["drafter"] for row in rows))
    by_place = {(row["domain"], row["setting"], row["drafter"]): row["accepted_length"] for row in rows}
    kinds = list(dict.fromkeys((row["domain"], row["setting"]) for row in rows))
    yield _table(["domain", "setting", *drafters], [[*kind, *(by_place[*kind, d] for d in drafters)] for kind in kinds])
    yield _missed(result)


def _training(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("training", result, "a step of the drafter's training beside the same loop in plain transformers")
    rows = result["figures"]["training"]
    columns = ["step", "how", "tok/s", "over plain", "peak KiB per token", "of plain"]
    keys = ("step", "side", "tok_s", "over_plain", "peak_kib_per_token", "memory_over_plain")
    yield _table(columns, _columns(rows, keys))
    yield _missed(result)


def _prediction(result: dict[str, Any]) -> Iterator[str]:
    what = "this machine's own cluster, simulated from a profile at other concurrencies; predicted over measured"
    yield _headline("prediction", result, what)
    (rows,) = result["figures"].values()
    measured = ("side", "concurrency", "tok_s", "tpot_ms", "ttft50_ms", "ttft95_ms")
    ratios = tuple(f"{key}_ratio" for key in ("throughput", "tpot", "ttft50", "ttft95"))
    names = ["", "at once", "tok/s", "TPOT ms", "TTFT p50 ms", "p95 ms", "tok/s, over", "TPOT", "TTFT p50", "p95"]
    yield _table(names, _columns(rows, (*measured, *ratios)))
    worst = {key: max(row[f"{key}_spread"] for row in rows) for key in ("throughput", "tpot", "ttft50", "ttft95")}
    yield (
        f"Runs of one kind differ by up to {worst['throughput']:.0%} (tok/s), {worst['tpot']:.0%} (TPOT), "
        f"{worst['ttft50']:.0%} and {worst['ttft95']:.0%} (TTFT p50 and p95)."
    )
    yield "\n".join(f"* {note}" for note in result["notes"])
    yield _missed(result)


def _simulator(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("simulator", result, "an hour of nine replicas of eight GPUs, on one core; and fast against exact")
    for rows in result["figures"].values():
        yield _table([*rows[0]], _columns(rows, [*rows[0]]))
    yield _missed(result)


def _validation(result: dict[str, Any]) -> Iterator[str]:
    yield _headline("validation", result, "predicted against published; `fitted`: on these very points")
    table = []
    groups = {title: rows for title, rows in result["figures"].items() if title != "reports"}
    for group, rows in groups.items():
        for how, fitted in (("predicted", False), ("fitted", True)):
            if off := [abs(row["off"]) for row in rows if row["fitted"] == fitted]:
                table.append([group, how, len(off), f"{median(off):.1%}", f"{max(off):.1%}"])
    yield _table(["", "", "points", "off, median", "worst"], table)
    yield "\n".join(f"* {note}" for note in result["notes"])
    reports = ", ".join(f"{row['scenario']} {row['seconds']:.0f} s" for row in result["figures"]["reports"])
    yield f"Reports of the shipped scenarios, each from nothing: {reports}."
    yield _missed(result)


def _headline(name: str, result: dict[str, Any], what: str) -> str:
    machine = result["machine"]
    place = f"{machine['cpu']}, {machine['cores']} cores, no GPU" if machine["device"] == "cpu" else machine["device"]
    return f"**{name}** ({place}, {result['date'][:10]}): {what}."


def _missed(result: dict[str, Any]) -> str:
    missed = [goal["what"] for goal in result["goals"] if not goal["met"]]
    met = f"{len(result['goals']) - len(missed)} of {len(result['goals'])} goals met"
    return f"{met}; missed: {'; '.join(missed)}." if missed else f"{met}."


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_number(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def card(results: Path = RESULTS) -> str:
    """The shipped drafter's card."""
    acceptance = json.loads((results / "acceptance.json").read_text())
    return drafter_card(SHIPPED_DRAFTER, SHIPPED_MODEL, acceptance)


def _gpu(result: dict[str, Any]) -> Iterator[str]:
    what = "eager torch, random models in bfloat16; `idle`: the share of a step in which the device did nothing"
    yield _headline("gpu", result, what)
    figures = result["figures"]
    steps = [row for row in figures["steps, eager torch"] if row["tokens_each"] == 1]
    keys: tuple[str, ...]
    keys = ("model", "requests", "context", "step_ms", "device_ms", "idle", "launches", "of_copy_bandwidth")
    names = ["a step of", "requests", "context", "ms", "device ms", "idle", "launches", "of bandwidth"]
    yield _table(names, _columns(steps, keys))
    keys = ("model", "requests", "tokens_each", "context", "eager_ms", "graph_ms", "eager_over_graph")
    names = ["as a CUDA graph", "requests", "tokens each", "context", "eager ms", "graph ms", "x"]
    yield _table(names, _columns(figures["steps as CUDA graphs"], keys))
    keys = ("model", "dtype", "side", "at_once", "tok_s", "tau")
    yield _table(
        ["serving", "dtype", "drafts", "at once", "tok/s", "tokens a step"], _columns(figures["serving"], keys)
    )
    yield _missed(result)


if __name__ == "__main__":
    README.write_text(put_into(README.read_text(), summary()))
    (SHIPPED_DRAFTER / "README.md").write_text(card())
