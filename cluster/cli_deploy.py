"""The commands `sparkpool deploy ...`: what an operator wants to know before the machines are there."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@commands.callback()
def deploy() -> None:
    """Look at cluster files and configurations before they cost anything."""


@commands.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="cluster files for `ray up`, sparkpool configurations, or both")],
) -> None:
    """Say of each file what would fail: a line for each finding, exit 1 if something would.

    A configuration is checked against the nodes of the cluster files named with it, or else against this machine.
    Nothing is started and nothing is loaded.
    """
    from cluster.deploy_check import check as findings

    failed = False
    for finding in findings(files):
        failed |= finding.verdict == "FAILS"
        typer.echo(str(finding))
    raise typer.Exit(int(failed))
