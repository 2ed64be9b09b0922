"""Drafters out, in the layouts that other engines read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from nanospec.checkpoints.draft_vocab_map import vocab_maps
from nanospec.checkpoints.eagle import write_checkpoint
from nanospec.checkpoints.eagle3 import AUX_LAYERS
from nanospec.checkpoints.medusa import published_heads
from nanospec.checkpoints.published_names import published_tensors
from nanospec.drafters.eagle import EagleDrafter
from nanospec.drafters.eagle3 import Eagle3Drafter
from nanospec.drafters.medusa import MedusaDrafter
from nanospec.target import Target

Layout = Literal["official", "speculators"]
SPECULATORS_VERSION = "0.9.0"


def save_drafter(
    drafter: EagleDrafter | MedusaDrafter,
    directory: str | Path,
    layout: Layout = "official",
    target: Target | None = None,
) -> None:
    """Writes model.safetensors and config.json; `load_drafter` over the same target gives the same drafter back.

    layout  "official": SafeAILab's names and flat config, EAGLE-1/2 and EAGLE-3 of one layer; for Medusa heads
            FasterDecoding's names and config. "speculators": EAGLE-3 as that library saves it since 0.4
    target  named in the config by layouts that do so, "speculators" and Medusa's
    The embedding and the head are written where they are the drafter's own. The layers that EAGLE-3 reads stand under
    `eagle_aux_hidden_state_layer_ids`, as inputs; SGLang has a key of its own and takes the usual layers without it.
    Medusa heads that score with the target's head are written without output rows.

    Raises ValueError for another layout or one that the drafter does not fit.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout!r}")
    if isinstance(drafter, MedusaDrafter):
        if layout != "official":
            raise ValueError(f"layout must be 'official' for Medusa heads, got {layout!r}")
        write_checkpoint(directory, published_heads(drafter), _medusa_config(drafter, target))
        return
    tensors = dict(published_tensors(drafter))
    if drafter.target_ids is not None:
        tensors.update(vocab_maps(drafter.target_ids, drafter.vocab_size))
    if not isinstance(drafter, Eagle3Drafter):
        if layout != "official":
            raise ValueError(f"layout must be 'official' for an EAGLE-1/2 drafter, got {layout!r}")
        write_checkpoint(directory, tensors, _eagle_config(drafter))
        return
    if layout == "speculators":
        write_checkpoint(directory, tensors, _speculators_config(drafter, target))
        return
    if drafter.shape.num_layers != 1:
        raise ValueError(
            f"layout must be 'speculators' for a drafter of {drafter.shape.num_layers} layers, got 'official'"
        )
    tensors = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in tensors.items()}
    write_checkpoint(directory, tensors, _eagle3_config(drafter))


def _medusa_config(drafter: MedusaDrafter, target: Target | None) -> dict[str, Any]:
    return {
        "base_model_name_or_path": None if target is None else target.config._name_or_path or None,
        "medusa_num_heads": drafter.shape.num_heads,
        "medusa_num_layers": drafter.shape.num_layers,
        "torch_dtype": str(drafter.dtype).removeprefix("torch."),
    }


def _layer_config(drafter: EagleDrafter) -> dict[str, Any]:
    """What every config says of the layers."""
    shape, rotary = drafter.shape, drafter.rope_config
    return {
        "model_type": "qwen3" if shape.qk_norm else "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "num_hidden_layers": shape.num_layers,
        "hidden_act": shape.hidden_act,
        "rms_norm_eps": shape.rms_norm_eps,
        "max_position_embeddings": rotary.max_position_embeddings,
        "rope_theta": rotary.rope_parameters["rope_theta"],
        "rope_parameters": dict(rotary.rope_parameters),
        "vocab_size": drafter.vocab_size,
        "tie_word_embeddings": False,
        "torch_dtype": str(drafter.dtype).removeprefix("torch."),
    }


def _eagle_config(drafter: EagleDrafter) -> dict[str, Any]:
    config = {"architectures": ["LlamaForCausalLM"], **_layer_config(drafter), "model_type": "llama"}
    if drafter.lm_head is not None:
        config["draft_vocab_size"] = drafter.lm_head.weight.shape[0]
    # Only the negative is written: absent means a bias of fc, and some engines read a true one as biases of attention.
    return config if drafter.shape.fc_bias else {**config, "bias": False}


def _switches(drafter: Eagle3Drafter) -> dict[str, Any]:
    wiring, width = drafter.wiring, drafter.shape.hidden_size
    return {
        "draft_vocab_size": drafter.head.weight.shape[0],
        "target_hidden_size": wiring.target_hidden_size if wiring.target_hidden_size != width else None,
        "norm_before_residual": wiring.norm_before_residual,
        "norm_before_fc": wiring.norm_before_fc,
        "fc_norm": wiring.fc_norm,
        "norm_output": wiring.norm_output,
        AUX_LAYERS: list(wiring.feature_layers),
    }


def _eagle3_config(drafter: Eagle3Drafter) -> dict[str, Any]:
    switches = {key: value for key, value in _switches(drafter).items() if value is not None}
    return {"architectures": ["LlamaForCausalLMEagle3"], **_layer_config(drafter), "model_type": "llama", **switches}


def _speculators_config(drafter: Eagle3Drafter, target: Target | None) -> dict[str, Any]:
    verifier: dict[str, Any] = {"name_or_path": None, "architectures": []}
    if target is not None:
        name = target.config._name_or_path or None
        verifier = {"name_or_path": name, "architectures": [type(target.model).__name__]}
    proposal = {"proposal_type": "greedy", "speculative_tokens": 3, "verifier_accept_k": 1, "accept_tolerance": 0.0}
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": SPECULATORS_VERSION,
        **_switches(drafter),
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        "transformer_layer_config": _layer_config(drafter),
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": verifier,
        },
    }
