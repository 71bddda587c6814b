"""Reads a `ray up` cluster file as Ray does: would it start, is it protected by a token, what have its nodes?"""

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
YamlMapping = dict[str, Any]
NOT_LOCAL = ("head_node", "worker_nodes", "available_node_types")
DETECTED = {"aws": ("CPU", "GPU")}  # resources that the provider detects if a node type does not name them


@dataclass(frozen=True)
class NodeType:
    """A node type and how many nodes of it there may be. CPU and GPU are `inf` where Ray detects them."""

    name: str
    resources: dict[str, float]
    max_nodes: int

    def has(self, needs: dict[str, float]) -> bool:
        return all(self.resources.get(name, 0.0) >= amount for name, amount in needs.items())


@dataclass
class Node:
    """A node while replicas are placed: its free resources, and the pools of the replicas on it."""

    type: NodeType
    free: dict[str, float]
    pools: list[str] = field(default_factory=list)

    def take(self, pool: str, needs: dict[str, float]) -> bool:
        if any(self.free.get(name, 0.0) < amount for name, amount in needs.items()):
            return False
        for name, amount in needs.items():
            self.free[name] -= amount
        self.pools.append(pool)
        return True


class Nodes:
    """The nodes that a cluster may have. Replicas are placed one after the other, as an autoscaler does."""

    def __init__(self, head: NodeType, workers: list[NodeType], max_workers: int) -> None:
        self.types = [head, *workers]
        self.nodes = [Node(head, dict(head.resources))]
        self._may_come = {node_type.name: node_type.max_nodes for node_type in workers}
        self._workers = {node_type.name: node_type for node_type in workers}
        self._max_workers = max_workers

    def place(self, pool: str, needs: dict[str, float]) -> bool:
        """Place a replica of `pool` on a node, or on one more node. Return False if none has room."""
        if any(node.take(pool, needs) for node in self.nodes):
            return True
        if len(self.nodes) > self._max_workers:
            return False
        able = [t for t in self._workers.values() if t.has(needs) and self._may_come[t.name] > 0]
        if not able:
            return False
        chosen = min(able, key=lambda t: sum(t.resources.values()))  # the smallest that has room
        self._may_come[chosen.name] -= 1
        self.nodes.append(Node(chosen, dict(chosen.resources)))
        return self.nodes[-1].take(pool, needs)


class ClusterFile:
    """A file for `ray up`. `content` is the file's, `prepared` has Ray's defaults too."""

    def __init__(self, file: Path, content: YamlMapping) -> None:
        """Raises ConfigError that names file and key if `ray up` would refuse it."""
        self.file, self.content = file, content
        self._check_schema()
        self.prepared = self._prepare()

    @property
    def provider(self) -> str:
        return str(self.content["provider"]["type"])

    def nodes(self) -> Nodes | None:
        """Return the nodes that there may be; None with provider `local`, whose hosts report their own resources."""
        if self.provider == "local":
            return None
        head, workers = self.prepared["head_node_type"], []
        for name, node_type in self.prepared["available_node_types"].items():
            detected = dict.fromkeys(DETECTED.get(self.provider, ()), math.inf)
            workers.append(NodeType(name, {**detected, **node_type["resources"]}, node_type["max_workers"]))
        (first,) = [worker for worker in workers if worker.name == head]
        return Nodes(first, workers, self.prepared["max_workers"])

    def faults(self) -> Iterator[str]:
        """Yield what would fail, or leave the cluster unprotected, though Ray accepts the file; the key comes first."""
        tokens = []
        for key in START_COMMANDS:
            exported = self.exported(key)
            if exported is None:
                yield f"{key}: no command has `ray start`, and Ray's own default starts without a token"
                continue
            if exported.get("RAY_AUTH_MODE") != "token":
                yield f"{key}: RAY_AUTH_MODE=token is not exported before `ray start`: Ray would not require a token"
            tokens.append(exported.get("RAY_AUTH_TOKEN_PATH", TOKEN_FILE))
        for token in sorted({*tokens}):
            if not any(remote.endswith(token.removeprefix("~/")) for remote in self.content.get("file_mounts", {})):
                yield f"file_mounts: has no {token}, and a node without the token cannot join"
        for remote, local in self.content.get("file_mounts", {}).items():
            if not Path(local).expanduser().exists():
                way_out = "; `ray get-auth-token --generate` creates it" if remote.endswith("auth_token") else ""
                yield f"file_mounts.{remote}: {local} does not exist here{way_out}"
        private_key = self.content.get("auth", {}).get("ssh_private_key")
        if private_key and not Path(private_key).expanduser().exists():
            yield f"auth.ssh_private_key: {private_key} does not exist here"

    def notes(self, switches: dict[str, str]) -> Iterator[str]:
        """Yield what works, but perhaps not as it was meant."""
        for key in START_COMMANDS:
            exported = self.exported(key) or {}
            absent = [f"{name}={value}" for name, value in switches.items() if exported.get(name) != value]
            if absent:
                effect = "front and autoscaling will not be as the configuration says"
                yield f"{key}: {' '.join(absent)} not exported: {effect}"
        if self.provider == "local":
            yield "provider.type: local: `RAY_UP_enable_autoscaler_v2=0 ray up`, or the last worker is never started"

    def exported(self, key: str) -> dict[str, str] | None:
        """Return the variables set before `ray start` in the commands of `key`; None if no command starts Ray."""
        for command in self.content.get(key, []):
            before, start, _ = command.partition("ray start")
            if start:
                return dict(re.findall(r"(?:^|[\s;&])([A-Za-z_]\w*)=([^\s;&]*)", before))
        return None

    def _check_schema(self) -> None:
        """Check Ray's own schema first: its later steps fail with unclear errors on what the schema forbids."""
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
                    f"{self.file}: {key}: provider local refuses it; give resources to `ray start` on each host instead"
                )
        provider = self.content["provider"]
        for key in ("head_ip", "worker_ips"):
            if key not in provider and "coordinator_address" not in provider:
                raise ConfigError(f"{self.file}: provider.{key}: is missing, and there is no coordinator_address")

    def _prepare(self) -> YamlMapping:
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                prepared: YamlMapping = prepare_config(copy.deepcopy(self.content))
                for node_type in prepared["available_node_types"].values():
                    node_type.setdefault("resources", {})
                validate_config(prepared)
        except (click.ClickException, ValueError, LookupError, TypeError, AssertionError, RuntimeError) as error:
            reason = output.getvalue().strip() or str(error)
            raise ConfigError(f"{self.file}: Ray refuses it: {reason}") from None
        return prepared
