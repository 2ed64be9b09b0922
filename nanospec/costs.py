"""What speculation costs where memory traffic is all that counts."""

from __future__ import annotations

from transformers import PreTrainedModel


def memory_bound_speedup(accept_length: float, num_passes: int, draft_params: int, target_params: int) -> float:
    """Speed over plain decoding if a pass takes as long as its weights take to be read: MBSU.

        MBSU = tau / (1 + gamma c),  c = draft_params / target_params

    tau    accept_length: tokens per target pass, the bonus token included (block efficiency)
    gamma  num_passes: passes of the draft per step, the depth of its tree
    c      weights that one pass of the draft reads, of those that one pass of the target reads

    VocabTrim (Goel et al. 2025, arXiv 2506.22694) reports it; the definition by numbers of parameters is that of Goel
    et al. 2024 (arXiv 2403.00858). Neither caches nor the width of a tree count.
    Example: 3.5 tokens, 5 passes of a draft with 2 % of the target's weights: 3.5 / 1.1 = 3.18.

    Raises ValueError unless accept_length is at least 1 and the others are above 0.
    """
    if not accept_length >= 1:
        raise ValueError(f"accept_length must be at least 1, the bonus token, got {accept_length}")
    for name, value in (("num_passes", num_passes), ("draft_params", draft_params), ("target_params", target_params)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return accept_length / (1 + num_passes * draft_params / target_params)


def params_per_pass(model: PreTrainedModel) -> int:
    """Weights that a pass over one token reads: all but an embedding that is not the head too, of which it reads a row.

    All experts count, where a model has them.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    total = sum(parameter.numel() for parameter in model.parameters())  # a shared one counts once
    return total if embedding.weight is head.weight else total - embedding.weight.numel()
