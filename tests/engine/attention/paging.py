"""Running one of our attention modules over pages, chunk by chunk, and formulas to compare it with.

S = tokens of one sequence, D = hidden or head size, P = rope size, H = heads
"""

from typing import Any

import torch
from torch import Tensor, nn

from engine.attention import PagedAttention, PagedMLA
from engine.batch import Batch, Row
from engine.kernels import use_kernels
from engine.pages import CacheLayout, Pages, PageStore

THETA, PAGE_TOKENS = 10_000.0, 16
CPU = torch.device("cpu")


def randomise(module: nn.Module) -> None:
    for tensor in module.parameters():
        tensor.data = torch.randn_like(tensor) * (1.0 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5)


def computed(module: PagedAttention) -> Any:
    """The module as `use_kernels` leaves it."""
    parent = nn.ModuleDict({"attention": module})
    use_kernels(parent)
    return parent["attention"]


@torch.inference_mode()
def over_pages(module: Any, hidden: list[Tensor], chunks: list[int]) -> list[Tensor]:
    """The module's output for several sequences [S, D] at once, `chunks[step]` tokens of each in a step."""
    layout = CacheLayout.of(module.entries, PAGE_TOKENS)
    pages = Pages(layout, PageStore(layout, dict.fromkeys(layout.groups, 200), CPU))
    tables = [pages.open(f"row-{r}") for r in range(len(hidden))]
    starts = [sum(len(h) for h in hidden[:r]) for r in range(len(hidden))]
    hidden_TD = torch.cat(hidden)
    out_TD = torch.full_like(hidden_TD, torch.nan)
    done = 0
    while done < max(map(len, hidden)):
        chunk = chunks.pop(0) if chunks else 64
        rows = []
        for r, table in enumerate(tables):
            end = min(done + chunk, len(hidden[r]))
            if end > done:
                pages.trim(table, done)
                assert pages.extend(table, end)
                rows.append(Row([starts[r] + p for p in range(done, end)], done, table, 1))
        batch = Batch.of(rows, layout, CPU)
        own = getattr(module, "paged", module)
        positions = rope_angles(batch.positions_T, own.rope if isinstance(own, PagedMLA) else own.head_dim)
        embedded = (positions.cos().float()[None], positions.sin().float()[None])
        out_TD[batch.token_ids_T] = module(hidden_TD[batch.token_ids_T][None], embedded, batch, pages.store)[0][0]
        done += chunk
    return list(out_TD.split([len(h) for h in hidden]))


def rope_angles(positions_S: Tensor, size: int) -> Tensor:
    """[S, P]: angle i of P/2, twice over (transformers' order)."""
    frequency = THETA ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = positions_S[:, None].double() * frequency
    return torch.cat([angles, angles], dim=-1)


def rotated(x_SHP: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """Turn each pair (a, b) of components as the complex number a + ib by its position times its frequency."""
    size = x_SHP.shape[-1]
    angles_SP = rope_angles(torch.arange(len(x_SHP)), size)
    out = torch.empty_like(x_SHP)
    for i, (a, b) in enumerate(pairs):
        turned = torch.complex(x_SHP[..., a], x_SHP[..., b]) * torch.exp(1j * angles_SP[:, i, None])
        out[..., a], out[..., b] = turned.real, turned.imag
    return out


def rms(x: Tensor, norm: nn.Module) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.double()


def linear(x: Tensor, module: nn.Module) -> Tensor:
    return x @ module.weight.double().T


def softmax_attention(q_SHD: Tensor, k_SHD: Tensor, v_SHE: Tensor, scale: float, window: int | None) -> Tensor:
    """Row by row and head by head: what position s sees are the positions up to s, inside the window."""
    out = []
    for s in range(len(q_SHD)):
        first = 0 if window is None else max(0, s - window + 1)
        scores_HK = torch.einsum("hd,khd->hk", q_SHD[s], k_SHD[first : s + 1]) * scale
        out.append(torch.einsum("hk,khe->he", scores_HK.softmax(-1), v_SHE[first : s + 1]))
    return torch.stack(out)
