"""A packed linear layer against torch's own."""

import pytest
import torch
from torch import nn

from engine import kernels
from engine.kernels import use_kernels
from engine.kernels.linear import MIN_ELEMENTS, PackedLinear

IN, OUT = 300, 500


class Tied(nn.Module):
    """A head that shares the embedding's matrix, and a layer too small to be packed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(OUT, IN)
        self.head = nn.Linear(IN, OUT)
        self.head.weight = self.embedding.weight
        self.small = nn.Linear(16, 16)


@pytest.mark.parametrize("shape", [(0,), (1,), (2,), (17,), (600,), (1, 5), (3, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_gives_the_output_of_the_plain_one(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(IN, OUT, bias=bias)
    x = torch.randn(*shape, 2 * IN)[..., ::2] if len(shape) == 1 else torch.randn(*shape, IN)

    assert torch.allclose(PackedLinear(plain)(x), plain(x), atol=1e-5)


def test_bfloat16_differs_by_its_rounding_only() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no packed bfloat16")
    torch.manual_seed(0)
    plain = nn.Linear(IN, OUT, dtype=torch.bfloat16)
    x = torch.randn(9, IN, dtype=torch.bfloat16)

    assert torch.allclose(PackedLinear(plain)(x), plain(x), atol=1e-2, rtol=1e-2)


def test_large_layers_are_packed_and_the_embedding_stays_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing of ours was built."""
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert IN * OUT >= MIN_ELEMENTS
    model = Tied()
    rows = model.embedding.weight[:3].clone()

    use_kernels(model)

    assert isinstance(model.head, PackedLinear)
    assert model.head.weight.shape == (OUT, IN)
    assert isinstance(model.small, nn.Linear)
    assert torch.equal(model.embedding(torch.arange(3)), rows)
