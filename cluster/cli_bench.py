"""`sparkpool bench`: load on this service, or on any OpenAI-compatible one. What it needs is imported inside."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli_drafters import fail

commands = typer.Typer(pretty_exceptions_enable=False)
DEFAULT_ADDRESS = "127.0.0.1:9000"
DEFAULT_APPLICATION = "sparkpool"
HELP = """Send load and measure: closed loop (--concurrency) or open loop (--rate).

Latencies are taken where this client sees a message, over requests that ended OK, as `vllm bench serve` does.

TTFT: from sending a request to its first message with a token.

TPOT: from the first to the last message with tokens, over the answer's tokens less one.

ITL: between two successive messages with tokens; a message may have several tokens.

End to end: from sending to the end of the call.

Since due (open loop): the same, but from when the request was due, however late it was sent.

Rates: over the time from the first sending to the last end.

KV bandwidth: bytes read by decode replicas, over the sum of the reads' times.

Accepted length: tokens that a decode step gives a request, in the mean.

Tokens of an --endpoint are what its `usage` counts.

Refused with HTTP 429, a request waits as long as it is told, and is sent again: TTFT counts from the last sending.
"""

Address = Annotated[str, typer.Option(help="host:port of a gateway's gRPC port")]
Application = Annotated[str, typer.Option(help="the Serve application, if the cluster has several")]


@commands.command(help=HELP)
def bench(
    context: typer.Context,
    address: Address = DEFAULT_ADDRESS,
    application: Application = DEFAULT_APPLICATION,
    endpoint: Annotated[str, typer.Option(help="measure this server with OpenAI's API: https://host/v1")] = "",
    model: Annotated[str, typer.Option(help="of --endpoint: the model's name there")] = "",
    api: Annotated[str | None, typer.Option(help="of --endpoint: chat or completions; default chat")] = None,
    key_file: Annotated[Path | None, typer.Option(help="of --endpoint: holds the key that is sent as bearer")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="of --endpoint: makes random prompts; a directory")] = None,
    concurrency: Annotated[int | None, typer.Option(help="requests under way; 8 without --rate")] = None,
    rate: Annotated[float | None, typer.Option(help="requests a second, sent when due (open loop)")] = None,
    burstiness: Annotated[float, typer.Option(help="of --rate: 1 is Poisson, less burstier, inf even")] = 1.0,
    requests: Annotated[int | None, typer.Option(help="end after so many; 64, or each line once")] = None,
    seconds: Annotated[float | None, typer.Option(help="send for so long, then finish what is under way")] = None,
    prompts: Annotated[Path | None, typer.Option(help="a prompt per line; .jsonl: prompt, max_tokens")] = None,
    input_tokens: Annotated[int, typer.Option(help="random tokens in a prompt, without --prompts")] = 128,
    output_tokens: Annotated[int | None, typer.Option(help="max_tokens; 64 for random prompts")] = None,
    input_spread: Annotated[float, typer.Option(help="lengths vary by this share of --input-tokens")] = 0.0,
    output_spread: Annotated[float, typer.Option(help="lengths vary by this share of --output-tokens")] = 0.0,
    prefix_tokens: Annotated[int, typer.Option(help="tokens that all random prompts begin with, added")] = 0,
    warmup: Annotated[int, typer.Option(help="requests before the measured ones")] = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    sampling_seed: Annotated[int | None, typer.Option(help="each request's own seed")] = None,
    ignore_eos: Annotated[
        bool | None, typer.Option(help="default: on for random prompts, but off with --endpoint")
    ] = None,
    decode_pool: Annotated[str, typer.Option(help="the decode pool that shall answer")] = "",
    service_tier: Annotated[str, typer.Option(help="the tier that chooses it (gateway.tiers)")] = "",
    seed: Annotated[int, typer.Option(help="of random prompts, lengths and arrivals")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write figures and raw times here")] = None,
    record: Annotated[Path | None, typer.Option(help="a folder for what decode replicas record meanwhile")] = None,
) -> None:
    """Send load and measure."""
    import grpc
    from rich.console import Console

    from cluster.bench.run import Options, run
    from engine.errors import ConfigError

    try:
        figures, interrupted = run(Options(**_given(context)), Console())
    except ConfigError as error:
        fail(str(error))
    except grpc.RpcError as error:
        fail(f"{address}: {error.code().name}: {error.details()}")
    raise typer.Exit(130 if interrupted else 0 if figures["completed"] else 1)


def _given(context: typer.Context) -> dict[str, Any]:
    """The command's options, with those defaults only that mean something where the load goes."""
    given = dict(context.params)
    if given["endpoint"]:
        given["api"] = given["api"] or "chat"
        for name in ("address", "application"):
            source = context.get_parameter_source(name)
            given[name] = "" if source is not None and source.name == "DEFAULT" else given[name]
    return given
