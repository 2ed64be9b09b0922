"""Families told apart by their tensors alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanospec.checkpoints.detect import Family, count_layers, count_medusa_heads, detect_family, normalise_names

HIDDEN = 8


def meta(*names: str, width: int = HIDDEN) -> dict[str, Tensor]:
    return {name: torch.empty(HIDDEN, width, device="meta") for name in names}


LAYER = meta("layers.0.self_attn.q_proj.weight", "layers.0.self_attn.o_proj.weight", "layers.0.mlp.up_proj.weight")
TWO_INPUTS = {**LAYER, "layers.0.self_attn.q_proj.weight": torch.empty(HIDDEN, 2 * HIDDEN, device="meta")}
EXAMPLES = {
    "eagle": (Family.EAGLE, {**LAYER, **meta("fc.weight", "embed_tokens.weight")}),
    "early speculators": (Family.EAGLE, meta("fusion_fc.weight", "transformer.self_attn.q_proj.weight")),
    "eagle3": (Family.EAGLE3, {**meta("fc.weight", "midlayer.hidden_norm.weight")}),
    "eagle3 without its norm": (Family.EAGLE3, {**TWO_INPUTS, **meta("fc.weight")}),
    "medusa": (Family.MEDUSA, meta("0.0.linear.weight", "0.0.linear.bias", "0.1.weight", "1.0.linear.weight")),
    "medusa with a prefix": (Family.MEDUSA, meta("medusa_head.0.0.linear.weight", "medusa_head.0.1.weight")),
    "medusa with two prefixes": (Family.MEDUSA, meta("model.medusa_head.0.0.linear.weight")),
    "medusa of vLLM": (Family.MEDUSA, meta("blocks.0.layers.0.weight", "lm_heads.0.weight")),
    "language model": (
        Family.CAUSAL_LM,
        {f"model.{name}": value for name, value in {**LAYER, **meta("embed_tokens.weight", "norm.weight")}.items()},
    ),
    "something else": (Family.UNKNOWN, meta("conv.weight", "classifier.bias")),
    "a lone layer": (Family.UNKNOWN, LAYER),
    "nothing": (Family.UNKNOWN, {}),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_families_are_told_apart_by_tensors(name: str) -> None:
    family, tensors = EXAMPLES[name]
    assert detect_family(normalise_names(tensors)) == family


def test_the_config_decides_only_what_the_ends_of_a_language_model_leave_open() -> None:
    ends = meta("embed_tokens.weight", "norm.weight", "layers.0.self_attn.qkv_proj.weight")
    assert detect_family(ends) == Family.UNKNOWN
    assert detect_family(ends, {"model_type": "phi3"}) == Family.CAUSAL_LM
    assert detect_family(ends, {"model_type": ["phi3"]}) == Family.UNKNOWN
    assert detect_family(LAYER, {"model_type": "llama"}) == Family.UNKNOWN
    assert detect_family(EXAMPLES["eagle"][1], {"model_type": "llama"}) == Family.EAGLE


@pytest.mark.parametrize(
    "prefix",
    [
        "", "model.", "module.", "draft_model.", "module.model.", "draft_model.model.", "model.draft_model.",
        "module.module.", "model.model.", "language_model.model.", "model.language_model.",
    ],
)  # fmt: skip
def test_prefixes_of_wrappers_are_dropped(prefix: str) -> None:
    assert normalise_names({f"{prefix}midlayer.mlp.up_proj.weight": torch.zeros(1)}).keys() == {
        "layers.0.mlp.up_proj.weight"
    }


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="must hold 'fc.weight' once, got it again as 'fusion_fc.weight'"):
        normalise_names({"fc.weight": torch.zeros(1), "fusion_fc.weight": torch.zeros(1)})


def test_layers_and_heads_are_counted_from_tensors() -> None:
    assert count_layers(meta("layers.0.a", "layers.0.b", "layers.2.a", "fc.weight")) == 2
    assert count_layers(meta("fc.weight")) == 0
    assert count_medusa_heads(meta(*(f"{head}.{part}.weight" for head in range(5) for part in (0, 1)))) == 5
    assert count_medusa_heads(meta("blocks.0.layers.0.weight", "lm_heads.0.weight", "lm_heads.1.weight")) == 2
