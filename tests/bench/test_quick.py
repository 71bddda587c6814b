"""Every benchmark in its quick mode: what it compares is equal. Nothing here looks at a time."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import decode, reference
from bench.__main__ import main
from local import Pair

HOUSE = Path(__file__).resolve().parent.parent.parent
ABSENT = ["ray", "nixl", "nixl._api", "rich", "rich.progress", "rich.console", "rich.table", "grpc", "fastapi", "typer"]
Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a benchmark on one CPU thread; what its result file says."""

    def quickly(name: str) -> dict[str, Any]:
        main([name, "--quick", "--device", "cpu", "--threads", "1", "--out", str(tmp_path)])
        found: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["quick"] is True
        assert found["ceilings"]
        return found

    return quickly


def test_decode_compares_equal_tokens_of_all_sides(run: Run) -> None:
    found = run("decode")

    rows = found["figures"]["output tokens per second"]
    assert [(row["model"], row["at_once"]) for row in rows] == [
        (model, n) for model in ("deepseek_v3", "qwen3") for n in (1, 4)
    ]
    assert all(row["ties"] == 0 for row in rows)
    assert all(row["ours_tok_s"] > 0 and row["generate_tok_s"] > 0 for row in rows)
    assert all((row["continuous_tok_s"] is not None) == (row["model"] == "qwen3") for row in rows)
    assert any("continuous batching cannot run this model" in note for note in found["notes"])
    assert len(found["goals"]) == 6


def test_decode_refuses_to_time_wrong_tokens(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = Pair.generate

    def wrong(self: Pair, requests: Any) -> dict[str, list[int]]:
        return {name: [*tokens[:-1], tokens[-1] ^ 1] for name, tokens in generate(self, requests).items()}

    monkeypatch.setattr(decode.Pair, "generate", wrong)

    with pytest.raises(AssertionError, match="transformers"):
        run("decode")


def test_a_parting_elsewhere_than_at_a_tie_is_no_tie() -> None:
    answers = reference.Answers(tokens=[[5, 6, 7], [5, 6, 7]], margins=[[1.0, 1e-6, 1.0], [1.0, 1.0, 1.0]])

    assert answers.ties_with([[5, 9, 9], [5, 6, 7]]) == 1
    with pytest.raises(AssertionError):
        answers.ties_with([[5, 6, 7], [5, 9, 7]])


def test_gpu_tries_itself_on_a_cpu_without_ray_nixl_and_rich(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.modules |= dict.fromkeys({ABSENT!r}); from bench.__main__ import main; "
        f"main(['gpu', '--quick', '--device', 'cpu', '--threads', '1', '--out', {str(tmp_path)!r}])"
    )

    result = subprocess.run([sys.executable, "-c", program], cwd=HOUSE, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert "GOAL" in result.stdout.splitlines()[-1]
    found = json.loads((tmp_path / "gpu.json").read_text())
    parity = found["figures"]["greedy tokens against transformers, float32"]
    assert {row["model"]: row["same"] for row in parity} == {"deepseek_v3": 6, "qwen3": 6, "llama": 6}
    steps = found["figures"]["steps, eager torch"]
    assert [(row["requests"], row["tokens_each"], row["context"]) for row in steps] == [(1, 1, 64), (4, 3, 128)]
    assert all(row["how"] == "eager torch" for row in parity + steps)
    assert found["goals"][0]["met"]


def test_handoff_moves_the_pages_bytes(run: Run) -> None:
    pytest.importorskip("nixl")

    found = run("handoff")

    handoffs = {row["pool"]: row for row in found["figures"]["handoffs"]}
    page_bytes = 3 * 64 * 24 * 4  # layers, tokens, latent 16 + rope key 8, float32
    assert {pool: row["bytes"] for pool, row in handoffs.items()} == dict.fromkeys(handoffs, 4 * page_bytes)
    assert {pool: row["descriptors"] for pool, row in handoffs.items()} == {"fresh": 1, "fragmented": 4}
    assert len(found["goals"]) == 3


def test_speculation_says_the_same_with_every_drafter_and_draws_it(run: Run, tmp_path: Path) -> None:
    rows = run("speculation")["figures"]["decoding"]

    assert len(rows) == 2 * 5
    taus = {row["side"]: row["tau"] for row in rows}
    assert taus["none"] == 1.0
    assert all(row["tok_s"] > 0 and row["predicted_tok_s"] > 0 for row in rows)
    assert taus["MTP-1"] > 1.2
    assert taus["DSpark-3"] > 1.2
    assert (tmp_path / "speculation.png").read_bytes().startswith(b"\x89PNG")


def test_planning_is_measured_where_it_drafts_and_where_it_does_not(run: Run) -> None:
    planning, rounds, operators = run("planning")["figures"].values()

    assert {row["planner"] for row in planning} == {"DSpark causal", "DSpark lagged"}
    assert all(0 < row["share"] < 1 for row in planning)
    assert 0 < rounds[0]["drafting_share"] < 1
    assert sum(row["share"] for row in operators) <= 1.0


def test_acceptance_measures_what_is_there_and_says_what_is_not(run: Run, tmp_path: Path) -> None:
    found = run("acceptance")

    rows = found["figures"]["accepted length"]
    drafters = list(dict.fromkeys(row["drafter"] for row in rows))
    absent = [name for name in ("DFlash", "rank 0") if any(note.startswith(name) for note in found["notes"])]
    assert sorted(drafters + absent) == ["DFlash", "DSpark", "MTP-1", "rank 0"]
    assert {(row["domain"], row["setting"]) for row in rows} == {
        (domain, setting)
        for domain in ("source", "function", "chat")
        for setting in ("greedy", "T=1 rejection", "T=1 seeded")
    }
    assert all(1 <= row["accepted_length"] <= 8 for row in rows)
    assert all((row["ece"] is None) == (row["drafter"] == "DFlash") for row in rows)
    assert (tmp_path / "acceptance/reliability.png").read_bytes().startswith(b"\x89PNG")


def test_training_loses_what_plain_transformers_loses(run: Run) -> None:
    rows = run("training")["figures"]["training"]

    assert [row["side"] for row in rows] == ["plain", "ours, online", "ours, cached"]
    assert all(row["tok_s"] > 0 and row["peak_kib_per_token"] > 0 for row in rows)


def test_kernels_are_beside_the_machines_peak(run: Run) -> None:
    result = run("kernels")

    products, steps = result["figures"]["products, Gflop/s"], result["figures"]["a step of one request"]
    assert result["ceilings"]["multiply-add, Gflop/s"] > max(row["mkl_gflop_s"] for row in products) > 0
    assert [row["model"] for row in steps] == ["deepseek_v3", "qwen3"]
    assert all(row["step_ms"] > row["reading_ms"] > 0 for row in steps)


def test_engine_tells_its_own_time_from_the_models(run: Run) -> None:
    rows = run("engine")["figures"]["a decode step"]

    assert [row["at_once"] for row in rows] == [1, 4]
    assert all(row["own_ms"] > 0 and row["model_ms"] > 0 for row in rows)


def test_start_waits_for_a_token(run: Run) -> None:
    rows = run("start")["figures"]["start"]

    assert rows[-1]["until"] == "the first token"
    assert rows[-1]["seconds"] > rows[0]["seconds"] > 0


def test_local_lets_prompts_come_either_way(run: Run) -> None:
    found = run("local")

    alone, beside = found["figures"].values()
    assert [row["prompt"] for row in alone] == [16, 64, 256, 1024]
    assert all(row["local_first_ms"] > 0 and row["handoff_first_ms"] > 0 for row in alone)
    assert all(row["local_prompts_s"] > 0 and row["handoff_prompts_s"] > 0 for row in beside)
    assert len(found["goals"]) == 6


def test_simulator_agrees_with_itself(run: Run) -> None:
    found = run("simulator")

    (hour,) = found["figures"]["an hour of 72 GPUs"]
    assert hour["done"] == hour["requests"] > 10_000
    (row,) = found["figures"]["fast against exact"]
    assert abs(row["throughput_ratio"] - 1) < 0.01


def test_validation_is_within_its_goals(run: Run) -> None:
    found = run("validation")

    goals = {goal["what"]: goal["met"] for goal in found["goals"] if not goal["what"].startswith("report")}
    assert len(goals) == 10
    assert all(goals.values())
    (report,) = found["figures"]["reports"]
    assert report["sections"] >= 3
