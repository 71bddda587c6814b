"""DeepSeek-V3's expert balance without an auxiliary loss (arXiv 2412.19437, section 2.1.2)."""

import torch
from torch import Tensor, nn


class ExpertBalance:
    """Counts each router's choices and moves its selection bias towards an even load."""

    def __init__(self, modules: nn.Module) -> None:
        self.load: dict[nn.Module, Tensor] = {}
        for module in modules.modules():
            if hasattr(module, "e_score_correction_bias"):
                module.register_forward_hook(self._count)

    def _count(self, router: nn.Module, inputs: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
        if router.training:
            bias = router.e_score_correction_bias
            assert isinstance(bias, Tensor)
            counted = torch.bincount(output[2].flatten(), minlength=len(bias)).float()
            self.load[router] = self.load.get(router, torch.zeros_like(bias)) + counted

    def step(self, rate: float) -> float:
        """Move every bias by `rate` and return the highest ratio of a router's busiest expert to its mean load."""
        worst = 0.0
        for router, load in self.load.items():
            assert isinstance(router.e_score_correction_bias, Tensor)
            router.e_score_correction_bias += rate * torch.sign(load.mean() - load)
            worst = max(worst, float(load.max() / load.mean()))
        self.load.clear()
        return worst
