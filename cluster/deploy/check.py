"""`sparkpool deploy check`: finds what would fail with cluster files and configurations, before anything is started."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import yaml

from cluster.deploy.cluster_file import ClusterFile, Nodes, YamlMapping
from cluster.serving.app import deploy_config
from cluster.serving.front import switches
from engine.config import Config, EngineConfig, GatewayConfig
from engine.errors import ConfigError
from engine.models.preflight import free_memory, gib
from local.footprint import ReplicaFootprint, replica_footprints

Severity = Literal["ok", "note", "FAILS"]


@dataclass(frozen=True)
class Finding:
    """One line: ok, a note (cannot be checked, or may not work as meant), or what would fail."""

    severity: Severity
    file: Path
    text: str

    def __str__(self) -> str:
        return f"{self.severity:5} {self.file}: {self.text}"


def check(files: list[Path]) -> Iterator[Finding]:
    """Check each file, then each configuration on each cluster, or on this machine if there is no cluster file."""
    clusters: list[ClusterFile] = []
    configurations: list[tuple[Path, Config]] = []
    for file in files:
        try:
            content = read(file)
            if "provider" in content or "cluster_name" in content:
                clusters.append(ClusterFile(file, content))
                yield from check_cluster(clusters[-1])
            else:
                config = Config.load(file)
                deploy_config(config)
                configurations.append((file, config))
        except ConfigError as error:
            yield Finding("FAILS", file, str(error).removeprefix(f"{file}: "))
    for file, config in configurations:
        yield from Configuration(file, config).check(clusters)


def read(file: Path) -> YamlMapping:
    """Read the mapping in a YAML file. Raises ConfigError."""
    try:
        content = yaml.safe_load(file.read_text()) or {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: holds a {type(content).__name__}, not a mapping")
    if "applications" in content:
        raise ConfigError(f"{file}: is a Serve deploy config; check the configuration that it was made from")
    return content


def check_cluster(cluster: ClusterFile) -> Iterator[Finding]:
    """Report what is wrong with a cluster file, or that `ray up` accepts it."""
    faults = [*cluster.faults()]
    yield from (Finding("FAILS", cluster.file, fault) for fault in faults)
    yield from (Finding("note", cluster.file, note) for note in cluster.notes(switches(GatewayConfig())))
    if not faults:
        yield Finding("ok", cluster.file, f"provider {cluster.provider}: Ray accepts it, and requires a token")


def needs(section: EngineConfig) -> dict[str, float]:
    """Return the resources that Ray reserves for a replica."""
    resources = {"CPU": section.num_cpus, "GPU": float(section.torch_device.type == "cuda"), **section.resources}
    return {name: amount for name, amount in resources.items() if amount}


class Configuration:
    """Checks whether the replicas of a configuration find machines, and fit into their memory."""

    def __init__(self, file: Path, config: Config) -> None:
        self.file, self.config = file, config
        self.footprints: dict[str, ReplicaFootprint] = {}

    def check(self, clusters: list[ClusterFile]) -> Iterator[Finding]:
        """Check the checkpoint and the machines of each cluster; without a cluster, this machine."""
        path = self.config.model.path
        if clusters and not path.exists():
            yield self._note(f"model.path: {path} is not on this machine, so its memory cannot be checked")
        else:
            try:
                self.footprints = replica_footprints(self.config)
            except ConfigError as error:
                yield self._fails(str(error))
                return
            weights = max(footprint.weights_bytes for footprint in self.footprints.values())
            yield self._ok(f"model.path: {path}: {gib(weights)} of weights in each replica")
        for cluster in clusters:
            yield from self._on(cluster)
        if not clusters:
            yield from self._here()

    def _on(self, cluster: ClusterFile) -> Iterator[Finding]:
        nodes = cluster.nodes()
        if nodes is None:
            asked = sorted({name for section in self.config.sections.values() for name in section.resources})
            hosts = f"whether they have {', '.join(asked) or 'room'} cannot be checked"
            yield self._note(f"{cluster.file}: its hosts report their own resources: {hosts}")
            return
        for key, section in self.config.sections.items():
            yield from self._place(key, section, nodes, cluster)
        yield from self._memory_of(nodes, cluster)

    def _place(self, key: str, section: EngineConfig, nodes: Nodes, cluster: ClusterFile) -> Iterator[Finding]:
        asked, types, where = needs(section), nodes.types, f"no node type of {cluster.file}"
        for name in asked:
            if not any(node_type.resources.get(name) for node_type in types):
                named = f"{key}.device: {section.device}" if name == "GPU" else f"{key}.resources.{name}"
                yield self._fails(f"{named}: {where} has {name}")
                return
        if not any(node_type.has(asked) for node_type in types):
            takes = ", ".join(f"{name} {amount:g}" for name, amount in sorted(asked.items()))
            yield self._fails(f"{key}: a replica needs {takes}; {where} has all of that")
            return
        wanted = section.max_replicas
        placed = sum(nodes.place(key, asked) for _ in range(wanted))
        if placed < wanted:
            room = "max_workers of the cluster and of its node types allow no more"
            yield self._fails(f"{key}: {placed} of {wanted} replicas find room on {cluster.file}: {room}")
        else:
            yield self._ok(f"{key}: {wanted} replicas find room on {cluster.file}")

    def _memory_of(self, nodes: Nodes, cluster: ClusterFile) -> Iterator[Finding]:
        """Check whether each node's memory is enough for the replicas that would run on it."""
        unknown: set[str] = set()
        for node in nodes.nodes if self.footprints else []:
            free, where = node.type.resources.get("memory", math.inf), f"{node.type.name} of {cluster.file}"
            for key in node.pools:
                on_gpu = self.config.sections[key].torch_device.type == "cuda"
                if on_gpu or free == math.inf:
                    which = "a GPU's memory" if on_gpu else f"memory: {node.type.name} has no resource `memory`"
                    unknown.add(
                        f"{key}: {cluster.file} does not say {which}, so whether a replica fits cannot be checked"
                    )
                    continue
                try:
                    free -= self.footprints[key].taken(int(free), where)
                except ConfigError as error:
                    yield self._fails(f"{key}: {error}")
                    return
        yield from map(self._note, sorted(unknown))

    def _here(self) -> Iterator[Finding]:
        """Check whether all replicas fit on this machine at once."""
        cpu, gpus = float(free_memory(torch.device("cpu"))), 0
        for key, section in self.config.sections.items():
            device, wanted = section.torch_device, section.max_replicas
            try:
                for _ in range(wanted):
                    if device.type == "cuda":
                        gpus += 1
                        self.footprints[key].taken(self._gpu(gpus, device), str(device))
                    else:
                        cpu -= self.footprints[key].taken(int(cpu), "this machine")
            except ConfigError as error:
                yield self._fails(f"{key}: {error}")
                return
            yield self._ok(f"{key}: {wanted} replicas fit on this machine")

    def _gpu(self, number: int, device: torch.device) -> int:
        """Return the free bytes of a GPU. Raises ConfigError if there are fewer than `number` GPUs."""
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if number > there:
            raise ConfigError(f"device: {device}: each replica needs a GPU; this machine has {there}")
        return free_memory(device)

    def _ok(self, text: str) -> Finding:
        return Finding("ok", self.file, text)

    def _note(self, text: str) -> Finding:
        return Finding("note", self.file, text)

    def _fails(self, text: str) -> Finding:
        return Finding("FAILS", self.file, text.removeprefix(f"{self.file}: "))
