"""Runs `make demo`: starts both pools on this machine with the shipped model and its drafter, and sends a few prompts
one by one, with and without speculative decoding, then all at once."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from cluster.client import Client, generate_request
from cluster.proto import sparkpool_pb2 as pb
from cluster.serving.app import running
from cluster.serving.front import free_ports
from cluster.tables import by_position, replica_table, size
from engine.config import SHIPPED_DRAFTER, Config

PROMPTS = [
    "def read_json(path):",
    "class Stack:\n    def __init__(self):",
    "for name, value in sorted(",
    "class TestCase(unittest.TestCase):\n    def setUp(self):",
]
DRAFTS = 3
OFF = pb.Speculation(off=True)
OPTIONS = {"temperature": 0.7, "top_p": 0.95, "seed": 1, "max_tokens": 64}


@dataclass
class DemoAnswer:
    """One streamed answer, timed by the client."""

    text: str
    first_token_seconds: float
    stream_seconds: float
    last: pb.GenerateReply

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second after the first token."""
        return (self.last.usage.completion_tokens - 1) / self.stream_seconds


def main() -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 110
    grpc_port, http_port = free_ports(2)
    config = Config.parse(
        {
            "model": {"drafter": SHIPPED_DRAFTER},
            "prefill": {"cache_bytes": "128MiB"},
            "decode": {"default": {"cache_bytes": "128MiB", "planner": "fixed", "fixed_drafts": DRAFTS}},
            "gateway": {"grpc_port": grpc_port, "http_port": http_port},
        }
    )
    started = time.monotonic()
    console.print("Starting Ray, then a prefill replica, a decode replica and a gateway ...")
    with running(config, console.print), Client(f"127.0.0.1:{grpc_port}") as client:
        console.print(f"Ready after {time.monotonic() - started:.1f} s.\n")
        table = Table(title="one request at a time, temperature 0.7, seed 1")
        for column in ("prompt", "first token", "tok/s", "prefill", "transfer", "pages", "bytes"):
            table.add_column(column, justify="left" if column == "prompt" else "right")
        alone = [ask(client, prompt, console) for prompt in PROMPTS]
        for prompt, answer in zip(PROMPTS, alone, strict=True):
            table.add_row(*row(prompt, answer))
        console.print(table)
        console.print(with_and_without(alone, [ask(client, prompt, speculation=OFF) for prompt in PROMPTS]))
        console.print(all_at_once(client, alone))
        console.print(replica_table(client.stats()))
    console.print("Stopped; nothing is left running.")


def ask(client: Client, prompt: str, console: Console | None = None, **options: object) -> DemoAnswer:
    """Stream one answer, echoing it if there is a console."""
    sent = time.monotonic()
    first, text = 0.0, ""
    if console is not None:
        console.print(prompt, end="", style="bold", markup=False)
    for reply in client.generate(generate_request(prompt, **OPTIONS, **options)):
        first = first or time.monotonic()
        text += reply.text
        if console is not None:
            console.print(reply.text, end="", markup=False, soft_wrap=True)
    if console is not None:
        console.print("\n")
    return DemoAnswer(text, first - sent, time.monotonic() - first, reply)


def row(prompt: str, answer: DemoAnswer) -> list[str]:
    timings = answer.last.timings
    return [
        prompt.splitlines()[0],
        f"{answer.first_token_seconds * 1e3:.0f} ms",
        f"{answer.tokens_per_second:.0f}",
        f"{timings.prefill_seconds * 1e3:.1f} ms",
        f"{timings.transfer_seconds * 1e3:.1f} ms",
        str(timings.moved_pages),
        size(timings.moved_bytes),
    ]


def with_and_without(drafted: list[DemoAnswer], plain: list[DemoAnswer]) -> Table:
    """Return a table of what speculation did to each answer. With a seed it changes no token."""
    table = Table(title=f"DSpark, {DRAFTS} drafts in every step, compared with no drafts", title_justify="left")
    for column in (
        "prompt",
        "tok/s without",
        "with",
        "accepted length",
        "verified per step",
        "accepted by position",
        "same text",
    ):
        table.add_column(column, justify="left" if column == "prompt" else "right")
    for prompt, one, other in zip(PROMPTS, drafted, plain, strict=True):
        drafts = one.last.acceptance
        table.add_row(
            prompt.splitlines()[0],
            f"{other.tokens_per_second:.0f}",
            f"{one.tokens_per_second:.0f}",
            f"{1 + drafts.accepted / drafts.steps:.2f}",
            f"{drafts.verified / drafts.steps:.2f}",
            by_position(drafts.accepted_at, drafts.verified_at),
            "yes" if one.text == other.text else "NO",
        )
    return table


def all_at_once(client: Client, alone: list[DemoAnswer]) -> str:
    """Send each prompt twice, all at once: more tokens per second, and with a seed the same answers."""
    sent = time.monotonic()
    with ThreadPoolExecutor(2 * len(PROMPTS)) as pool:
        answers = list(pool.map(lambda prompt: ask(client, prompt), 2 * PROMPTS))
    seconds = time.monotonic() - sent
    tokens = sum(answer.last.usage.completion_tokens for answer in answers)
    same = sum(answer.text == before.text for answer, before in zip(answers, 2 * alone, strict=True))
    rate = f"{tokens} tokens in {seconds:.1f} s, {tokens / seconds:.0f} tok/s in all"
    return f"\n{len(answers)} requests at once: {rate}; {same} of {len(answers)} answers have the same text as alone\n"


if __name__ == "__main__":
    main()
