"""Which tensor-parallel models can be targets: those that transformers shards into DTensors over one group of ranks."""

from __future__ import annotations

from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from nanospec.ranks import Ranks

# Pinned by tests/tensor_parallel; the others' plans differ, or route tokens to sharded experts.
FAMILIES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")


def ranks_of(model: PreTrainedModel) -> Ranks:
    """The processes that hold a part of `model` each; one alone for a model that is not sharded.

    Raises NotImplementedError for parts that are no DTensors, for meshes of several dimensions (FSDP, pipelines,
    experts) and for architectures that were not tried.
    """
    sharded = [(name, weight) for name, weight in model.named_parameters() if isinstance(weight, DTensor)]
    if not sharded:
        if (getattr(model, "_tp_size", None) or 1) > 1:
            raise NotImplementedError(
                "target weights must be DTensors to be tensor parallel, got plain parts: transformers 5.23 makes them"
            )
        return Ranks()
    _refuse_other_parallelism(model)
    model_type, mesh = model.config.model_type, sharded[0][1].device_mesh
    if model_type not in FAMILIES:
        raise NotImplementedError(
            f"target model_type must be one of {', '.join(FAMILIES)} to be tensor parallel, got {model_type!r}"
        )
    for name, weight in sharded:
        if weight.device_mesh != mesh or mesh.ndim != 1:
            raise NotImplementedError(
                f"target weights must be sharded over one mesh of one dimension, got {weight.device_mesh} for {name}"
            )
    return Ranks(mesh.get_group(), sharded[0][1].to_local().device)


def _refuse_other_parallelism(model: PreTrainedModel) -> None:
    settings = getattr(model.config, "distributed_config", None)
    for name in ("pp_size", "fsdp_size", "dp_replicate_size", "ep_size"):
        size = getattr(settings, name, None) or 1
        if size > 1:
            raise NotImplementedError(f"target {name} must be 1 beside tensor parallelism, got {size}")


def num_local_kv_heads(model: PreTrainedModel) -> int:
    """Key-value heads that this process computes, and so holds in its cache.

    Raises NotImplementedError where they cannot be dealt out evenly.
    """
    num_heads = model.config.get_text_config().num_key_value_heads
    attention = getattr(model.get_decoder().layers[0], "self_attn", None)
    projection = getattr(attention, "k_proj", None)
    if projection is None or not isinstance(projection.weight, DTensor):
        return num_heads
    num_ranks = projection.weight.device_mesh.size()
    if num_heads % num_ranks:
        raise NotImplementedError(
            f"target num_key_value_heads must be a multiple of the {num_ranks} ranks, got {num_heads}"
        )
    return num_heads // num_ranks
