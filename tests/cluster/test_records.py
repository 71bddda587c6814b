"""What replicas record comes to who asks, in whole lines; and a user's own run can be simulated."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.records import RecordPart, all_parts, part_of
from compare.simulate import simulate
from compare.simulator.replay import acceptance_of, workload_of
from decode.record import read
from engine.config import SHIPPED_DRAFTER, Config
from engine.errors import ConfigError
from tests.cluster.conftest import Deploy, Service
from tests.cluster.test_cli import sparkpool
from tests.compare.machines import simulated_pool, system

SECTION = {"threads": 1, "cache_bytes": "32MiB"}


@pytest.fixture(scope="module")
def service(deploy: Deploy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    recorded = {"record": str(tmp_path_factory.mktemp("records")), "planner": "fixed", "fixed_drafts": 3}
    content = {
        "model": {"drafter": str(SHIPPED_DRAFTER)},
        "prefill": SECTION,
        "decode": {"default": {**SECTION, **recorded, "replicas": 2, "local_chunk_tokens": 0}},
    }
    with deploy("recorded", Config.parse(content)) as service:
        yield service


def bench(service: Service, *options: str) -> "subprocess.CompletedProcess[str]":
    return sparkpool(
        *("bench", "--address", f"127.0.0.1:{service.port}", "--application", service.name, "--concurrency", "4"),
        *("--input-tokens", "30", "--output-tokens", "40", *options),
    )


def test_a_run_is_fetched_and_simulated(service: Service, tmp_path: Path) -> None:
    run, folder = tmp_path / "run.json", tmp_path / "records"
    service.ask("before the run", max_tokens=5)
    done = bench(service, "--requests", "12", "--json", str(run), "--record", str(folder))
    assert done.returncode == 0, done.stderr

    files = sorted(folder.glob("*.jsonl"))
    steps = [step for file in files for step in read(file)[1]]
    spoken = sum(1 + accepted for step in steps for accepted in step.accepted)
    asked = {name for step in steps for name in step.requests}
    assert len(files) == 2 and len(asked) == 12  # nothing of the request before
    assert spoken >= 12 * 39  # the first token of each came from prefill
    workload, acceptance = workload_of(run), acceptance_of(folder)
    assert len(workload) == 12 and {one.output_tokens for one in workload} == {40}
    assert acceptance.block_length == 3 and 0 < acceptance.survival("")[0] < 1
    simulated = simulate(
        system(decode={"planner": "fixed", "fixed_drafts": 3}, simulated=simulated_pool((0.5,) * 3)), workload
    )
    assert len(simulated.done) == 12


def test_nobody_records(shipped: Service, tmp_path: Path) -> None:
    done = bench(shipped, "--requests", "2", "--record", str(tmp_path / "records"))

    assert done.returncode == 1
    assert "no decode pool records its steps (decode.POOL.record)" in done.stderr
    assert "Traceback" not in done.stderr


def written(folder: Path, name: str, steps: int) -> Path:
    file = folder / f"{name}.jsonl"
    file.write_text('{"format": "x"}\n' + "".join(f'{{"step": {n}}}\n' for n in range(steps)))
    return file


@pytest.mark.parametrize("most", [20, 37, 10_000])
def test_parts_are_whole_lines_and_make_the_file(tmp_path: Path, most: int) -> None:
    files = [written(tmp_path, name, steps) for name, steps in (("a", 11), ("b", 0), ("c", 3))]

    async def ask(skip: dict[str, int]) -> list[RecordPart | None]:
        return [None, *(part_of(file, "p", skip, most) for file in files)]

    async def fetched() -> dict[str, bytes]:
        whole: dict[str, bytes] = {}
        async for part in all_parts(ask, {}, sizes_only=False):
            assert part.lines == b"" or part.lines.endswith(b"\n")
            whole[part.agent] = whole.get(part.agent, part.header.encode()) + part.lines
        return whole

    assert asyncio.run(fetched()) == {file.stem: file.read_bytes() for file in files}


def test_what_comes_later_and_what_is_cut_off_is_left_out(tmp_path: Path) -> None:
    file = written(tmp_path, "a", 2)
    size = file.stat().st_size
    with file.open("a") as more:
        more.write('{"step": 2}\n{"st')

    part = part_of(file, "p", {"a": size})

    assert (part.header, part.lines) == ('{"format": "x"}\n', b'{"step": 2}\n')


def test_a_run_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    for content, says in (("{", "is no JSON"), ('{"config": {}}', "is no JSON"), ("[]", "is no JSON")):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(ConfigError, match=rf"run\.json: {says}"):
            workload_of(tmp_path / "run.json")
    (tmp_path / "run.json").write_text(json.dumps({"config": {}, "requests": []}))
    with pytest.raises(ConfigError, match="no request ended OK"):
        workload_of(tmp_path / "run.json")
    with pytest.raises(ConfigError, match="holds no records"):
        acceptance_of(tmp_path)
