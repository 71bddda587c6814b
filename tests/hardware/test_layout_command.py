"""`sparkpool layout`: for a terminal and as JSON, where neither Ray nor gRPC nor torch can be imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import SHIPPED_MODEL

HOUSE = Path(__file__).resolve().parent.parent.parent
PROGRAM = """
import sys
for absent in ("ray", "grpc", "torch", "transformers", "nixl"):
    sys.modules[absent] = None
from cluster.cli import app
app(sys.argv[1:])
"""


def layout(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM, "layout", *arguments]
    return subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=False)


def test_the_share_of_another_model() -> None:
    done = layout("deepseek-v4-pro", "--against", "deepseek-v3.2")

    assert done.returncode == 0, done.stderr
    assert "5,031.4" in done.stdout and "10.5%" in done.stdout and "1,572.99 B" in done.stdout


def test_json_of_a_checkpoint_and_of_its_config() -> None:
    by_folder, by_file = (layout(str(path), "--json") for path in (SHIPPED_MODEL, SHIPPED_MODEL / "config.json"))
    content = json.loads(by_folder.stdout)

    assert content == json.loads(by_file.stdout)
    assert content["model"] == SHIPPED_MODEL.name
    assert set(content["request"]) == {"8192", "131072", "1048576"}


def test_another_precision_of_index_keys() -> None:
    found = {
        index: json.loads(layout("deepseek-v4-flash", "--json", "--index", index).stdout) for index in ("fp4", "fp8")
    }

    assert found["fp4"]["growing_bytes_per_token"] == pytest.approx(3514.25)
    assert found["fp8"]["growing_bytes_per_token"] == pytest.approx(3514.25 + 21 * 64 / 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["deepseek-v9"], "nor one of deepseek-r1"),
        (["deepseek-v4-pro", "--cache", "fp4"], "--cache: 'fp4' is none of fp8, bf16, fp32"),
        (["deepseek-v4-pro", "--against", "pyproject.toml"], "pyproject.toml: cannot be read as JSON"),
    ],
)
def test_what_cannot_be_counted_is_one_line(arguments: list[str], says: str) -> None:
    done = layout(*arguments)

    assert done.returncode == 1
    assert says in done.stderr and "Traceback" not in done.stderr
