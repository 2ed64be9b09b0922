"""What a checkpoint is, decided by its tensors: configs name architectures wrongly, tensors cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from torch import Tensor

from nanospec.target_families import FAMILIES
from nanospec.untrusted_files import shown_name

# Of wrappers, in any order and number; `language_model.` is the part of a model for text and images that drafts.
PREFIX = re.compile(r"^(?:(?:module|draft_model|medusa_heads?|language_model|model)\.)+")
# Names of other tools -> those of SafeAILab.
RENAMED = (
    (re.compile(r"^midlayer\."), "layers.0."),  # EAGLE-3 as published
    (re.compile(r"^transformer\."), "layers.0."),  # speculators before 0.4
    (re.compile(r"^fusion_fc\."), "fc."),
    (re.compile(r"^embedding_layernorm\."), "embed_layernorm."),
    (re.compile(r"^pre_lm_head_layernorm\."), "lm_head_layernorm."),
    (re.compile(r"^hidden_layernorm\."), "layers.0.input_layernorm."),  # HASS
    (re.compile(r"^aux_norm_low\."), "fc_norm.0."),
    (re.compile(r"^aux_norm_mid\."), "fc_norm.1."),
    (re.compile(r"^aux_norm_high\."), "fc_norm.2."),
)
MTP_MODULE = re.compile(r"^layers\.(\d+)\.eh_proj\.weight$|^mtp\.fc\.weight$")
MEDUSA_HEAD = re.compile(r"^(\d+)\.\d+\.(linear\.)?(weight|bias)$|^(?:blocks|lm_heads)\.(\d+)\.")


class Family(StrEnum):
    """What may propose tokens; UNKNOWN is none of these."""

    EAGLE = "EAGLE-1/2"
    EAGLE3 = "EAGLE-3"
    MEDUSA = "Medusa"
    MTP = "native MTP"
    CAUSAL_LM = "causal language model"
    UNKNOWN = "unknown"


def normalise_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under one set of names: prefixes of wrappers gone, layers as `layers.i.`, the names of other tools
    replaced. Raises ValueError where two tensors get one name."""
    normalised: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new_name = normalise_name(name)
        if new_name in normalised:
            raise ValueError(
                f"checkpoint must hold {shown_name(new_name)!r} once, got it again as {shown_name(name)!r}"
            )
        normalised[new_name] = tensor
    return normalised


def detect_family(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Family:
    """The family of tensors under normalised names; shapes are read, numbers are not.

    config: asked where the tensors are of no family but hold an embedding and a final norm. An architecture that could
    be a target is then a language model with projections under names of its own, as in Phi-3.

    Example: fc.weight [H, 2H] and a first layer without an own norm of features is EAGLE-1/2; q_proj [Q, 2H], or a
    `hidden_norm`, is EAGLE-3, whatever the config claims.
    """
    family = _family_of_tensors(tensors)
    if family == Family.UNKNOWN and _has_ends(tensors) and (config or {}).get("model_type") in tuple(FAMILIES):
        return Family.CAUSAL_LM
    return family


def _family_of_tensors(tensors: Mapping[str, Tensor]) -> Family:
    if any(MEDUSA_HEAD.match(name) for name in tensors):
        return Family.MEDUSA
    if count_mtp_modules(tensors) and not _has_ends(tensors):
        return Family.MTP
    if "layers.0.self_attn.q_proj.weight" not in tensors and "layers.0.hidden_norm.weight" not in tensors:
        return Family.EAGLE if "fc.weight" in tensors and has_layers(tensors) else Family.UNKNOWN
    if "layers.0.hidden_norm.weight" in tensors or _reads_two_inputs(tensors):
        return Family.EAGLE3
    if "fc.weight" in tensors:
        return Family.EAGLE
    return Family.CAUSAL_LM if _has_ends(tensors) else Family.UNKNOWN


def _has_ends(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there is what lies around the layers of a language model."""
    return {"embed_tokens.weight", "norm.weight"} <= tensors.keys()


def has_layers(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("layers.0.") for name in tensors)


def count_layers(tensors: Mapping[str, Tensor]) -> int:
    """Decoder layers that some tensor is of: an index far out makes none of what lies before it. Native MTP modules,
    which are numbered on behind them, are none."""
    modules = {match[1] for name in tensors if (match := MTP_MODULE.match(name))}
    return len({match[1] for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))} - modules)


def count_mtp_modules(tensors: Mapping[str, Tensor]) -> int:
    """Native MTP modules, inside a language model or alone."""
    return sum(MTP_MODULE.match(name) is not None for name in tensors)


def count_medusa_heads(tensors: Mapping[str, Tensor]) -> int:
    """Medusa heads; the published config states a wrong number."""
    matches = [match for name in tensors if (match := MEDUSA_HEAD.match(name))]
    return len({match[1] or match[4] for match in matches})


def _reads_two_inputs(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the first attention reads embedding and feature side by side: twice what its output projection writes."""
    query, output = tensors["layers.0.self_attn.q_proj.weight"], tensors.get("layers.0.self_attn.o_proj.weight")
    if output is None or query.dim() != 2 or output.dim() != 2:
        return False
    return query.shape[1] == 2 * output.shape[0]


def normalise_name(name: str) -> str:
    """One stored name as `normalise_names` gives it."""
    name = PREFIX.sub("", name)
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    return name
