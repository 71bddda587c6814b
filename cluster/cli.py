"""The command `sparkpool`. Heavy imports stay inside the commands: `generate --local` needs neither Ray nor gRPC."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
DEFAULT_ADDRESS = "127.0.0.1:9000"
DEFAULT_APPLICATION = "sparkpool"

Address = Annotated[str, typer.Option(help="host:port of a gateway's gRPC port")]
Application = Annotated[str, typer.Option(help="the Serve application, if the cluster has several")]
ConfigFile = Annotated[Path | None, typer.Argument(help="YAML file; without one, the shipped model with defaults")]


@app.command()
def serve(config: ConfigFile = None) -> None:
    """Start both pools and the gateway on this machine and serve until interrupted."""
    import signal
    import threading

    from rich.console import Console

    from cluster.app import running

    console = Console(stderr=True)
    settings = _load(config)
    stop = threading.Event()
    pools = f"{settings.prefill.replicas} prefill + {settings.decode.replicas} decode"
    console.print(f"Starting Ray, then {pools} replicas of {settings.model.served_name} ...")
    with running(settings):
        for number in (signal.SIGINT, signal.SIGTERM):  # only now: starting Ray sets handlers of its own
            signal.signal(number, lambda *_: stop.set())
        console.print(f"Ready: gRPC on port {settings.gateway.grpc_port} (plaintext, every interface). Ctrl-C stops.")
        stop.wait()
        console.print("Draining ...")


@app.command()
def generate(
    prompt: str,
    address: Address = DEFAULT_ADDRESS,
    application: Application = DEFAULT_APPLICATION,
    local: Annotated[bool, typer.Option("--local", help="both pools in this process, without Ray")] = False,
    config: Annotated[Path | None, typer.Option(help="YAML file, for --local")] = None,
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> None:
    """Stream the continuation of PROMPT."""
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if local:
        _generate_local(prompt, config, max_tokens, options)
    else:
        _generate_remote(prompt, address, application, max_tokens, options)


@app.command()
def stats(address: Address = DEFAULT_ADDRESS, application: Application = DEFAULT_APPLICATION) -> None:
    """Show every replica of both pools: queues, pages, leases, transfers."""
    import grpc
    from rich.console import Console

    from cluster.client import Client
    from cluster.tables import replica_table

    with Client(address, application) as client:
        try:
            found = client.stats()
        except grpc.RpcError as error:
            _fail(f"{address}: {error.code().name}: {error.details()}")
    Console().print(replica_table(found))


@app.command()
def version() -> None:
    """Versions of what matters here."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    for package in ("sparkpool", "ray", "torch", "transformers", "nixl", "grpcio"):
        try:
            typer.echo(f"{package} {installed(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package} not installed")


def main() -> None:
    app()


def _generate_local(prompt: str, config: Path | None, max_tokens: int, options: dict[str, float | int | None]) -> None:
    from engine.errors import SparkpoolError
    from engine.types import Request, Sampling, StopRules
    from local import Pair
    from local.build import set_threads

    settings = _load(config)
    set_threads(settings.prefill, settings)
    seed = options["seed"]
    try:
        pair = Pair(settings)
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
        )
        typer.echo(prompt, nl=False)
        for chunk in pair.stream(request):
            typer.echo(chunk.text, nl=False)
        typer.echo()
    except SparkpoolError as error:
        _fail(str(error))


def _generate_remote(
    prompt: str, address: str, application: str, max_tokens: int, options: dict[str, float | int | None]
) -> None:
    import grpc

    from cluster.client import Client, generate_request

    with Client(address, application) as client:
        try:
            typer.echo(prompt, nl=False)
            for reply in client.generate(generate_request(prompt, max_tokens=max_tokens, **options)):
                typer.echo(reply.text, nl=False)
        except grpc.RpcError as error:
            _fail(f"\n{address}: {error.code().name}: {error.details()}")
    typer.echo()
    timings, tokens = reply.timings, reply.usage.completion_tokens
    typer.echo(
        f"[{tokens} tokens, first after {timings.first_token_seconds * 1e3:.0f} ms, "
        f"{timings.moved_pages} pages, {timings.moved_bytes} bytes moved]",
        err=True,
    )


def _load(file: Path | None):  # type: ignore[no-untyped-def]
    from engine.config import Config
    from engine.errors import ConfigError

    try:
        return Config.load(file)
    except ConfigError as error:
        _fail(str(error))


def _fail(message: str) -> None:
    typer.echo(f"sparkpool: {message.lstrip()}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    main()
