"""The command `sparkpool compare`. It starts no cluster, and needs neither Ray nor torch."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.drafters import fail

commands = typer.Typer()


@commands.command()
def compare(
    scenario: Annotated[Path | None, typer.Argument(help="YAML file: systems, workload, assumptions")] = None,
    out: Annotated[Path, typer.Option(help="folder for reports; each gets a folder of its own there")] = Path("report"),
    validate: Annotated[
        bool, typer.Option("--validate", help="only compare predictions with published measurements")
    ] = False,
    predict_dspark: Annotated[
        Path | None, typer.Option(help="CSV of a curve measured with MTP-1: print the curve predicted for DSpark")
    ] = None,
    model: Annotated[
        str, typer.Option(help="with --predict-dspark: the model, if the file has curves of several")
    ] = "",
) -> None:
    """Compare measured and modelled systems: write an HTML page, its figures and charts.

    Simulated points are kept, so a run that was interrupted continues.
    """
    from engine.errors import ConfigError

    if sum((scenario is not None, validate, predict_dspark is not None)) != 1:
        fail("give one of: a scenario, --validate, --predict-dspark")
    if model and predict_dspark is None:
        fail("--model: needs --predict-dspark")
    try:
        if predict_dspark is not None:
            _predict(predict_dspark, model)
        elif validate:
            _validate(out / "validation")
        else:
            assert scenario is not None
            _compare(scenario, out / scenario.stem)
    except ConfigError as error:
        fail(str(error))


def _compare(scenario: Path, folder: Path) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from compare.report.build import Comparison

    console = Console(stderr=True)
    comparison = Comparison.of(scenario)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        comparison.run(folder, lambda what, done, of: bar.update(task, description=what, completed=done, total=of))
    console.print(f"Written: {folder / 'index.html'}", soft_wrap=True)


def _validate(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from compare.published.checks import checks
    from compare.report.document import ReportDocument
    from compare.report.files import check_library, write
    from compare.report.validation import section

    check_library()
    table = Table("group", "what", "predicted", "published", "off")
    for check in checks():
        off = f"{100 * check.error:+.1f}%" + (" (fitted)" if check.fitted else "")
        published = f"{_digits(check.published)} {check.unit}"
        table.add_row(check.group, check.what, _digits(check.predicted), published, off)
    Console().print(table)
    write(ReportDocument("Predicted against published", {}, (section(),)), folder)
    Console(stderr=True).print(f"Written: {folder / 'index.html'}", soft_wrap=True)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _predict(curve: Path, model: str) -> None:
    from compare.published.curves import as_csv, predict_file

    typer.echo(as_csv(predict_file(curve, model)), nl=False)
