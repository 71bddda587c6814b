"""The command `sparkpool`. Heavy imports stay inside the commands: `generate --local` works without Ray and gRPC."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.bench import DEFAULT_ADDRESS, DEFAULT_APPLICATION, Address, Application
from cluster.cli.bench import commands as bench_commands
from cluster.cli.compare import commands as compare_commands
from cluster.cli.deploy import commands as deploy_commands
from cluster.cli.drafters import commands as drafter_commands
from cluster.cli.drafters import fail as _fail
from cluster.cli.hardware import commands as hardware_commands

if TYPE_CHECKING:
    from engine.config import Config

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(bench_commands)
app.add_typer(drafter_commands)
app.add_typer(hardware_commands)
app.add_typer(compare_commands)
app.add_typer(deploy_commands, name="deploy")
ConfigFile = Annotated[Path | None, typer.Argument(help="YAML file; default: the shipped model with default settings")]


@app.command()
def serve(
    config: ConfigFile = None,
    submit: Annotated[
        str, typer.Option(help="deploy to a running cluster: URL of its dashboard, http://127.0.0.1:8265")
    ] = "",
    show: Annotated[bool, typer.Option("--show", help="print the Serve deploy config, for `serve deploy`")] = False,
) -> None:
    """Start all pools and the gateway on this machine, and serve until interrupted; or deploy to a running cluster."""
    settings = _load(config)
    if show:
        _show(settings)
    elif submit:
        _submit(settings, submit)
    else:
        _serve_here(settings)


@app.command()
def generate(
    prompt: str,
    address: Address = DEFAULT_ADDRESS,
    application: Application = DEFAULT_APPLICATION,
    local: Annotated[bool, typer.Option("--local", help="run both pools in this process, without Ray")] = False,
    config: Annotated[Path | None, typer.Option(help="with --local: YAML file of the configuration")] = None,
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    no_speculation: Annotated[bool, typer.Option("--no-speculation", help="draft nothing: one token per step")] = False,
    max_drafts: Annotated[int | None, typer.Option(help="maximum number of drafts verified per step")] = None,
) -> None:
    """Stream the continuation of PROMPT to the terminal."""
    from cluster import generate as terminal

    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    drafts = 0 if no_speculation else max_drafts
    try:
        if local:
            terminal.locally(prompt, _load(config), max_tokens, drafts, options)
        else:
            terminal.remotely(prompt, address, application, max_tokens, drafts, options)
    except terminal.GenerateFailed as error:
        _fail(str(error))


@app.command()
def stats(address: Address = DEFAULT_ADDRESS, application: Application = DEFAULT_APPLICATION) -> None:
    """Show the statistics of every replica: queues, pages, leases, transfers, speculation."""
    import grpc
    from rich.console import Console

    from cluster.client import Client
    from cluster.tables import replica_table, speculation_table, warnings

    with Client(address, application) as client:
        try:
            found = client.stats()
        except grpc.RpcError as error:
            _fail(f"{address}: {error.code().name}: {error.details()}")
    console = Console()
    console.print(replica_table(found))
    if table := speculation_table(found):
        console.print(table)
    for warning in warnings(found):
        console.print(warning, style="bold red", soft_wrap=True)


@app.command()
def version() -> None:
    """Print the versions of sparkpool and of the main packages it uses."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    for package in ("sparkpool", "ray", "torch", "transformers", "nixl", "grpcio"):
        try:
            typer.echo(f"{package} {installed(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package} not installed")


def main() -> None:
    app()


def _show(settings: "Config") -> None:
    import yaml

    from cluster.serving.front import switches

    content = yaml.safe_dump(_deploy_config(settings), sort_keys=False)
    exported = "".join(f"# {name}={value}\n" for name, value in switches(settings.gateway).items())
    typer.echo(f"# Every `ray start` of the cluster needs this in its environment:\n{exported}{content}", nl=False)


def _submit(settings: "Config", address: str) -> None:
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    content = _deploy_config(settings)
    try:
        ServeSubmissionClient(address).deploy_applications(content)
    except (ConnectionError, RuntimeError) as error:
        _fail(f"{address}: {error}")
    typer.echo(f"Submitted to {address}; `serve status --address {address}` shows when it runs.")


def _serve_here(settings: "Config") -> None:
    import signal
    import threading

    from rich.console import Console

    from cluster.serving.app import running
    from cluster.serving.front import addresses
    from engine.errors import ConfigError

    console = Console(stderr=True)
    stop = threading.Event()
    console.print(f"Starting Ray, then every pool of {settings.model.served_name} ...")
    try:
        with running(settings, console.print):
            for number in (signal.SIGINT, signal.SIGTERM):  # only now: starting Ray sets handlers of its own
                signal.signal(number, lambda *_: stop.set())
            where = ", ".join(addresses(settings.gateway, DEFAULT_APPLICATION))
            console.print(f"Ready: gRPC on {where} (plaintext). Ctrl-C stops.", soft_wrap=True)
            stop.wait()
            console.print("Draining ...")
    except ConfigError as error:
        _fail(str(error))


def _deploy_config(settings: "Config") -> dict[str, object]:
    from cluster.serving.app import deploy_config
    from engine.errors import ConfigError

    try:
        return deploy_config(settings)
    except ConfigError as error:
        _fail(str(error))


def _load(file: Path | None) -> "Config":
    from engine.config import Config
    from engine.errors import ConfigError

    try:
        return Config.load(file)
    except ConfigError as error:
        _fail(str(error))
