"""The command line, as a user types it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.serving.front import free_ports
from decode.record import read
from engine.config import SHIPPED_DRAFTER
from tests.cluster.conftest import Service

ROOT = Path(__file__).parents[2]
BLOCKED = "import sys; sys.modules.update(ray=None, grpc=None, nixl=None); from cluster.cli import main; main()"


def sparkpool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )


def test_generate_local_works_without_ray_grpc_and_nixl() -> None:
    command = [sys.executable, "-c", BLOCKED, "generate", "--local", "def add(a, b):", "--max-tokens", "8"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def add(a, b):")
    assert len(done.stdout.strip()) > len("def add(a, b):")


def test_compare_works_without_ray_grpc_and_nixl(tmp_path: Path) -> None:
    curve = ROOT / "compare" / "published" / "dspark_figures.csv"
    for words in (["--predict-dspark", str(curve), "--model", "V4-Pro"], ["--validate", "--out", str(tmp_path)]):
        command = [sys.executable, "-c", BLOCKED, "compare", *words]

        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)

        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert (tmp_path / "validation" / "index.html").is_file()


def test_generate_and_stats_talk_to_a_service(shipped: Service) -> None:
    """The service is one of several on its cluster, so the command has to name it."""
    address = ["--address", f"127.0.0.1:{shipped.port}", "--application", shipped.name]

    generated = sparkpool("generate", "import os", "--max-tokens", "8", "--no-speculation", *address)
    local = sparkpool("generate", "import os", "--max-tokens", "8", "--local")
    stats = sparkpool("stats", *address)

    assert generated.returncode == 0, generated.stderr
    assert generated.stdout == local.stdout
    assert "[8 tokens, first after" in generated.stderr
    assert stats.returncode == 0, stats.stderr
    assert stats.stdout.count("prefill") >= 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["generate", "--local", ""], "prompt: is empty"),
        (["generate", "--local", "x", "--max-tokens", "-1"], "max_tokens: must be at least 1"),
        (["generate", "--local", "x", "--top-p", "0"], "top_p: must be in (0, 1]"),
        (["generate", "--local", "x", "--max-drafts", "-1"], "speculation.max_tokens: must not be negative"),
        (["generate", "--local", "x", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["generate", "x", "--address", "127.0.0.1:1"], "UNAVAILABLE"),
        (["stats", "--address", "127.0.0.1:1"], "UNAVAILABLE"),
        (["serve", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_mistakes_end_with_one_line_that_says_what_is_wrong(words: list[str], complaint: str) -> None:
    done = sparkpool(*words)

    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_version_names_what_matters() -> None:
    lines = sparkpool("version").stdout.splitlines()

    assert [line.split()[0] for line in lines] == ["sparkpool", "ray", "torch", "transformers", "nixl", "grpcio"]


def test_serve_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    grpc_port, http_port = free_ports(2)
    config = tmp_path / "service.yaml"
    config.write_text(
        f"model: {{drafter: {SHIPPED_DRAFTER}}}\n"
        "prefill: {cache_bytes: 16MiB}\n"
        "decode: {default: {cache_bytes: 16MiB, planner: fixed, record: steps}}\n"
        f"gateway: {{grpc_port: {grpc_port}, http_port: {http_port}}}\n"
    )
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "serve", str(config)], stdout=output, stderr=output, cwd=ROOT
        )
    try:
        wait_for(lambda: "Ready" in log.read_text() or server.poll() is not None, seconds=120)
        address = ("--address", f"127.0.0.1:{grpc_port}")
        answer = sparkpool("generate", "import os", "--max-tokens", "9", *address)
        stats = sparkpool("stats", *address)
        children = descendants(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)

    assert status == 0, log.read_text()
    assert re.search(r"\d s: Decode-default 1 starting", log.read_text()), "what it is waiting for"
    assert "[9 tokens" in answer.stderr, log.read_text() + answer.stderr
    assert "accepted length" in answer.stderr
    assert "acceptance by position" in stats.stdout
    (recorded,) = (tmp_path / "steps").iterdir()
    assert sum(one.accepted[0] + 1 for one in read(recorded)[1]) == 8, "the first token came from prefill"
    assert children
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), seconds=20)


def descendants(pid: int) -> set[int]:
    """All processes below `pid` that are running now."""
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child, *descendants(child)}
    return found


def wait_for(condition, seconds: float) -> None:  # type: ignore[no-untyped-def]
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.1)


os.environ["COLUMNS"] = "200"  # narrower tables lose words; pytest-xdist sets the width of its own terminal
