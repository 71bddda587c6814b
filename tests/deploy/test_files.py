"""The files of deploy/: Ray accepts the cluster files, which require a token, and Serve deploys the configurations."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.deploy.check import needs
from cluster.deploy.cluster_file import START_COMMANDS, ClusterFile
from cluster.serving.app import deploy_config
from cluster.serving.front import switches
from engine.config import Config, GatewayConfig
from tests.deploy.lab import ROOT

DEPLOY = ROOT / "deploy"
CLUSTERS = ("aws.yaml", "gcp.yaml", "local.yaml")
SERVICES = tuple(sorted(file.name for file in DEPLOY.glob("*.yaml") if file.name not in CLUSTERS))


def content(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return found


def cluster(name: str) -> ClusterFile:
    return ClusterFile(DEPLOY / name, content(name))


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_takes_every_cluster_file(name: str) -> None:
    """The constructor validates the file by Ray's schema and by Ray's own preparation."""
    assert cluster(name).prepared["head_node_type"]


@pytest.mark.parametrize("key", START_COMMANDS)
@pytest.mark.parametrize("name", CLUSTERS)
def test_every_node_asks_for_a_token_and_has_the_switches(name: str, key: str) -> None:
    exported = cluster(name).exported(key)

    assert exported is not None
    wanted = switches(GatewayConfig())
    assert {n: exported.get(n) for n in wanted} == wanted
    assert exported["RAY_AUTH_MODE"] == "token"
    assert content(name)["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", [*SERVICES, "scenarios/tiny/serve.yaml", "scenarios/tiny/mtp.yaml"])
def test_every_serve_file_deploys(name: str) -> None:
    config = Config.load(DEPLOY / name)

    assert deploy_config(config)["applications"][0]["args"]["decode"].keys() == config.decode.keys()


@pytest.mark.parametrize("name", ["two-and-two.yaml", "decode-pools.yaml"])
@pytest.mark.parametrize("machines", ["aws.yaml", "gcp.yaml"])
def test_every_replica_of_a_cluster_finds_a_node_and_its_pool_a_resource(name: str, machines: str) -> None:
    config, nodes = Config.load(DEPLOY / name), cluster(machines).nodes()

    assert nodes is not None
    for key, section in config.sections.items():
        assert section.resources == {key.split(".")[0]: 1}, "nothing else keeps a pool off the others' nodes"
        assert all(nodes.place(key, needs(section)) for _ in range(section.max_replicas))
    assert {node.type.name for node in nodes.nodes if node.pools} == {"prefill", "decode"}


def test_local_copies_every_product_folder_to_its_machines() -> None:
    """A new folder of the package has to be in the file's mounts, and in the image."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"\[tool\.setuptools\.packages\.find\]\ninclude = (\[.*\])", pyproject)
    assert found is not None
    folders = {pattern.rstrip("*") for pattern in yaml.safe_load(found[1])} | {"models"}
    mounts = content("local.yaml")["file_mounts"]
    dockerfile = (DEPLOY / "Dockerfile").read_text()

    assert {local for local in mounts.values() if (ROOT / local).is_dir()} == folders
    assert all(remote == f"~/sparkpool/{local}" for remote, local in mounts.items() if not local.startswith("~"))
    assert set(re.findall(r"^COPY (\w+) \1$", dockerfile, re.MULTILINE)) == folders | {"deploy"}


def test_the_documentation_names_every_file() -> None:
    page = (ROOT / "docs/operating.md").read_text()

    for file in DEPLOY.iterdir():
        assert f"`deploy/{file.name}" in page, f"docs/operating.md does not name deploy/{file.name}"


def test_the_makefile_and_the_image_have_the_same_torch() -> None:
    pins = {re.search(r"torch==[\d.]+", Path(file).read_text()) for file in (ROOT / "Makefile", DEPLOY / "Dockerfile")}

    assert len({pin and pin[0] for pin in pins}) == 1
