"""`sparkpool generate`: prints one answer, from a service or from both pools in this process (without Ray or gRPC)."""

import typer

from engine.config import Config
from engine.errors import SparkpoolError
from engine.facts import SYNTHETIC_WARNING
from engine.types import NO_LIMIT, Request, Sampling, StopRules

Options = dict[str, float | int | None]  # temperature, top_k, top_p, seed


class GenerateFailed(Exception):
    """There is no answer, or not all of it; the text says why."""


def locally(prompt: str, config: Config, max_tokens: int, max_drafts: int | None, options: Options) -> None:
    """Print the answer of a prefill and a decode engine in this process. Raises GenerateFailed."""
    from local import Pair
    from local.build import set_threads

    set_threads(config.prefill, config)
    seed = options["seed"]
    try:
        pair = Pair(config)
        request = Request(
            id="local",
            prompt=pair.text.encode(prompt),
            sampling=Sampling(
                temperature=float(options["temperature"] or 0.0),
                top_k=int(options["top_k"] or 0),
                top_p=float(options["top_p"] or 0.0),
                seed=int(seed or 0),
                seeded=seed is not None,
            ),
            stop=StopRules(max_tokens=max_tokens),
            max_drafts=NO_LIMIT if max_drafts is None else max_drafts,
        )
        typer.echo(prompt, nl=False)
        for chunk in pair.stream(request):
            typer.echo(chunk.text, nl=False)
    except SparkpoolError as error:
        raise GenerateFailed(str(error)) from error
    typer.echo()
    if chunk.acceptance is not None and chunk.acceptance.synthetic:
        typer.echo(SYNTHETIC_WARNING, err=True)


def remotely(
    prompt: str, address: str, application: str, max_tokens: int, max_drafts: int | None, options: Options
) -> None:
    """Print the answer of a service, then its timings. Raises GenerateFailed."""
    import grpc

    from cluster.client import Client, generate_request
    from cluster.proto import sparkpool_pb2 as pb

    speculation = None if max_drafts is None else pb.Speculation(max_tokens=max_drafts)
    request = generate_request(prompt, max_tokens=max_tokens, speculation=speculation, **options)
    with Client(address, application) as client:
        try:
            typer.echo(prompt, nl=False)
            for reply in client.generate(request):
                typer.echo(reply.text, nl=False)
        except grpc.RpcError as error:
            raise GenerateFailed(f"\n{address}: {error.code().name}: {error.details()}") from error
    typer.echo()
    timings, tokens, acceptance = reply.timings, reply.usage.completion_tokens, reply.acceptance
    length = 1 + acceptance.accepted / max(1, acceptance.steps)
    typer.echo(
        f"[{tokens} tokens, first after {timings.first_token_seconds * 1e3:.0f} ms, "
        f"{timings.moved_pages} pages, {timings.moved_bytes} bytes moved"
        + (f", accepted length {length:.2f}]" if acceptance.drafted else "]"),
        err=True,
    )
    if acceptance.synthetic:
        typer.echo(SYNTHETIC_WARNING, err=True)
