"""`sparkpool deploy check`: each thing that would fail has its line, and what is in order fails nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL
from tests.deploy.lab import ROOT

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as a user with a token and a key, at the root of the repository."""
    for file in (".ray/auth_token", ".ssh/id_ed25519"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)


def check(*files: Path | str) -> tuple[int, list[str]]:
    """Return the exit code and the lines of `sparkpool deploy check`."""
    done = CliRunner().invoke(app, ["deploy", "check", *map(str, files)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output.splitlines()


def changed(folder: Path, name: str, change: Change) -> Path:
    """Write a changed copy of a file of deploy/, and return its path."""
    content = yaml.safe_load((ROOT / "deploy" / name).read_text())
    change(content)
    return written(folder, name, content)


def written(folder: Path, name: str, content: object) -> Path:
    file = folder / name
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "local.yaml"])
def test_shipped_files_pass_the_check(name: str) -> None:
    code, lines = check(f"deploy/{name}", "deploy/two-and-two.yaml", "deploy/decode-pools.yaml")

    assert code == 0, lines
    assert any(line.startswith(f"ok    deploy/{name}: provider {name.removesuffix('.yaml')}") for line in lines)
    assert any("/models/Qwen3-8B is not on this machine" in line for line in lines)
    if name == "local.yaml":
        assert any("its hosts report their own resources" in line for line in lines)
        assert any("RAY_UP_enable_autoscaler_v2=0" in line for line in lines)
    else:
        assert f"ok    deploy/two-and-two.yaml: decode.default: 2 replicas find room on deploy/{name}" in lines


def test_the_shipped_model_fits_here() -> None:
    code, lines = check("deploy/two-pools.yaml")

    assert code == 0
    assert any("of weights in each replica" in line for line in lines)
    assert lines[-1] == "ok    deploy/two-pools.yaml: decode.default: 1 replicas fit on this machine"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("aws.yaml", lambda c: c.pop("cluster_name"), "'cluster_name' is a required property"),
        ("aws.yaml", lambda c: c.update(head_typ="head"), "Additional properties are not allowed ('head_typ'"),
        ("aws.yaml", lambda c: c.update(max_workers="8"), "max_workers: '8' is not of type 'integer'"),
        ("aws.yaml", lambda c: c["provider"].update(type="awz"), "provider.type: awz is none of "),
        ("aws.yaml", lambda c: c.update(max_workers=3), "`max_workers` is smaller than the sum of `min_workers`"),
        ("aws.yaml", lambda c: c.update(head_node_type="hat"), "`head_node_type` must be one of"),
        ("aws.yaml", lambda c: c["docker"].pop("image"), "Must provide a container & image name"),
        (
            "aws.yaml",
            lambda c: c.pop("worker_start_ray_commands"),
            "worker_start_ray_commands: no command has `ray start`",
        ),
        ("gcp.yaml", lambda c: c.update(file_mounts={}), "file_mounts: has no ~/.ray/auth_token"),
        (
            "gcp.yaml",
            lambda c: c.update(head_start_ray_commands=["ray start --head; export RAY_AUTH_MODE=token"]),
            "head_start_ray_commands: RAY_AUTH_MODE=token is not exported before `ray start`",
        ),
        (
            "gcp.yaml",
            lambda c: c["available_node_types"]["decode"]["resources"].update(decode=0.5),
            "available_node_types.decode.resources.decode: 0.5 is not of type 'integer'",
        ),
        (
            "local.yaml",
            lambda c: c.update(available_node_types={"a": {"resources": {}, "node_config": {}}}),
            "available_node_types: provider local refuses it",
        ),
        ("local.yaml", lambda c: c["provider"].pop("worker_ips"), "provider.worker_ips: is missing"),
        (
            "local.yaml",
            lambda c: c["auth"].update(ssh_private_key="~/no"),
            "auth.ssh_private_key: ~/no does not exist here",
        ),
        ("local.yaml", lambda c: c["file_mounts"].update(x="nowhere"), "file_mounts.x: nowhere does not exist here"),
    ],
)
def test_what_is_wrong_with_a_cluster_file_is_named(tmp_path: Path, name: str, change: Change, says: str) -> None:
    file = changed(tmp_path, name, change)

    code, lines = check(file)

    assert code == 1
    (line,) = [line for line in lines if line.startswith("FAILS")]
    assert line.startswith(f"FAILS {file}: ")
    assert says in line


def test_a_missing_token_file_names_the_command_that_creates_it(tmp_path: Path) -> None:
    (tmp_path / ".ray/auth_token").unlink()

    code, lines = check("deploy/aws.yaml")

    assert code == 1
    assert any(
        "~/.ray/auth_token does not exist here; `ray get-auth-token --generate` creates it" in line for line in lines
    )


def test_switches_that_are_not_exported_are_a_note(tmp_path: Path) -> None:
    def without(content: dict[str, Any]) -> None:
        commands = content["worker_start_ray_commands"]
        commands[1] = commands[1].replace("RAY_SERVE_USE_GRPC_BY_DEFAULT=1", "")

    code, lines = check(changed(tmp_path, "aws.yaml", without))

    assert code == 0
    assert any("note" in line and "RAY_SERVE_USE_GRPC_BY_DEFAULT=1 not exported" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["prefill"].update(resources={"prefil": 1}), "prefill.resources.prefil: no node type of {} has"),
        (lambda c: c["prefill"].update(resources={"prefill": 2}), "prefill: a replica needs GPU 1, prefill 2; no node"),
        (lambda c: c["prefill"].update(num_cpus=17), "prefill: a replica needs CPU 17, GPU 1, prefill 1; no node type"),
        (lambda c: c["decode"]["default"].update(replicas=5), "decode.default: 4 of 5 replicas find room on {}"),
        (
            lambda c: (c["prefill"].update(replicas=1), c["prefill"].update(resources={"prefill": 1, "decode": 1})),
            "prefill: a replica needs GPU 1, decode 1, prefill 1; no node type of {} has all of that",
        ),
    ],
)
def test_replicas_that_find_no_node_are_named(tmp_path: Path, change: Change, says: str) -> None:
    file = changed(tmp_path, "two-and-two.yaml", change)

    code, lines = check("deploy/aws.yaml", file)

    assert code == 1
    assert any(line.startswith(f"FAILS {file}: {says.format('deploy/aws.yaml')}") for line in lines), lines


def test_a_cluster_with_too_few_workers_or_no_gpu_is_named(tmp_path: Path) -> None:
    def small(content: dict[str, Any]) -> None:
        content["max_workers"] = 3
        for name in ("prefill", "decode"):
            content["available_node_types"][name]["min_workers"] = 1

    def plain(content: dict[str, Any]) -> None:
        for name in ("prefill", "decode"):
            del content["available_node_types"][name]["resources"]["GPU"]

    few = check(changed(tmp_path, "aws.yaml", small), "deploy/two-and-two.yaml")
    none = check(changed(tmp_path, "gcp.yaml", plain), "deploy/two-and-two.yaml")

    assert few[0] == none[0] == 1
    assert any("decode.default: 1 of 2 replicas find room" in line for line in few[1])
    assert any("prefill.device: cuda: no node type of" in line for line in none[1])


def test_aws_detects_cpus_and_gpus_that_a_node_type_does_not_name(tmp_path: Path) -> None:
    def bare(content: dict[str, Any]) -> None:
        for node_type in content["available_node_types"].values():
            node_type["resources"] = {
                n: v for n, v in node_type.get("resources", {}).items() if n not in ("CPU", "GPU")
            }

    code, lines = check(changed(tmp_path, "aws.yaml", bare), "deploy/two-and-two.yaml")

    assert code == 0, lines


def on_cpu(content: dict[str, Any]) -> None:
    """deploy/two-and-two.yaml with the shipped model."""
    content["model"] = {"path": str(SHIPPED_MODEL), "drafter": str(SHIPPED_DRAFTER)}
    for section in (content["prefill"], *content["decode"].values()):
        section.update(device="cpu", cache_bytes="64MiB")


@pytest.mark.parametrize(
    ("memory", "verdict", "says"),
    [
        (2**30, "ok", "decode.default: 2 replicas find room"),
        (90 * 2**20, "FAILS", "prefill: cache_bytes: 0.06 GiB of pages"),
        (2**20, "FAILS", "of weights, 0.00 GiB free on prefill of"),
        (None, "note", "prefill has no resource `memory`, so whether a replica fits cannot be checked"),
    ],
)
def test_replicas_must_fit_the_memory_of_their_node_type(
    tmp_path: Path, memory: int | None, verdict: str, says: str
) -> None:
    def with_memory(content: dict[str, Any]) -> None:
        for name in ("prefill", "decode") if memory else ():
            content["available_node_types"][name]["resources"]["memory"] = memory

    service = changed(tmp_path, "two-and-two.yaml", on_cpu)

    code, lines = check(changed(tmp_path, "aws.yaml", with_memory), service)

    assert code == (verdict == "FAILS"), lines
    assert any(line.startswith(verdict) and says in line for line in lines), lines


@pytest.mark.parametrize(("memory", "code"), [(170 * 2**20, 1), (300 * 2**20, 0)])
def test_replicas_on_one_node_share_its_memory(tmp_path: Path, memory: int, code: int) -> None:
    def roomy(content: dict[str, Any]) -> None:
        for name in ("prefill", "decode"):
            content["available_node_types"][name]["resources"] = {"CPU": 16, name: 2, "memory": memory}

    service = changed(tmp_path, "two-and-two.yaml", on_cpu)

    found, lines = check(changed(tmp_path, "aws.yaml", roomy), service)

    assert found == code, lines
    if code:
        assert any(line.startswith(f"FAILS {service}: prefill: cache_bytes: ") for line in lines), lines


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"prefil": {}}, "prefil: unknown key"),
        ({"applications": []}, "is a Serve deploy config; check the configuration"),
        ([1], "holds a list, not a mapping"),
        ({"decode": {"a": {"autoscaling_config": {"max": 1}}}}, "decode.a.autoscaling_config.max: unknown key"),
        ({"model": {"path": "nowhere"}}, "no such directory"),
        ({"model": {"drafter": "nowhere"}}, "nowhere/config.json: cannot be read"),
        ({"prefill": {"cache_bytes": "5TiB"}}, "prefill: cache_bytes: 5120.00 GiB of pages"),
        ({"decode": {"a": {"cache_bytes": 1000}}}, "decode.a: cache_bytes: holds"),
        ({"prefill": {"device": "cuda"}}, "prefill: device: cuda: each replica needs a GPU; this machine has 0"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, says: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    file = written(tmp_path, "service.yaml", content)

    code, lines = check(file)

    assert code == 1
    assert any(line.startswith(f"FAILS {file}: ") and says in line for line in lines), lines


def test_a_drafter_of_another_target_or_without_weights_is_named(tmp_path: Path, qwen3: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(SHIPPED_DRAFTER, half)
    (half / "model.safetensors").unlink()
    other = written(tmp_path, "other.yaml", {"model": {"path": str(qwen3), "drafter": str(SHIPPED_DRAFTER)}})
    empty = written(tmp_path, "empty.yaml", {"model": {"drafter": str(half)}})
    mtp = written(tmp_path, "mtp.yaml", {"model": {"path": str(qwen3), "drafter": "mtp"}})

    code, lines = check(other, empty, mtp)

    assert code == 1
    assert any(f"FAILS {other}: drafter {SHIPPED_DRAFTER}: made for a target with" in line for line in lines)
    assert any(f"FAILS {empty}: drafter {half}: no *.safetensors file" in line for line in lines)
    assert any(f"FAILS {mtp}: model.drafter: mtp: Qwen3ForCausalLM has no MTP layer" in line for line in lines)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert check(tmp_path / "none.yaml") == (
        1,
        [f"FAILS {tmp_path}/none.yaml: cannot be read (No such file or directory)"],
    )
