"""Train a drafter with our loop and with plain transformers: tokens per second and peak memory.

The shipped drafter's shape and target, random text, the same sequences and anchors in each step:

    plain          transformers' target and attention under one dense mask, logits of all rows, autograd through them
    ours, online   the target runs in the engine in every step, blocks in packs, logits in chunks
    ours, cached   the same with the target's states from disk, as the shipped drafter was trained

All three must have the same losses (to 2 %, arithmetic is bfloat16). Memory is what a step adds to the process at its
peak.
"""

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from bench.ceiling import MachineRates
from bench.shape import BenchOptions, BenchReport, seconds_of
from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL
from train.drafter.blocks import Blocks, ContextEntries, block_mask
from train.drafter.config import TrainConfig, TrainingSection
from train.drafter.features import CachedFeatures, OnlineFeatures
from train.drafter.loss import DraftLosses
from train.drafter.sequences import Sequences
from train.drafter.shape import drafter_config
from train.drafter.target import FrozenTarget
from train.drafter.trainer import DrafterTrainer, StepSample
from train.drafter.workers import ALONE

SHAPES = ((8, 320, 32), (2, 2048, 128))  # sequences of a step, tokens and anchors of each
ROUNDS = 4
SPEED_TARGET, MEMORY_TARGET = 1.5, 0.5


class PlainTrainer(DrafterTrainer):
    """The same drafter, optimizer and batches, with a straightforward loss in plain transformers."""

    plain: Any

    def _losses(self, sample: StepSample, mine: list[int]) -> DraftLosses:
        section, size = self.section, self.model.config.block_size
        model: Any = self.model
        numbers = [sample.numbers[i] for i in mine]
        token_BT = pad_sequence([torch.tensor(self.text.tokens(n)) for n in numbers], batch_first=True)
        token_BT = token_BT.to(section.device)
        blocks = Blocks(token_BT, sample.anchor_BN[mine].to(section.device), size)
        with torch.no_grad():
            found = self.plain(token_BT, output_hidden_states=True, use_cache=False)
            taps_BTF = torch.cat([found.hidden_states[i + 1] for i in model.config.target_layer_ids], dim=-1)
            p_RV = blocks.at(found.logits.float().softmax(-1))
        with torch.autocast(torch.device(section.device).type, torch.bfloat16, enabled=section.dtype == "bfloat16"):
            hidden_RD = self._hidden(model.hidden_norm(model.fc(taps_BTF)), blocks)
            before_RM = model.markov_head.markov_w1(blocks.at(token_BT))
            logits_RV = self.plain.lm_head(hidden_RD) + model.markov_head.markov_w2(before_RM)
            confidence_R = model.confidence_head(torch.cat([hidden_RD, before_RM], dim=-1))
        log_q_RV = logits_RV.float().log_softmax(-1)
        weight_R = sample.weight_BNK[mine].flatten().to(section.device)
        cross_entropy = (weight_R * -(p_RV * log_q_RV).sum(-1)).sum()
        l1_R = (log_q_RV.exp() - p_RV).abs().sum(-1)
        acceptance_R = (1 - 0.5 * l1_R.detach()).clamp(0, 1)
        confidence_loss_R = functional.binary_cross_entropy_with_logits(
            confidence_R.float(), acceptance_R, reduction="none"
        )
        shares, l1, confidence = section.losses, (weight_R * l1_R).sum(), (weight_R * confidence_loss_R).sum()
        total = shares.cross_entropy * cross_entropy + shares.l1 * l1 + shares.confidence * confidence
        return DraftLosses(total, cross_entropy.detach(), l1.detach(), confidence.detach(), acceptance_R)

    def _hidden(self, context_BTD: Tensor, blocks: Blocks) -> Tensor:
        model, position_BNK = self.model, blocks.position_BNK
        ids_BNK = torch.full_like(position_BNK, model.config.mask_token_id)
        ids_BNK[..., 0] = blocks.token_BT.gather(1, blocks.anchor_BN)
        hidden_BSD = self.plain.get_input_embeddings()(ids_BNK.flatten(1))
        positions = torch.arange(blocks.token_BT.shape[1], device=position_BNK.device)[None].expand(
            len(position_BNK), -1
        )
        ropes = [model.rotary_emb(context_BTD, positions), model.rotary_emb(hidden_BSD, position_BNK.flatten(1))]
        mask = block_mask(blocks.anchor_BN, blocks.block_size, blocks.token_BT.shape[1])
        for layer in model.layers:
            entries = ContextEntries.of(layer.self_attn, context_BTD, ropes[0])
            hidden_BSD = layer(hidden_BSD, attention_mask=mask, position_embeddings=ropes[1], cache=entries)
        hidden: Tensor = model.norm(hidden_BSD).flatten(0, 1)
        return hidden


def run(report: BenchReport) -> None:
    options = report.options
    rates = MachineRates.measured(options)
    shapes, rounds = (((2, 64, 4),), 2) if options.quick else (SHAPES, 1 + ROUNDS)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for shape in shapes:
            sides = _sides(shape, options, Path(scratch) / str(shape[1]))
            size = sides["plain"].model
            products = 6 * shape[0] * shape[2] * size.config.block_size * sum(p.numel() for p in size.parameters())
            what = f"{shape[0]} x {shape[1]} tokens, {shape[2]} anchors"
            report.ceiling(
                f"{what}: the drafter's products alone, tok/s", shape[0] * shape[1] / (products / rates.flops)
            )
            rows += _measured(report, what, sides, shape, rounds)
    report.table("training", rows)
    for row in rows:
        if row["side"] == "ours, cached":
            report.goal(f"{row['step']}, over plain", row["over_plain"], SPEED_TARGET, "x")
            memory = row["memory_over_plain"]
            report.goal(f"{row['step']}, memory of plain", memory, MEMORY_TARGET, "x", at_most=True)


def _sides(shape: tuple[int, int, int], options: BenchOptions, scratch: Path) -> dict[str, DrafterTrainer]:
    sequences, length, anchors = shape
    config = TrainConfig.load(SHIPPED_DRAFTER / "train.yaml")
    update = {"sequences": sequences, "anchors": anchors, "steps": 1000, "device": str(options.device)}
    section: TrainingSection = config.training.model_copy(update=update)
    raw = drafter_config(SHIPPED_MODEL, config.drafter, anchors)
    generator = np.random.default_rng(0)
    count = 4 * sequences
    text = Sequences(
        generator.integers(2, 4096, (count, length)).astype(np.uint32), np.zeros(count, int), np.full(count, length)
    )
    target = FrozenTarget.load(SHIPPED_MODEL, config.drafter.target_layer_ids, torch.float32, options.device)
    cached = CachedFeatures(target, text, scratch, torch.bfloat16)
    cached.prepare(lambda done, total: None)
    online = OnlineFeatures(target, text)
    sides: dict[str, DrafterTrainer] = {
        "plain": PlainTrainer(section, raw, target, text, online, ALONE),
        "ours, online": DrafterTrainer(section, raw, target, text, online, ALONE),
        "ours, cached": DrafterTrainer(section, raw, target, text, cached, ALONE),
    }
    plain = sides["plain"]
    assert isinstance(plain, PlainTrainer)
    plain.plain = AutoModelForCausalLM.from_pretrained(SHIPPED_MODEL, dtype=torch.float32, attn_implementation="sdpa")
    plain.plain = plain.plain.to(options.device).eval().requires_grad_(False)
    attention: Any
    for attention in plain.model.attentions:
        attention.config._attn_implementation = "sdpa"
    return sides


def _measured(
    report: BenchReport, what: str, sides: dict[str, DrafterTrainer], shape: tuple[int, int, int], rounds: int
) -> list[dict[str, Any]]:
    losses: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, list[int]] = {name: [] for name in sides}

    def timed(name: str) -> Callable[[int], float]:
        def step(number: int) -> float:
            before = _reset_peak(report.options.device)
            seconds = seconds_of(lambda: losses[name].append(sides[name].step()["loss"]))
            peaks[name].append(_peak(report.options.device) - before)
            return seconds

        return step

    samples = report.alternately(what, {name: timed(name) for name in sides}, range(rounds))
    for name, found in losses.items():
        assert np.allclose(found, losses["plain"], rtol=0.02), f"{name} loses {found}, plain {losses['plain']}"
    tokens = shape[0] * shape[1]
    drafts = shape[0] * shape[2] * sides["plain"].model.config.block_size
    return [
        {
            "step": what,
            "side": name,
            "tok_s": tokens / samples.median(name),
            "drafts_s": drafts / samples.median(name),
            "over_plain": samples.speed_up(name, "plain"),
            "peak_kib_per_token": float(np.median(peaks[name][1:])) / tokens / 1024,
            "memory_over_plain": float(np.median(peaks[name][1:]) / np.median(peaks["plain"][1:])),
        }
        for name in sides
    ]


def _reset_peak(device: torch.device) -> int:
    """Reset the peak and return the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
