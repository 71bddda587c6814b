"""Commands that compute the memory of models. They load no weights, and need neither Ray nor torch."""

from pathlib import Path
from typing import Annotated, TypeVar, get_args

import typer

from cluster.cli.drafters import fail

commands = typer.Typer()
T = TypeVar("T", bound=str)
MODEL = "a checkpoint's directory, a config.json, or the name of a known model (deepseek-v4-pro)"


@commands.command()
def layout(
    model: Annotated[str, typer.Argument(help=MODEL)],
    against: Annotated[str, typer.Option(help="another model, to compare with")] = "",
    cache: Annotated[str, typer.Option(help="cache precision: fp8, bf16, fp32; default: the family's usual one")] = "",
    index: Annotated[
        str, typer.Option(help="precision of index keys: fp4, fp8, bf16, fp32; default: the family's usual one")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Print the bytes of a model's weights, and of its cache per token and per request."""
    import json

    from rich.console import Console
    from rich.table import Table

    from engine.errors import ConfigError
    from hardware.attention import CachePrecision, IndexPrecision
    from hardware.layout import Layout
    from hardware.model import Model

    cache_precision = _choice("--cache", cache, get_args(CachePrecision))
    index_precision = _choice("--index", index, get_args(IndexPrecision))
    try:
        described = Model.of(_source(model), cache_precision, index_precision)
        found = Layout(described, Model.of(_source(against)) if against else None)
    except ConfigError as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
        return
    console = Console()
    for title, columns, rows in found.tables():
        table = Table(*columns, title=title, title_justify="left", show_header=any(columns))
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _choice(option: str, value: str, choices: tuple[T, ...]) -> T | None:
    if value and value not in choices:
        fail(f"{option}: {value!r} is none of {', '.join(choices)}")
    return next((choice for choice in choices if choice == value), None)


def _source(model: str) -> str | Path:
    return Path(model) if Path(model).exists() else model
