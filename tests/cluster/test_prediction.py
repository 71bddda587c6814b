"""The quick mode of `make bench NAME=prediction`, which measures a cluster and predicts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)  # it starts a cluster and measures it twice
def test_prediction_predicts_what_it_measures(tmp_path: Path) -> None:
    """It runs in a process of its own, with a cluster of its own."""
    command = [sys.executable, "-m", "bench", "prediction", "--quick", "--out", str(tmp_path)]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "prediction.json").read_text())
    (row,) = found["figures"]["predicted over measured"]
    assert (row["side"], row["concurrency"]) == ("none", 2)
    assert row["tok_s"] > 0 and row["throughput_ratio"] > 0
    assert [goal["what"].split(",")[0] for goal in found["goals"]] == [
        f"none: {key} predicted" for key in ("throughput", "tpot", "ttft50", "ttft95")
    ]
