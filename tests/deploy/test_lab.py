"""The lab itself: its hosts share no files and processes, and leave nothing behind."""

import os
from pathlib import Path

import pytest

from tests.deploy.lab import Lab, inhabitants, missing, wait_until_gone

reason = missing()
pytestmark = pytest.mark.skipif(reason is not None, reason=f"no lab of hosts: {reason}")


def surroundings() -> tuple[list[str], list[str], str]:
    """Return what a lab could leave behind: network links, files, mounts."""
    files = [
        str(file) for pattern in ("ray_ssh_*", "ray-config-*", "ray/cluster-*") for file in Path("/tmp").glob(pattern)
    ]
    return sorted(os.listdir("/sys/class/net")), sorted(files), Path("/proc/self/mounts").read_text()


def test_hosts_share_nothing_and_leave_nothing() -> None:
    before = surroundings()
    with Lab({"one": '{"a": 1}', "two": "{}"}) as lab:
        lab.ssh("one", "echo secret | tee ~/file /tmp/file /dev/shm/file")

        assert lab.ssh("one", "hostname; cat ~/resources.json").split("\n")[:2] == ["one", '{"a": 1}']
        assert lab.ssh("two", "ls ~/file /tmp/file /dev/shm/file 2> /dev/null | wc -l").strip() == "0"
        assert lab.programs("two") == [], "no process but its own"
        received = lab.received_bytes("two")
        lab.ssh("two", "true " + "x" * 100_000)
        assert lab.received_bytes("two") - received > 100_000, "what is sent there came over its interface"
        assert inhabitants(lab.namespaces)

    wait_until_gone(lab.namespaces)
    assert surroundings() == before


def test_a_lab_ends_after_an_error_too() -> None:
    with pytest.raises(AssertionError, match="false: exit 1"), Lab({"one": "{}"}) as lab:
        lab.run("false")

    wait_until_gone(lab.namespaces)
