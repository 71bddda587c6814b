"""`python -m train tiny-mla` trains, exports and measures the shipped model from installed packages alone.

`python -m train drafter FILE` does what `sparkpool train` does, as one of the processes that torchrun starts.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console

from train.drafter.config import TrainConfig
from train.drafter.progress import ProgressBars, no_progress
from train.drafter.run import DrafterRun
from train.drafter.workers import joined
from train.model.run import ModelRun
from train.model.trainer import Recipe
from train.provenance import configure_process


def train_drafter(config: TrainConfig) -> None:
    """Train as one of the workers that the environment names (RANK, WORLD_SIZE), or alone."""
    with joined(config.training.device) as (workers, device), ProgressBars(Console(soft_wrap=True)) as bars:
        DrafterRun(config.on(device), workers, bars if workers.is_first else no_progress).run()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    model = what.add_parser("tiny-mla", help="train the target")
    model.add_argument("--stop-early", action="store_true", help="export the last checkpoint as it is")
    model.add_argument("--out", type=Path, default=Path("models/tiny-mla"), help="the checkpoint folder to write")
    model.add_argument("--work", type=Path, default=Path("build/tiny-mla"), help="checkpoints and encoded corpus")
    model.add_argument("--minutes", type=float, default=Recipe.minutes, help="wall-clock budget of the training")
    model.add_argument("--tokens", type=int, help="budget in tokens instead (the better choice on a GPU)")
    model.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="a torch device")
    drafter = what.add_parser("drafter", help="train a drafter in every process that torchrun starts")
    drafter.add_argument("file", type=Path, help="the training's YAML file (its keys: train/drafter/config.py)")
    for command in (model, drafter):
        command.add_argument("--threads", type=int, default=0, help="threads of each process; 0: one for each core")
    arguments = parser.parse_args()
    configure_process(arguments.threads)
    if arguments.what == "drafter":
        train_drafter(TrainConfig.load(arguments.file))
    else:
        recipe = Recipe(minutes=arguments.minutes, tokens=arguments.tokens)
        ModelRun(recipe, arguments.out, arguments.work, arguments.device).run(arguments.stop_early)


if __name__ == "__main__":
    main()
