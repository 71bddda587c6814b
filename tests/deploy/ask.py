"""Run on the lab's client: waits for the service of a cluster, asks it, and prints what came as JSON.

    python -m tests.deploy.ask HEAD SECONDS < {"prompts": [[token, ...], ...], "max_tokens": N}

The output: greedy `tokens` of each prompt, `moved_bytes` and `reads` by decode replica, what became of a request
`without_token` (the HTTP status) to Ray's dashboard, and the `seconds` that the service took to be there.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from cluster.client import Client, generate_request


def main() -> None:
    head, seconds = sys.argv[1], float(sys.argv[2])
    asked = json.load(sys.stdin)
    url = f"http://{head}:8265/api/serve/applications/"
    waited = wait_until_running(url, seconds)
    with Client(f"{head}:9000") as client:
        tokens = [greedy(client, prompt, asked["max_tokens"]) for prompt in asked["prompts"]]
        decode = [replica for replica in client.stats().replicas if replica.role == "decode"]
    answer = {
        "tokens": tokens,
        "moved_bytes": [replica.moved_bytes for replica in decode],
        "reads": [replica.reads for replica in decode],
        "without_token": status_of(urllib.request.Request(url)),
        "seconds": waited,
    }
    print(json.dumps(answer))


def wait_until_running(url: str, seconds: float) -> float:
    """Wait until Serve says that the application runs. Raises SystemExit with what it says otherwise."""
    token = Path("~/.ray/auth_token").expanduser().read_text()
    began, said = time.monotonic(), ""
    while time.monotonic() - began < seconds:
        try:
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, timeout=10) as reply:
                said = reply.read().decode()
            if json.loads(said)["applications"]["sparkpool"]["status"] == "RUNNING":
                return time.monotonic() - began
        except (OSError, LookupError) as error:
            said = f"{said}\n{error!r}"
        time.sleep(0.5)
    raise SystemExit(f"not running after {seconds:.0f} s: {said}")


def greedy(client: Client, prompt: list[int], max_tokens: int) -> list[int]:
    request = generate_request(prompt, temperature=0.0, max_tokens=max_tokens)
    return [token for reply in client.generate(request, timeout=60) for token in reply.token_ids]


def status_of(request: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


if __name__ == "__main__":
    assert "RAY_AUTH_TOKEN" not in os.environ, "the token comes from its file"
    main()
