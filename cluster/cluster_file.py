"""A `ray up` cluster file, as Ray itself reads it: would it start, who could use it, what would its nodes have?"""

import contextlib
import copy
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import jsonschema  # type: ignore[import-untyped]
import ray.autoscaler
from ray.autoscaler._private.providers import _NODE_PROVIDERS
from ray.autoscaler._private.util import prepare_config, validate_config

from engine.errors import ConfigError

START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")
TOKEN_FILE = "~/.ray/auth_token"
NOT_LOCAL = ("head_node", "worker_nodes", "available_node_types")
DETECTED = {"aws": ("CPU", "GPU")}  # what the provider finds out itself where a node type does not say


@dataclass(frozen=True)
class NodeType:
    """A kind of machine and the most that there may be of it. A missing CPU or GPU is `inf` where Ray detects it."""

    name: str
    resources: dict[str, float]
    most: int

    def has(self, needs: dict[str, float]) -> bool:
        return all(self.resources.get(name, 0.0) >= amount for name, amount in needs.items())


@dataclass
class Node:
    """A machine of a cluster that is being filled, and the pools whose replicas are on it."""

    type: NodeType
    left: dict[str, float]
    pools: list[str] = field(default_factory=list)

    def take(self, pool: str, needs: dict[str, float]) -> bool:
        if any(self.left.get(name, 0.0) < amount for name, amount in needs.items()):
            return False
        for name, amount in needs.items():
            self.left[name] -= amount
        self.pools.append(pool)
        return True


class Nodes:
    """The machines that a cluster may have, filled one replica after the other, as an autoscaler does."""

    def __init__(self, head: NodeType, workers: list[NodeType], max_workers: int) -> None:
        self.types = [head, *workers]
        self.nodes = [Node(head, dict(head.resources))]
        self._may_come = {node_type.name: node_type.most for node_type in workers}
        self._workers = {node_type.name: node_type for node_type in workers}
        self._max_workers = max_workers

    def place(self, pool: str, needs: dict[str, float]) -> bool:
        """A place for a replica of `pool`, on a machine that is there or on one more. False if there is none."""
        if any(node.take(pool, needs) for node in self.nodes):
            return True
        if len(self.nodes) > self._max_workers:
            return False
        able = [t for t in self._workers.values() if t.has(needs) and self._may_come[t.name] > 0]
        if not able:
            return False
        chosen = min(able, key=lambda t: sum(t.resources.values()))  # the least that will do
        self._may_come[chosen.name] -= 1
        self.nodes.append(Node(chosen, dict(chosen.resources)))
        return self.nodes[-1].take(pool, needs)


class ClusterFile:
    """One file for `ray up`. `content` is what it says, `prepared` the same with Ray's defaults."""

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        """Raises ConfigError that names file and key if `ray up` would refuse it."""
        self.file, self.content = file, content
        self._check_schema()
        self.prepared = self._prepare()

    @property
    def provider(self) -> str:
        return str(self.content["provider"]["type"])

    def nodes(self) -> Nodes | None:
        """The machines that there may be; None with provider `local`, whose hosts say themselves what they have."""
        if self.provider == "local":
            return None
        head, workers = self.prepared["head_node_type"], []
        for name, node_type in self.prepared["available_node_types"].items():
            detected = dict.fromkeys(DETECTED.get(self.provider, ()), math.inf)
            workers.append(NodeType(name, {**detected, **node_type["resources"]}, node_type["max_workers"]))
        (first,) = [worker for worker in workers if worker.name == head]
        return Nodes(first, workers, self.prepared["max_workers"])

    def faults(self) -> Iterator[str]:
        """What would fail, or leave the cluster open, though Ray takes the file: a line each, the key first."""
        tokens = []
        for key in START_COMMANDS:
            exported = self.exported(key)
            if exported is None:
                yield f"{key}: none has `ray start`, and Ray's own default starts without a token"
                continue
            if exported.get("RAY_AUTH_MODE") != "token":
                yield f"{key}: RAY_AUTH_MODE=token is not exported before `ray start`: Ray would ask nobody for a token"
            tokens.append(exported.get("RAY_AUTH_TOKEN_PATH", TOKEN_FILE))
        for token in sorted({*tokens}):
            if not any(remote.endswith(token.removeprefix("~/")) for remote in self.content.get("file_mounts", {})):
                yield f"file_mounts: carries no {token}, and a node without the others' token stays alone"
        for remote, local in self.content.get("file_mounts", {}).items():
            if not Path(local).expanduser().exists():
                way_out = "; `ray get-auth-token --generate` makes it" if remote.endswith("auth_token") else ""
                yield f"file_mounts.{remote}: {local} is not here{way_out}"
        private_key = self.content.get("auth", {}).get("ssh_private_key")
        if private_key and not Path(private_key).expanduser().exists():
            yield f"auth.ssh_private_key: {private_key} is not here"

    def notes(self, switches: dict[str, str]) -> Iterator[str]:
        """What works, and may be meant otherwise."""
        for key in START_COMMANDS:
            exported = self.exported(key) or {}
            absent = [f"{name}={value}" for name, value in switches.items() if exported.get(name) != value]
            if absent:
                effect = "the front and the scaling will not be as the configuration has them"
                yield f"{key}: {' '.join(absent)} not exported: {effect}"
        if self.provider == "local":
            yield "provider.type: local: `RAY_UP_enable_autoscaler_v2=0 ray up`, or the last worker is never started"

    def exported(self, key: str) -> dict[str, str] | None:
        """The variables that are set before `ray start` in the commands of `key`; None if none of them starts Ray."""
        for command in self.content.get(key, []):
            before, start, _ = command.partition("ray start")
            if start:
                return dict(re.findall(r"(?:^|[\s;&])([A-Za-z_]\w*)=([^\s;&]*)", before))
        return None

    def _check_schema(self) -> None:
        """Ray's own schema, before its defaults and provider could stumble over what it forbids."""
        schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
        content = copy.deepcopy(self.content)
        types = content.get("available_node_types")
        provider = content.get("provider")
        if isinstance(provider, dict) and provider.get("type") in DETECTED and isinstance(types, dict):
            for node_type in types.values():
                node_type.setdefault("resources", {})
        try:
            jsonschema.validate(content, schema)
        except jsonschema.ValidationError as error:
            where = ".".join(map(str, error.absolute_path))
            raise ConfigError(f"{self.file}: {where + ': ' if where else ''}{error.message}") from None
        if self.provider not in _NODE_PROVIDERS:
            known = ", ".join(sorted(_NODE_PROVIDERS))
            raise ConfigError(f"{self.file}: provider.type: {self.provider} is none of {known}")
        if self.provider == "local":
            self._check_local()

    def _check_local(self) -> None:
        for key in NOT_LOCAL:
            if self.content.get(key):
                raise ConfigError(
                    f"{self.file}: {key}: provider local refuses it; give resources with `ray start` on each host"
                )
        provider = self.content["provider"]
        for key in ("head_ip", "worker_ips"):
            if key not in provider and "coordinator_address" not in provider:
                raise ConfigError(f"{self.file}: provider.{key}: is missing, and there is no coordinator_address")

    def _prepare(self) -> dict[str, Any]:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                prepared: dict[str, Any] = prepare_config(copy.deepcopy(self.content))
                for node_type in prepared["available_node_types"].values():
                    node_type.setdefault("resources", {})
                validate_config(prepared)
        except (click.ClickException, ValueError, LookupError, TypeError, AssertionError, RuntimeError) as error:
            reason = said.getvalue().strip() or str(error)
            raise ConfigError(f"{self.file}: Ray refuses it: {reason}") from None
        return prepared
