"""Commands that compute the memory of models. They load no weights, and need neither Ray nor torch."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.drafters import fail

commands = typer.Typer()
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
    from typing import Any

    from rich.console import Console
    from rich.table import Table

    from engine.errors import ConfigError
    from hardware.attention import WIDTH
    from hardware.layout import Layout
    from hardware.model import Model

    precisions: dict[str, Any] = {"cache": cache or None, "index": index or None}
    for name, value in precisions.items():
        allowed = [one for one in WIDTH if name == "index" or one != "fp4"]
        if value is not None and value not in allowed:
            fail(f"--{name}: {value!r} is none of {', '.join(allowed)}")
    try:
        found = Layout(Model.of(_source(model), **precisions), Model.of(_source(against)) if against else None)
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


def _source(model: str) -> str | Path:
    return Path(model) if Path(model).exists() else model
