"""Start-up: seconds from the command `sparkpool generate --local` to its first token, with the shipped model."""

import subprocess
import sys
import time
from statistics import median

from bench.shape import BenchReport

PROMPT, RUNS, TARGET_SECONDS = "def add(a, b):", 5, 5.0
PARTS = {
    "python": "pass",
    "import torch": "import torch",
    "import transformers": "import torch, transformers",
    "import the engines": "import local",
    "load the model": (
        "import torch, local; from engine.models import load_model; from engine.config import SHIPPED_MODEL; "
        "load_model(SHIPPED_MODEL, torch.float32, torch.device('cpu'))"
    ),
}


def run(report: BenchReport) -> None:
    runs = 1 if report.options.quick else RUNS
    report.ceiling("a process that imports torch, s", _median([sys.executable, "-c", "import torch"], runs))
    rows = [{"until": name, "seconds": _median([sys.executable, "-c", code], runs)} for name, code in PARTS.items()]
    first = median(_first_token() for _ in range(runs))
    report.table("start", [*rows, {"until": "the first token", "seconds": first}])
    report.goal("first token of `sparkpool generate --local`", first, TARGET_SECONDS, "s", at_most=True)


def _median(command: list[str], runs: int) -> float:
    def once() -> float:
        began = time.perf_counter()
        subprocess.run(command, check=True)
        return time.perf_counter() - began

    return median(once() for _ in range(runs))


def _first_token() -> float:
    command = [sys.executable, "-u", "-m", "cluster.cli", "generate", "--local", PROMPT, "--max-tokens", "8"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.read(len(PROMPT) + 1)  # the prompt comes first, as an echo
        seconds = time.perf_counter() - began
        process.stdout.read()
    assert len(first) > len(PROMPT) and process.returncode == 0, "the command printed no token"
    return seconds
