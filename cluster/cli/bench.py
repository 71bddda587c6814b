"""`sparkpool bench`: sends load to this service or to an OpenAI-compatible server. Heavy imports stay inside."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.drafters import fail

commands = typer.Typer(pretty_exceptions_enable=False)
DEFAULT_ADDRESS = "127.0.0.1:9000"
DEFAULT_APPLICATION = "sparkpool"
HELP = """Send load and measure: closed loop (--concurrency) or open loop (--rate).

Latencies are measured in this client, over requests that ended OK, as `vllm bench serve` does.

TTFT: from sending a request to its first message with a token.

TPOT: from the first to the last message with tokens, divided by the answer's tokens less one.

ITL: between two successive messages with tokens; a message may have several tokens.

End to end: from sending to the end of the call.

Since due (open loop): the same, counted from when the request was due, even if it was sent later.

Rates: over the time from the first request sent to the end of the last.

KV bandwidth: bytes that decode replicas read, divided by the sum of the seconds of these reads.

Accepted length: mean tokens that a decode step gives a request.

With --endpoint, tokens are those that the server's `usage` counts.

A request that the server throttles (HTTP 429) is sent again after a wait; its TTFT counts from the last time.
"""

Address = Annotated[str, typer.Option(help="host:port of a gateway's gRPC port")]
Application = Annotated[str, typer.Option(help="name of the Serve application, if the cluster has several")]


@commands.command(help=HELP)
def bench(
    context: typer.Context,
    address: Address = DEFAULT_ADDRESS,
    application: Application = DEFAULT_APPLICATION,
    endpoint: Annotated[str, typer.Option(help="measure an OpenAI-compatible server instead: https://host/v1")] = "",
    model: Annotated[str, typer.Option(help="with --endpoint: name of the model there")] = "",
    api: Annotated[str | None, typer.Option(help="with --endpoint: chat (default) or completions")] = None,
    key_file: Annotated[Path | None, typer.Option(help="with --endpoint: file with the API key")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="with --endpoint: tokenizer folder, for random prompts")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="requests open at a time; 8 without --rate")] = None,
    rate: Annotated[float | None, typer.Option(help="requests per second, sent when due (open loop)")] = None,
    burstiness: Annotated[float, typer.Option(help="with --rate: 1 is Poisson, less burstier, inf regular")] = 1.0,
    requests: Annotated[int | None, typer.Option(help="number of requests; 64, or each line of --prompts")] = None,
    seconds: Annotated[float | None, typer.Option(help="send for this long, then wait for open requests")] = None,
    prompts: Annotated[Path | None, typer.Option(help="a prompt per line; .jsonl: prompt, max_tokens")] = None,
    input_tokens: Annotated[int, typer.Option(help="tokens of a random prompt, without --prompts")] = 128,
    output_tokens: Annotated[int | None, typer.Option(help="max_tokens of a request; 64 for random prompts")] = None,
    input_spread: Annotated[float, typer.Option(help="prompt lengths vary by this share of --input-tokens")] = 0.0,
    output_spread: Annotated[float, typer.Option(help="answer lengths vary by this share of --output-tokens")] = 0.0,
    prefix_tokens: Annotated[int, typer.Option(help="common tokens before each random prompt, in addition")] = 0,
    warmup: Annotated[int, typer.Option(help="requests to send before the measured ones")] = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    sampling_seed: Annotated[int | None, typer.Option(help="sampling seed of each request")] = None,
    ignore_eos: Annotated[bool | None, typer.Option(help="default: on for random prompts, off with --endpoint")] = None,
    decode_pool: Annotated[str, typer.Option(help="name of the decode pool to use")] = "",
    service_tier: Annotated[str, typer.Option(help="service tier, which chooses the pool (gateway.tiers)")] = "",
    seed: Annotated[int, typer.Option(help="seed of random prompts, lengths and arrivals")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="file to write figures and all times to")] = None,
    record: Annotated[Path | None, typer.Option(help="folder for steps that decode replicas record meanwhile")] = None,
) -> None:
    """Send load and measure."""
    import grpc
    from rich.console import Console

    from cluster.loadgen.run import BenchOptions, run
    from engine.errors import ConfigError

    try:
        figures, interrupted = run(BenchOptions(**_given(context)), Console())
    except ConfigError as error:
        fail(str(error))
    except grpc.RpcError as error:
        fail(f"{address}: {error.code().name}: {error.details()}")
    raise typer.Exit(130 if interrupted else 0 if figures["completed"] else 1)


def _given(context: typer.Context) -> dict[str, Any]:
    """Return the command's options, without defaults that do not apply to an endpoint."""
    given = dict(context.params)
    if given["endpoint"]:
        given["api"] = given["api"] or "chat"
        for name in ("address", "application"):
            source = context.get_parameter_source(name)
            given[name] = "" if source is not None and source.name == "DEFAULT" else given[name]
    return given
