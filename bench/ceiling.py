"""Ceilings: what the machine can do at best, and what a step of a model needs.

A step cannot be faster than reading its weights and its requests' cached rows once, nor than its multiplications.
"""

import ctypes
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from bench.shape import BenchOptions
from engine.kernels.linear import PackedLinear
from engine.models import LoadedModel

PROBE_BYTES = 2**28  # far beyond any cache
PRODUCT_SIZE = 2048
TRIES = 5


@dataclass(frozen=True, kw_only=True)
class MachineRates:
    """Memory and multiplication rates of the machine: the best of a few tries, in float32."""

    read_bytes_per_second: float
    copy_bytes_per_second: float  # bytes read plus bytes written
    flops: float

    @classmethod
    def measured(cls, options: BenchOptions) -> "MachineRates":
        device, shrink = options.device, 8 if options.quick else 1
        num_bytes, size = PROBE_BYTES // shrink, PRODUCT_SIZE // shrink
        source = torch.ones(num_bytes // 4, device=device)
        target = torch.empty_like(source)
        return cls(
            read_bytes_per_second=num_bytes / _seconds(source.sum, device),
            copy_bytes_per_second=2 * num_bytes / _seconds(lambda: target.copy_(source), device),
            flops=2 * size**3 / min(_seconds(product, device) for product in _products(size, device)),
        )


def multiply_add_rate(threads: int, rounds: int = 10_000_000) -> float | None:
    """Measure the peak flop/s of a CPU's multiply-add units, the best of a few tries; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with TemporaryDirectory() as folder:
        built = Path(folder) / "peak.so"
        source = Path(__file__).parent / "peak.c"
        subprocess.run([compiler, "-O3", "-march=native", "-shared", "-fPIC", source, "-o", built], check=True)
        multiply_add = ctypes.CDLL(str(built)).multiply_add
    multiply_add.restype, multiply_add.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_void_p]

    def one(_: int) -> float:
        sink = ctypes.c_float()
        return float(multiply_add(rounds, ctypes.addressof(sink)))

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(TRIES):
            began = time.perf_counter()
            flop = sum(pool.map(one, range(threads)))
            best = max(best, flop / (time.perf_counter() - began))
    return best


def _products(size: int, device: torch.device) -> list[Callable[[], object]]:
    """List a square matrix product by each library."""
    x = torch.randn(size, size, device=device)
    linear = nn.Linear(size, size, bias=False, device=device)
    products: list[Callable[[], object]] = [lambda: x @ linear.weight]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = PackedLinear(linear)
        products.append(lambda: packed(x))
    return products


@torch.inference_mode()
def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the minimum of TRIES runs after a warm-up."""
    seconds = []
    for _ in range(1 + TRIES):
        started = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Weights:
    """A count of parameters, and their bytes."""

    count: int = 0
    bytes: int = 0

    def and_of(self, tensor: torch.Tensor) -> "Weights":
        return Weights(self.count + tensor.numel(), self.bytes + tensor.numel() * tensor.dtype.itemsize)


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """The weights and cache rows that a step reads. Shared parameters count once for each layer with them."""

    dense: Weights  # all but experts, head, and the embedding, of which a step reads few rows
    head: Weights
    experts: Weights
    num_experts: int
    experts_per_token: int
    cache_bytes_per_token: int  # over all layers

    @classmethod
    def of(cls, model: LoadedModel) -> "ModelCost":
        sizes = {"head": Weights(), "experts": Weights(), "dense": Weights()}
        tensors = [*model.module.named_parameters(remove_duplicate=False), *model.module.named_buffers()]
        for name, tensor in tensors:
            if "embed_tokens" not in name:
                kind = "experts" if ".experts." in name else "head" if name.startswith("lm_head") else "dense"
                sizes[kind] = sizes[kind].and_of(tensor)
        return cls(
            **sizes,
            num_experts=getattr(model.config, "n_routed_experts", None) or 1,
            experts_per_token=getattr(model.config, "num_experts_per_tok", None) or 1,
            cache_bytes_per_token=sum(entry.row_bytes for entry in model.entries),
        )

    def step_bytes(self, num_tokens: int, cached_tokens: int) -> float:
        """Return the bytes that a step reads: weights, with experts as chosen by random routing, and cached rows."""
        hit = 1 - (1 - self.experts_per_token / self.num_experts) ** num_tokens
        weights = self.dense.bytes + self.head.bytes + hit * self.experts.bytes
        return weights + cached_tokens * self.cache_bytes_per_token

    def step_flops(self, num_tokens: int, num_logits: int) -> float:
        """Count multiplications and additions with the weights, without attention."""
        experts = self.experts.count * self.experts_per_token / self.num_experts
        return 2 * (num_tokens * (self.dense.count + experts) + num_logits * self.head.count)

    def answer_seconds(self, rates: MachineRates, requests: int, prompt_tokens: int, output_tokens: int) -> float:
        """Return the minimum seconds for `requests` prompts and outputs at once: one step for all prompts, then one for
        every further token."""
        prefill = self.step_flops(requests * prompt_tokens, requests) / rates.flops
        cached = requests * (prompt_tokens + output_tokens // 2)
        reading = self.step_bytes(requests, cached) / rates.read_bytes_per_second
        step = max(reading, self.step_flops(requests, requests) / rates.flops)
        return prefill + (output_tokens - 1) * step
