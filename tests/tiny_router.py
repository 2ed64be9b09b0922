"""Random routers over any head, with clusters of different sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from nanospec.vocab.router import Router, sample_rows


def tiny_router(
    head_weight: Tensor, seed: int, num_clusters: int = 7, hidden_size: int = 5, looks_ahead: bool = False
) -> Router:
    """Sizes and members are random, and so is what it scores."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = head_weight.shape[0]
    cuts = torch.randperm(vocab_size - 1, generator=generator)[: num_clusters - 1].sort().values + 1
    bounds = torch.cat((torch.zeros(1, dtype=torch.int64), cuts, torch.tensor([vocab_size])))
    token_ids = torch.randperm(vocab_size, generator=generator)
    router = Router(token_ids, bounds.diff(), sample_rows(head_weight), hidden_size, looks_ahead)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return router.requires_grad_(False)
