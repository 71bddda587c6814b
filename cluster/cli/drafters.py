"""The commands of `sparkpool` that train and measure drafters. Only `train --workers` needs Ray."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

commands = typer.Typer(pretty_exceptions_enable=False)


@commands.command()
def train(
    file: Annotated[Path, typer.Argument(help="the training's YAML file (its keys: train/drafter/config.py)")],
    workers: Annotated[int, typer.Option(help="processes that share each step; more than one starts Ray Train")] = 1,
    threads: Annotated[int, typer.Option(help="threads of each worker; 0 divides the cores among them")] = 0,
) -> None:
    """Train a DSpark drafter: the target writes text, its hidden states are kept, and the drafter learns from both.

    To continue a run that was stopped or killed, give the same command again.
    """
    import signal

    from rich.console import Console

    from engine.errors import ConfigError
    from train.drafter.config import TrainConfig
    from train.drafter.progress import ProgressBars
    from train.drafter.run import DrafterRun
    from train.provenance import configure_process

    console = Console(stderr=True, soft_wrap=True)
    try:
        config = TrainConfig.load(file)
        if workers > 1:
            from cluster.training import train_with_ray

            train_with_ray(config, workers, threads, console.print)
        else:
            configure_process(threads)
            with ProgressBars(console) as bars:
                run = DrafterRun(config, report=bars)
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, lambda *_: run.stop.set())
                trainer = run.run()
            if trainer.steps < config.training.steps:
                fail(f"stopped after {trainer.steps} of {config.training.steps} steps; the same command continues")
    except ConfigError as error:
        fail(str(error))
    console.print(f"{config.out}: written")


@commands.command("eval")
def evaluate(
    drafter: Annotated[str, typer.Argument(help="a drafter's folder, or mtp: the target's own next-token layer")],
    target: Annotated[Path | None, typer.Option(help="the target's folder; default: the shipped model")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON Lines with prompt, messages or prompt_token_ids, and domain; default: Python source"),
    ] = None,
    requests: Annotated[int, typer.Option(help="maximum requests of each domain")] = 48,
    skip: Annotated[int, typer.Option(help="skip the first N prompts of each domain, which calibration used")] = 0,
    prompt_tokens: Annotated[int, typer.Option(help="maximum tokens of a prompt, without --prompts")] = 128,
    max_tokens: Annotated[int, typer.Option(help="maximum tokens of an answer")] = 160,
    setting: Annotated[list[str] | None, typer.Option(help="greedy, sampled or seeded; may be repeated")] = None,
    concurrency: Annotated[int, typer.Option(help="requests that run at once")] = 8,
    dtype: Annotated[str, typer.Option(help="the target's type: float32, bfloat16, float16")] = "float32",
    device: Annotated[str, typer.Option(help="a torch device")] = "cpu",
    threads: Annotated[int, typer.Option(help="threads; 0: one for each core")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures to this file")] = None,
    plots: Annotated[Path | None, typer.Option(help="write plots to this folder (needs matplotlib)")] = None,
    records: Annotated[Path | None, typer.Option(help="keep the recorded steps here, for `calibrate`")] = None,
) -> None:
    """Measure a drafter in the engine: accepted length, acceptance by position, confidence, time of a round.

    Settings: greedy; and temperature 1 by both acceptance rules, rejection sampling and the one for requests with a
    seed of their own.
    """
    import torch
    from rich.console import Console

    from cluster.tables import acceptance_table, evaluation_table
    from engine.config import SHIPPED_MODEL
    from engine.errors import ConfigError
    from engine.models import load_model
    from train.drafter.engines import DrafterSource
    from train.drafter.evaluation import Evaluation, settings_named, write_json
    from train.drafter.plots import draw_evaluation
    from train.drafter.prompts import corpus_prompts, file_prompts
    from train.provenance import configure_process

    configure_process(threads)
    path = target or SHIPPED_MODEL
    try:
        settings = settings_named(setting or [])
        if prompts:
            domains = file_prompts(prompts, path, requests, skip)
        else:
            domains = corpus_prompts(path, requests, prompt_tokens, skip)
        model = load_model(path, getattr(torch, dtype), torch.device(device))
        source: DrafterSource = "mtp" if drafter == "mtp" else Path(drafter)
        evaluation = Evaluation(model, path, source, concurrency, max_tokens, records)
        results = list(evaluation.measured(domains, settings, Console(stderr=True, soft_wrap=True).print))
    except (ConfigError, OSError, ValueError) as error:
        fail(str(error))
    Console(highlight=False).print(evaluation_table(results), acceptance_table(results))
    if json_file:
        write_json(results, json_file)
    if plots and not draw_evaluation(results, plots):
        fail("--plots: matplotlib is not installed")


@commands.command()
def calibrate(
    records: Annotated[Path, typer.Argument(help="a folder of recorded steps (decode.POOL.record)")],
    drafter: Annotated[Path, typer.Option(help="the folder of the recorded drafter; gets calibration.json")],
    plot: Annotated[Path | None, typer.Option(help="write a reliability diagram, PNG (needs matplotlib)")] = None,
) -> None:
    """Fit temperatures to a drafter's confidences, from recorded acceptances of its drafts."""
    from rich.console import Console

    from cluster.tables import calibration_table
    from engine.errors import ConfigError
    from train.drafter.calibrate import calibrate as fit_temperatures
    from train.drafter.plots import reliability_diagram

    try:
        fit = fit_temperatures(records, drafter)
    except (ConfigError, OSError, ValueError) as error:
        fail(str(error))
    Console(highlight=False).print(calibration_table(fit))
    curves = [("before", fit.before.reliability), ("after", fit.after.reliability)]
    if plot and not reliability_diagram(plot, curves):
        fail("--plot: matplotlib is not installed")


def fail(message: str) -> NoReturn:
    """Print what is wrong and exit with code 1."""
    typer.echo(f"sparkpool: {message.lstrip()}", err=True)
    raise typer.Exit(1)
