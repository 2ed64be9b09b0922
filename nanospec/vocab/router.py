"""A small classifier that says which clusters of head rows a drafter's state will need (DynaSpec, arXiv:2510.13847)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Where to find a head's identity: so many rows, evenly spread.
NUM_SAMPLED_ROWS = 16
# Distance of two roundings of a row to 16 bits, relative to its length, with some room: bfloat16 rounds to 2^-9.
ROW_TOLERANCE = 0.01


class Router(nn.Module):
    """scores = score(silu(hidden(state))), a number per cluster: how likely one of its ids is wanted next.

    token_ids    int64 [V]      rows of the head, cluster by cluster; the clusters wanted most often come first, and so
                                do the ids within each
    sizes        int64 [M]      rows of each cluster
    head_sample  float32 [s, D]  rows of the head that was clustered, for `check_head`
    hidden_size  width H between the two layers
    looks_ahead  have a second classifier, `ahead`, of what the drafter's layer reads: its output is not needed

    Raises ValueError unless the sizes are positive and add up to V, and token_ids holds each of V rows once.
    """

    token_ids: Tensor
    sizes: Tensor
    head_sample: Tensor

    def __init__(
        self, token_ids: Tensor, sizes: Tensor, head_sample: Tensor, hidden_size: int, looks_ahead: bool = False
    ) -> None:
        super().__init__()
        _check_clusters(token_ids, sizes)
        state_size, num_clusters = head_sample.shape[1], sizes.shape[0]
        self.hidden = nn.Linear(state_size, hidden_size)
        self.score = nn.Linear(hidden_size, num_clusters)
        self.ahead = _classifier(2 * state_size, hidden_size, num_clusters) if looks_ahead else None
        for name, buffer in {"token_ids": token_ids, "sizes": sizes, "head_sample": head_sample}.items():
            self.register_buffer(name, buffer)

    @property
    def vocab_size(self) -> int:
        """Rows of the head (V)."""
        return self.token_ids.shape[0]

    @property
    def state_size(self) -> int:
        """D of the states, and of the head."""
        return self.head_sample.shape[1]

    @property
    def num_clusters(self) -> int:
        return self.sizes.shape[0]

    def forward(self, states: Tensor) -> Tensor:
        """states [.., D] as the head reads them -> scores [.., M]. Of a wider state the first D numbers count."""
        return self.score(F.silu(self.hidden(states[..., : self.state_size])))

    def score_ahead(self, token_rows: Tensor, states: Tensor) -> Tensor:
        """Head rows of tokens [.., D] and the states before them [.., D] -> scores [.., M] of what follows the tokens.

        Only with `looks_ahead`. Of a wider state the first D numbers count.
        """
        assert self.ahead is not None, "the caller checks"
        return self.ahead(torch.cat((token_rows, states[..., : self.state_size]), -1))

    def positions(self) -> tuple[Tensor, Tensor]:
        """int64 [V] twice: the cluster that every row of the head is in, and its place there."""
        clusters = torch.arange(self.num_clusters, device=self.sizes.device).repeat_interleave(self.sizes)
        places = torch.arange(self.vocab_size, device=self.sizes.device) - (self.sizes.cumsum(0) - self.sizes)[clusters]
        cluster_of, place_of = torch.empty_like(clusters), torch.empty_like(places)
        return cluster_of.scatter_(0, self.token_ids, clusters), place_of.scatter_(0, self.token_ids, places)

    def check_head(self, head_weight: Tensor) -> None:
        """ValueError unless head_weight [V, D] is the head that was clustered, in whatever precision."""
        expected = (self.vocab_size, self.state_size)
        if tuple(head_weight.shape) != expected:
            raise ValueError(f"router must be made for a head of {tuple(head_weight.shape)}, got one for {expected}")
        sample = self.head_sample.float()
        distance = (sample_rows(head_weight).to(sample.device) - sample).norm(dim=1)
        if not bool((distance <= ROW_TOLERANCE * sample.norm(dim=1)).all()):
            raise ValueError(f"router must be made for this head, got one for another of the same shape, {expected}")


def _classifier(input_size: int, hidden_size: int, num_clusters: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(input_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, num_clusters))


def sample_rows(head_weight: Tensor) -> Tensor:
    """float32 [s, D]: the rows by which a head is known again."""
    vocab_size = head_weight.shape[0]
    rows = torch.arange(min(NUM_SAMPLED_ROWS, vocab_size), device=head_weight.device) * vocab_size // NUM_SAMPLED_ROWS
    return head_weight.detach()[rows].float()


def _check_clusters(token_ids: Tensor, sizes: Tensor) -> None:
    vocab_size = token_ids.shape[0]
    if sizes.shape[0] < 1 or int(sizes.min()) < 1 or int(sizes.max()) > vocab_size or sizes.sum() != vocab_size:
        raise ValueError(
            f"sizes must be positive and add up to {vocab_size}, got {sizes.shape[0]} of {int(sizes.sum())}"
        )
    if not torch.equal(token_ids.sort().values, torch.arange(vocab_size, device=token_ids.device)):
        raise ValueError(f"token_ids must hold every row of {vocab_size} once, got others")
