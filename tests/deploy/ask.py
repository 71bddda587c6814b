"""Runs on the lab's client and prints what it finds out about the service of a cluster, as JSON.

    python -m tests.deploy.ask wait HEAD SECONDS     waits until the application runs, tries without token
    python -m tests.deploy.ask greedy HEAD < {"prompts": [[token, ...], ...], "max_tokens": N}

`wait` gives the HTTP status that Ray's dashboard has for a stranger; `greedy` the tokens of each answer, and what the
decode replicas have read so far.
"""

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def main() -> None:
    what, head, *rest = sys.argv[1:]
    found = wait(head, float(rest[0])) if what == "wait" else greedy(head, **json.load(sys.stdin))
    print(json.dumps(found))


def wait(head: str, seconds: float) -> dict[str, Any]:
    """Wait until the application runs. Raises SystemExit with Serve's status after a time limit."""
    url = f"http://{head}:8265/api/serve/applications/"
    token = Path("~/.ray/auth_token").expanduser().read_text()
    until, said = time.monotonic() + seconds, ""
    while time.monotonic() < until:
        try:
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, timeout=10) as reply:
                said = reply.read().decode()
            if json.loads(said)["applications"]["sparkpool"]["status"] == "RUNNING":
                return {"stranger": status_without_token(url)}
        except (OSError, LookupError) as error:
            said = f"{said}\n{error!r}"
        time.sleep(0.5)
    raise SystemExit(f"not running after {seconds:.0f} s: {said}")


def status_without_token(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def greedy(head: str, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
    from cluster.client import Client, generate_request

    with Client(f"{head}:9000") as client:
        requests = [generate_request(prompt, temperature=0.0, max_tokens=max_tokens) for prompt in prompts]
        answers = [[t for reply in client.generate(r, timeout=60) for t in reply.token_ids] for r in requests]
        decode = [replica for replica in client.stats().replicas if replica.identity.role == "decode"]
    moved = sum(replica.transfers.moved_bytes for replica in decode)
    return {"tokens": answers, "moved_bytes": moved, "reads": sum(replica.transfers.reads for replica in decode)}


if __name__ == "__main__":
    main()
