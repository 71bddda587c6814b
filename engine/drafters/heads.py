"""The two small heads of DSpark: the Markov head, which conditions a draft on the token before it, and the confidence
head.

Names of submodules are those of the published checkpoints (DeepSpec), so that their weights load as they are.

    vanilla    B = W2 W1[x]
    gated      B = W2 (sigmoid(Wg [h; W1[x]] + b) * W1[x])
    rnn        gate, candidate, output = joint [s; W1[x]; h];  s' = g s + (1 - g) tanh(candidate);  B = W2 tanh(output)

with x the token before, h the block's hidden state at this position, s the recurrent state (0 at first).

R = requests, D = hidden size, V = vocabulary, M = rank of the Markov head
"""

import torch
from torch import Tensor, nn


class MarkovHead(nn.Module):
    """The `vanilla` head, and the base of the others: an embedding of rank M and a projection to logits."""

    def __init__(self, vocab_size: int, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, vocab_size, bias=False)

    def start(self, num_requests: int) -> Tensor:
        """Return the state before the first draft [R, M]."""
        return self.markov_w1.weight.new_zeros(num_requests, self.rank)

    def forward(self, before_RM: Tensor, hidden_RD: Tensor, state_RM: Tensor) -> tuple[Tensor, Tensor]:
        """Return (bias of the base logits [R, V], the next state) from the embedded token before."""
        input_RM, state_RM = self.enter(before_RM, hidden_RD, state_RM)
        bias_RV: Tensor = self.markov_w2(input_RM)
        return bias_RV, state_RM

    def enter(self, before_RM: Tensor, hidden_RD: Tensor, state_RM: Tensor) -> tuple[Tensor, Tensor]:
        """Return (the input of W2, the next state)."""
        return before_RM, state_RM


class GatedMarkovHead(MarkovHead):
    def __init__(self, vocab_size: int, hidden_size: int, rank: int) -> None:
        super().__init__(vocab_size, hidden_size, rank)
        self.gate_proj = nn.Linear(hidden_size + rank, rank)

    def enter(self, before_RM: Tensor, hidden_RD: Tensor, state_RM: Tensor) -> tuple[Tensor, Tensor]:
        gate_RM = self.gate_proj(torch.cat([hidden_RD, before_RM], dim=-1)).sigmoid()
        return gate_RM * before_RM, state_RM


class RecurrentMarkovHead(MarkovHead):
    def __init__(self, vocab_size: int, hidden_size: int, rank: int) -> None:
        super().__init__(vocab_size, hidden_size, rank)
        self.joint_proj = nn.Linear(2 * rank + hidden_size, 3 * rank)

    def enter(self, before_RM: Tensor, hidden_RD: Tensor, state_RM: Tensor) -> tuple[Tensor, Tensor]:
        joint = self.joint_proj(torch.cat([state_RM, before_RM, hidden_RD], dim=-1))
        gate_RM, candidate_RM, output_RM = joint.chunk(3, dim=-1)
        gate_RM = gate_RM.sigmoid()
        state_RM = gate_RM * state_RM + (1 - gate_RM) * candidate_RM.tanh()
        return output_RM.tanh(), state_RM


MARKOV_HEADS: dict[str, type[MarkovHead]] = {
    "vanilla": MarkovHead,
    "gated": GatedMarkovHead,
    "rnn": RecurrentMarkovHead,
}


class ConfidenceHead(nn.Module):
    """Estimates sigmoid(w [h; W1[x]] + b), the probability that a draft is accepted if all before it are. The W1[x]
    part is optional."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(input_size, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [...] for features [..., inputs]."""
        logit: Tensor = self.proj(features)[..., 0]
        return logit
