"""The commands `sparkpool deploy ...`."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@commands.callback()
def deploy() -> None:
    """Check cluster files and configurations before machines are started."""


@commands.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="cluster files for `ray up`, sparkpool configurations, or both")],
) -> None:
    """Report what would fail with each file, one line per finding; exit with 1 if something would.

    A configuration is checked against the nodes of the given cluster files, or without any against this machine.
    Nothing is started and no weights are loaded.
    """
    from cluster.deploy.check import check as findings

    failed = False
    for finding in findings(files):
        failed |= finding.severity == "FAILS"
        typer.echo(str(finding))
    raise typer.Exit(int(failed))
