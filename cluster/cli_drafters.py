"""The commands of `sparkpool` that make and measure drafters. They need neither Ray nor gRPC, but for `--workers`."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

commands = typer.Typer(pretty_exceptions_enable=False)


@commands.command()
def train(
    file: Annotated[Path, typer.Argument(help="what to train, and how: a YAML file (train/drafter_config.py)")],
    workers: Annotated[int, typer.Option(help="processes that share each step; more than one starts Ray Train")] = 1,
    threads: Annotated[int, typer.Option(help="for arithmetic, in each worker; 0 divides the cores among them")] = 0,
) -> None:
    """Train a DSpark drafter: have the target write text, keep its hidden states, learn, write the drafter.

    A run that was stopped, or killed, goes on where it was when the same command is given again.
    """
    import signal

    from rich.console import Console

    from engine.errors import ConfigError
    from train.drafter_config import TrainConfig
    from train.drafter_run import DrafterRun, use
    from train.progress import Bars

    console = Console(stderr=True, soft_wrap=True)
    try:
        config = TrainConfig.load(file)
        if workers > 1:
            from cluster.training import train_together

            train_together(config, workers, threads, console.print)
        else:
            use(threads)
            with Bars(console) as bars:
                run = DrafterRun(config, report=bars)
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, lambda *_: run.stop.set())
                trainer = run.run()
            if trainer.steps < config.training.steps:
                fail(f"stopped after {trainer.steps} of {config.training.steps} steps; the same command goes on")
    except ConfigError as error:
        fail(str(error))
    console.print(f"{config.out}: written")


@commands.command("eval")
def evaluate(
    context: typer.Context,
    drafter: Annotated[str, typer.Argument(help="a drafter's folder, or mtp: the target's own next-token layer")],
    target: Annotated[Path | None, typer.Option(help="its target; without one, the shipped model")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON Lines: prompt, messages or prompt_token_ids, and domain; without it, Python source"),
    ] = None,
    requests: Annotated[int, typer.Option(help="of each domain, at most")] = 48,
    skip: Annotated[int, typer.Option(help="so many of each domain first: calibrate and measure on others")] = 0,
    prompt_tokens: Annotated[int, typer.Option(help="of a prompt at most, without --prompts")] = 128,
    max_tokens: Annotated[int, typer.Option(help="of an answer")] = 160,
    setting: Annotated[list[str] | None, typer.Option(help="greedy, sampled, seeded; may be repeated")] = None,
    concurrency: Annotated[int, typer.Option(help="requests that run at once")] = 8,
    dtype: Annotated[str, typer.Option(help="of the target: float32, bfloat16, float16")] = "float32",
    device: Annotated[str, typer.Option(help="a torch device")] = "cpu",
    threads: Annotated[int, typer.Option(help="for arithmetic; 0 takes all cores")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
    plots: Annotated[Path | None, typer.Option(help="a folder for pictures (needs matplotlib)")] = None,
    records: Annotated[Path | None, typer.Option(help="a folder that keeps all steps, for `calibrate`")] = None,
) -> None:
    """Measure a drafter in the engine: accepted length, acceptance by place, confidence, what a round costs.

    Greedy and at temperature 1, there by both acceptance rules: rejection sampling, and the one for requests with a
    seed of their own.
    """
    from rich.console import Console

    from cluster.tables import evaluation_table, places_table
    from engine.errors import ConfigError
    from train.drafter_evaluation import Asked, keep
    from train.drafter_plots import draw
    from train.drafter_run import use

    use(threads)
    try:
        results = Asked(**context.params | {"setting": setting or []}).results(
            Console(stderr=True, soft_wrap=True).print
        )
    except (ConfigError, OSError, ValueError) as error:
        fail(str(error))
    Console(highlight=False).print(evaluation_table(results), places_table(results))
    if json_file:
        keep(results, json_file)
    if plots and not draw(results, plots):
        fail("--plots: matplotlib is not installed")


@commands.command()
def calibrate(
    records: Annotated[Path, typer.Argument(help="a directory of recorded steps (decode.POOL.record)")],
    drafter: Annotated[Path, typer.Option(help="the folder of the drafter that made them, for calibration.json")],
    plot: Annotated[Path | None, typer.Option(help="a PNG: reliability before and after (needs matplotlib)")] = None,
) -> None:
    """Fit temperatures to a drafter's confidences, from what became of its drafts."""
    from rich.console import Console

    from cluster.tables import calibration_table
    from engine.errors import ConfigError
    from train.calibrate import calibrate as fit_temperatures
    from train.drafter_plots import reliability_diagram

    try:
        fit = fit_temperatures(records, drafter)
    except (ConfigError, OSError, ValueError) as error:
        fail(str(error))
    Console(highlight=False).print(calibration_table(fit))
    if plot and not reliability_diagram(plot, "Survival of drafts", [("before", fit.before), ("after", fit.after)]):
        fail("--plot: matplotlib is not installed")


def fail(message: str) -> NoReturn:
    """Say what is wrong, and end with exit code 1."""
    typer.echo(f"sparkpool: {message.lstrip()}", err=True)
    raise typer.Exit(1)
