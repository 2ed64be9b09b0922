"""EAGLE-3 checkpoints of every published layout, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB, ROWS = 16, 24, 4, 2, 4, 37, 9
SAYABLE = torch.tensor([0, 3, 4, 10, 11, 20, 29, 35, 36])
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": HIDDEN,
    "intermediate_size": INNER, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_hidden_layers": 1,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "vocab_size": VOCAB,
    "draft_vocab_size": ROWS,
}  # fmt: skip


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def official(target_hidden: int = HIDDEN, hidden: int = HIDDEN) -> dict[str, Tensor]:
    """As SafeAILab publishes them; SpecForge's export has the same names."""
    tensors = random_tensors(
        {
            "midlayer.self_attn.q_proj.weight": (HEADS * HEAD_DIM, 2 * hidden),
            "midlayer.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, 2 * hidden),
            "midlayer.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, 2 * hidden),
            "midlayer.self_attn.o_proj.weight": (hidden, HEADS * HEAD_DIM),
            "midlayer.mlp.gate_proj.weight": (INNER, hidden),
            "midlayer.mlp.up_proj.weight": (INNER, hidden),
            "midlayer.mlp.down_proj.weight": (hidden, INNER),
            "midlayer.hidden_norm.weight": (hidden,),
            "midlayer.input_layernorm.weight": (hidden,),
            "midlayer.post_attention_layernorm.weight": (hidden,),
            "norm.weight": (hidden,),
            "fc.weight": (hidden, 3 * target_hidden),
            "lm_head.weight": (ROWS, hidden),
        }
    )
    is_sayable = torch.zeros(VOCAB, dtype=torch.bool).scatter_(0, SAYABLE, True)
    return {**tensors, "d2t": SAYABLE - torch.arange(ROWS), "t2d": is_sayable}


def full_vocabulary(with_maps: bool) -> dict[str, Tensor]:
    tensors = {**official(), **random_tensors({"lm_head.weight": (VOCAB, HIDDEN)}, seed=2)}
    del tensors["d2t"], tensors["t2d"]
    maps = {"d2t": torch.zeros(VOCAB, dtype=torch.int64), "t2d": torch.ones(VOCAB, dtype=torch.bool)}
    return {**tensors, **maps} if with_maps else tensors


def speculators(num_layers: int = 1, qk_norm: bool = False) -> dict[str, Tensor]:
    """`layers.i` in place of `midlayer`; further layers are ordinary ones."""
    tensors = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in official().items()}
    for index in range(num_layers):
        layer = f"layers.{index}."
        if index:
            ordinary = {
                name.replace("layers.0.", layer): tensor for name, tensor in tensors.items() if "layers.0." in name
            }
            del ordinary[f"{layer}hidden_norm.weight"]
            for name in "qkv":
                ordinary[f"{layer}self_attn.{name}_proj.weight"] = ordinary[f"{layer}self_attn.{name}_proj.weight"][
                    :, :HIDDEN
                ].contiguous()
            tensors.update({name: tensor.clone() for name, tensor in ordinary.items()})
        if qk_norm:
            norms = {f"{layer}self_attn.{name}_norm.weight": (HEAD_DIM,) for name in "qk"}
            tensors.update(random_tensors(norms, seed=3 + index))
    return tensors


def speculators_config(**changes: Any) -> dict[str, Any]:
    layer = {key: value for key, value in CONFIG.items() if key not in ("architectures", "draft_vocab_size")}
    layer["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "default"}
    return {
        "architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3", "speculators_version": "0.9.0",
        "draft_vocab_size": ROWS, "target_hidden_size": None, "norm_before_residual": False, "norm_before_fc": False,
        "fc_norm": False, "norm_output": False, "embed_requires_grad": False,
        "eagle_aux_hidden_state_layer_ids": None, "transformer_layer_config": layer,
        "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "x", "architectures": ["y"]}},
        **changes,
    }  # fmt: skip


def write_draft(
    directory: Path, tensors: dict[str, Tensor], config: dict[str, Any] = CONFIG, file: str = "model.safetensors"
) -> Path:
    directory.mkdir(exist_ok=True, parents=True)
    if file.endswith(".bin"):
        torch.save(tensors, directory / file)
    else:
        save_file(tensors, directory / file)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory
