"""A lab of several machines on one: namespaces with an SSH server each, made and owned by `lab.sh`."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("lab.sh")
PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "unshare", "nsenter", "setpriv", "make")
NAMESPACES = ("net", "mnt", "pid", "uts", "ipc")
HOME = "/run/home"


def missing() -> str | None:
    """Return why no lab is possible on this machine; None if one is."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install openssh-server rsync iproute2)"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    tried = subprocess.run(["unshare", *(f"--{n}" for n in ("net", "mount", "pid", "uts", "ipc")), "--fork", "true"],
                           capture_output=True, text=True, check=False)  # fmt: skip
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Lab:
    """A client machine, where `run` runs, and named hosts that it reaches over SSH.

    `hosts` says which custom Ray resources each host has, as JSON. When the block ends nothing of it is left.
    """

    def __init__(self, hosts: dict[str, str]) -> None:
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(hosts, 2)}
        self._hosts = hosts
        self._venv = Path(sys.prefix).resolve()

    def __enter__(self) -> Self:
        words = [f"{name}={resources}" for name, resources in self._hosts.items()]
        command = ["bash", str(SCRIPT), "client", str(self._venv), str(ROOT), *words]
        # should this process be killed, the lab goes with it
        self._keeper = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._keeper.stdout is not None
        said = ""
        while not said.endswith("ready\n"):
            line = self._keeper.stdout.readline()
            if not line:
                self.close()
                raise AssertionError(f"the lab did not start: {said}")
            said += line
        (self._client,) = children(self._keeper.pid)
        self.namespaces = {link for pid in self.processes() for link in links(pid)} - links(os.getpid())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the lab; its namespaces, links and files go with the last one."""
        self._keeper.kill()
        self._keeper.communicate()

    def processes(self) -> list[int]:
        """Return the ids of all processes of the lab, as this process sees them."""
        found = [self._client]
        for pid in found:
            found += children(pid)
        return found

    def run(self, *words: str, seconds: float = 180.0, stdin: str = "") -> str:
        """Return the output of a command on the client's machine. Fails with the output unless the exit code is 0."""
        environment = {
            "PATH": f"{self._venv}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": HOME,
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_UP_enable_autoscaler_v2": "0",
        }
        inside = ["nsenter", "-t", str(self._client), "-n", "-m", "-p", "-u", "-i", "env", "-i", "-C", str(ROOT)]
        settings = [f"{name}={value}" for name, value in environment.items()]
        done = subprocess.run(
            [*inside, *settings, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(words)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def write(self, file: str, text: str) -> str:
        """Write a file on the client's machine, and return its name."""
        self.run("tee", file, stdin=text)
        return file

    def ssh(self, host: str, command: str, seconds: float = 120.0) -> str:
        """Return the output of `command` on a host, in its user's login shell."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        words = [word for option in options for word in ("-o", option)]
        shell = f"bash -ic {shlex.quote(command)}"
        return self.run("ssh", *words, f"root@{self.addresses[host]}", shell, seconds=seconds)

    def received_bytes(self, host: str) -> int:
        """Return the bytes that the host's network interface has received."""
        (line,) = [line for line in self.ssh(host, "cat /proc/net/dev").splitlines() if "eth0:" in line]
        return int(line.split(":")[1].split()[0])

    def programs(self, host: str) -> list[str]:
        """Return the command lines of the processes on a host, without those of this call."""
        asking = ("ps ", "bash ", "sshd:", "-bash")
        lines = [line.strip() for line in self.ssh(host, "ps -eo args --no-headers").splitlines()]
        return [line for line in lines if not line.startswith(asking)]


def children(pid: int) -> list[int]:
    """Return the running child processes of `pid`."""
    try:
        files = list(Path(f"/proc/{pid}/task").glob("*/children"))
        return [int(child) for file in files for child in file.read_text().split()]
    except OSError:
        return []


def links(pid: int) -> set[str]:
    """Return the namespaces of a process, such as net:[4026531840]; none if it has ended."""
    try:
        return {os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}
    except OSError:
        return set()


def inhabitants(namespaces: Sequence[str] | set[str]) -> list[int]:
    """Return the processes of this machine that are in one of these namespaces."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if links(pid) & set(namespaces)]


def wait_until_gone(namespaces: set[str], seconds: float = 10.0) -> None:
    """Wait until no process is in these namespaces; fail after a time limit."""
    until = time.monotonic() + seconds
    while found := inhabitants(namespaces):
        assert time.monotonic() < until, f"left of the lab: {found}"
        time.sleep(0.1)
