"""Compare the accepted length of the shipped drafter, two ablations of it, and MTP-1.

Measured in the engine with every draft verified: held-out Python of three domains (train/drafter/prompts.py), greedy
and at temperature 1 by both acceptance rules.

    DSpark    the shipped drafter, calibrated on other prompts than these
    DFlash    no Markov head, no confidence head, cross-entropy alone (train/ablations/dflash.yaml)
    rank 0    DSpark without its Markov head (train/ablations/rank0.yaml)
    MTP-1     the checkpoint's next-token layer, one draft in every step

The ablations are not shipped; `make ablations` trains them into build/, on the same text for as many steps.
"""

from pathlib import Path
from typing import Any

import torch

from bench.shape import BenchReport
from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL
from engine.models import load_model
from train.drafter.engines import DrafterSource
from train.drafter.evaluation import DrafterResult, Evaluation, Setting
from train.drafter.plots import draw_evaluation
from train.drafter.prompts import corpus_prompts
from train.drafter.rounds import figures

BUILD = Path(__file__).parent.parent / "build"
DSPARK, MTP = "DSpark", "MTP-1"
SIDES: dict[str, DrafterSource] = {
    DSPARK: SHIPPED_DRAFTER,
    "DFlash": BUILD / "tiny-mla-dflash",
    "rank 0": BUILD / "tiny-mla-rank0",
    MTP: "mtp",
}
REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS, CONCURRENCY = 48, 128, 160, 8
GREEDY, SAMPLED, SEEDED = Setting(0.0), Setting(1.0), Setting(1.0, "seeded")
GOAL_DOMAIN, GREEDY_TARGET, SAMPLED_TARGET, OVER_TARGET, ECE_TARGET = "source", 3.0, 2.5, 1.10, 0.02


def run(report: BenchReport) -> None:
    options = report.options
    requests, tokens = (2, 24) if options.quick else (REQUESTS, OUTPUT_TOKENS)
    sides = {name: drafter for name, drafter in SIDES.items() if drafter == "mtp" or Path(drafter).exists()}
    for name in SIDES.keys() - sides.keys():
        report.note(f"{name} was not measured: it is not shipped, and `make ablations` has not been run")
    model = load_model(SHIPPED_MODEL, torch.float32, options.device)
    asked = {"requests": requests, "tokens": tokens, "concurrency": CONCURRENCY}
    report.table("asked", [asked])
    prompts = corpus_prompts(SHIPPED_MODEL, requests, PROMPT_TOKENS)
    found: dict[str, list[DrafterResult]] = {}
    for name, drafter in sides.items():
        evaluation = Evaluation(model, SHIPPED_MODEL, drafter, CONCURRENCY, tokens)
        found[name] = list(evaluation.measured(prompts, (GREEDY, SAMPLED, SEEDED)))
        blocks = max(len(result.figures.acceptance) for result in found[name])
        report.ceiling(f"{name}, tokens of a round", 1 + blocks)
    report.table("accepted length", [_row(name, r) for name, results in found.items() for r in results])
    _goals(report, found)
    draw_evaluation(found[DSPARK], options.out / "acceptance")


def _row(name: str, result: DrafterResult) -> dict[str, Any]:
    found, cost = result.figures, result.cost
    return {
        "drafter": name,
        "domain": result.domain,
        "setting": result.setting,
        "rounds": found.rounds,
        "accepted_length": found.accepted_length,
        "standard_error": found.accepted_length_error,
        "acceptance": " ".join(f"{value:.2f}" for value in found.acceptance),
        "ece": found.ece,
        "auc": found.auc,
        "draft_ms": cost.draft_ms,
        "verify_ms": cost.verify_ms,
        "plain_ms": cost.plain_ms,
        "speed_up": cost.speedup(found.accepted_length),
    }


def _goals(report: BenchReport, found: dict[str, list[DrafterResult]]) -> None:
    lengths = {(n, r.domain, r.setting): r.figures.accepted_length for n, results in found.items() for r in results}
    for setting, target in ((GREEDY, GREEDY_TARGET), (SAMPLED, SAMPLED_TARGET), (SEEDED, SAMPLED_TARGET)):
        own = lengths[DSPARK, GOAL_DOMAIN, setting.name]
        report.goal(f"accepted length, {GOAL_DOMAIN}, {setting.name}", own, target, "tokens")
        for other in found.keys() - {DSPARK}:
            over = own / lengths[other, GOAL_DOMAIN, setting.name]
            report.goal(f"accepted length, {GOAL_DOMAIN}, {setting.name}, over {other}", over, OVER_TARGET, "x")
    for setting in (GREEDY, SAMPLED):
        error = figures([r for result in found[DSPARK] if result.setting == setting.name for r in result.rounds]).ece
        assert error is not None
        report.goal(f"calibration error of survival, all domains, {setting.name}", error, ECE_TARGET, "", at_most=True)
