"""Sizes of a target and of a drafter from their config.json alone: nothing has to be downloaded for a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from nanospec.checkpoints.causal_lm import MAX_PADDING
from nanospec.checkpoints.detect import Family, detect_family, normalise_names
from nanospec.checkpoints.draft_config import layer_settings, read_shape, whole_number
from nanospec.checkpoints.files import has_weights, read_json, read_tensors, resolve_checkpoint
from nanospec.checkpoints.language_model_files import check_config_claims
from nanospec.checkpoints.target import UNUSABLE
from nanospec.draft_names import PROMPT_LOOKUP
from nanospec.drafters.eagle import EagleShape
from nanospec.planning.model_sizes import DraftSizes, ModelSizes, Product, layer_activations
from nanospec.target_families import FAMILIES, empty_cache, refuse_architecture

OF_TARGET = {
    "eagle": Family.EAGLE,
    "eagle3": Family.EAGLE3,
}  # drafts named in place of a config: the target's own sizes
NUM_FEATURES = 3  # layers of the target whose states EAGLE-3 fuses
MEDUSA_HEADS, MEDUSA_LAYERS = "medusa_num_heads", "medusa_num_layers"
# Settings of a language model that its cost hangs on. A width of heads that is left out follows from two of them.
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip


def read_target(path: str | Path) -> ModelSizes:
    """Sizes of the language model that a config describes: a directory, a config.json or a hub id.

    Raises FileNotFoundError, ValueError for a config that is none of transformers, NotImplementedError for an
    architecture that cannot be a target.
    """
    directory, config = _read_config(path, "target")
    return _language_model(config, directory, "target")


def read_draft(path: str | Path, target: ModelSizes, any_vocab_size: bool = False) -> DraftSizes:
    """Sizes of the drafter that a config describes, as `read_target`; its family by its tensors where they lie beside
    it, else by what the config says. "eagle" and "eagle3" mean a draft whose layer is as the target's.

    any_vocab_size: its ids may be others than the target's, as when both are planned over another vocabulary.
    Raises as `read_target`, and ValueError for a config that describes no drafter, or not for this target.
    """
    if str(path) == PROMPT_LOOKUP:
        raise ValueError(f"draft must be a model, got {PROMPT_LOOKUP}, which has no weights to plan")
    if str(path) in OF_TARGET:
        return eagle_sizes(OF_TARGET[str(path)], _layer_of(target), target, target.num_ids)
    directory, config = _read_config(path, "draft")
    tensors = {}
    if path_is_directory(path) and has_weights(directory):
        tensors = normalise_names(read_tensors(directory, specs_only=True))
    family = detect_family(tensors, config) if tensors else _claimed_family(config)
    settings = layer_settings(config)
    if not any_vocab_size:
        _check_vocab_size(family, settings, target)
    if family in (Family.EAGLE, Family.EAGLE3):
        shape = read_shape(settings, tensors, directory)
        num_layers = whole_number(settings, "num_hidden_layers", 1)
        if shape.hidden_size != target.hidden_size and family == Family.EAGLE:
            raise ValueError(f"draft hidden_size must be {target.hidden_size} as the target's, got {shape.hidden_size}")
        num_ids = whole_number(settings, "draft_vocab_size", target.num_ids)
        return eagle_sizes(family, shape, target, num_ids if family == Family.EAGLE3 else target.num_ids, num_layers)
    if family == Family.MEDUSA:
        return _medusa(config, target)
    if family == Family.CAUSAL_LM:
        body = _language_model(config, directory, "draft")
        return DraftSizes(family.value, body.with_num_ids(min(body.num_ids, target.num_ids)), is_eager=True)
    raise ValueError(
        f"draft must be the config of an EAGLE, EAGLE-3, Medusa or language-model draft, or {' or '.join(OF_TARGET)}, "
        f"got {family.value} in {path}"
    )


def _check_vocab_size(family: Family, settings: Mapping[str, Any], target: ModelSizes) -> None:
    """ValueError for ids that are not the target's, as when such a draft is loaded. Medusa's configs say nothing."""
    allowed = {Family.EAGLE: 0, Family.EAGLE3: 0, Family.CAUSAL_LM: MAX_PADDING}
    num_ids = settings.get("vocab_size")
    if family in allowed and isinstance(num_ids, int) and abs(num_ids - target.num_ids) > allowed[family]:
        raise ValueError(f"draft vocab_size must be the target's {target.num_ids}, got {num_ids}: not its tokenizer")


def path_is_directory(path: str | Path) -> bool:
    return Path(path).expanduser().is_dir()


def _read_config(path: str | Path, argument: str) -> tuple[Path, dict[str, Any]]:
    """The directory and the object. A hub id's small files are fetched, never its weights."""
    file = Path(path).expanduser()
    if file.is_file():
        return file.parent, read_json(file)
    if file.suffix == ".json" and not file.exists():
        raise FileNotFoundError(f"{argument} must be a config.json, a directory or a hub id, but {path} does not exist")
    directory = resolve_checkpoint(path, argument, weights=False)
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{argument} must hold a config.json, got none in {directory}")
    return directory, read_json(directory / "config.json")


def _claimed_family(config: Mapping[str, Any]) -> Family:
    """What a config says of itself. Published EAGLE-1/2 drafts call themselves a language model of one layer."""
    names = " ".join(str(name) for name in config.get("architectures") or ()).lower()
    kind = str(config.get("speculators_model_type", ""))
    if MEDUSA_HEADS in config:
        return Family.MEDUSA
    if kind == "eagle3" or "eagle3" in names or "draft_vocab_size" in config:
        return Family.EAGLE3
    if kind == "eagle" or "eagle" in names or config.get("model_type") == "eagle":
        return Family.EAGLE
    if config.get("model_type") not in FAMILIES:
        return Family.UNKNOWN
    return Family.EAGLE if config.get("num_hidden_layers") == 1 else Family.CAUSAL_LM


def _language_model(config: Mapping[str, Any], directory: Path, argument: str) -> ModelSizes:
    """By a model of these sizes without numbers, on the meta device."""
    refuse_architecture(config, argument)
    check_config_claims(config, directory, argument)
    try:
        parsed = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(parsed, trust_remote_code=False)
    except UNUSABLE as error:
        reason = str(error)[:400] or type(error).__name__
        raise ValueError(f"{argument} must be the config of a causal language model, got {reason}") from error
    return replace(model_sizes(model), notes=_defaults_taken(config, parsed))


def _defaults_taken(config: Mapping[str, Any], parsed: PreTrainedConfig) -> tuple[str, ...]:
    """A sentence for each size that the config leaves to transformers."""
    text = parsed.get_text_config()
    nested = config.get("text_config")
    given = {**config, **nested} if isinstance(nested, dict) else config
    missing = [name for name in SIZES if hasattr(text, name) and not {name, text.attribute_map.get(name)} & set(given)]
    return tuple(f"{name} is not in the config: transformers' default {getattr(text, name)}" for name in missing)


def model_sizes(model: PreTrainedModel) -> ModelSizes:
    """Sizes of a language model of transformers, loaded or on the meta device: a matrix is one product of a pass, a
    three-dimensional parameter one per expert."""
    config, embedding = model.config.get_text_config(), model.get_input_embeddings().weight
    per_token = getattr(config, "num_experts_per_tok", None) or 1
    counts: dict[Product, int] = {}
    for parameter in model.get_decoder().parameters():
        if parameter is embedding or parameter.dim() < 2:
            continue
        *experts, outputs, inputs = parameter.shape
        product = Product(outputs, inputs, 1, *((experts[0], per_token) if experts else ()))
        counts[product] = counts.get(product, 0) + 1
    _, num_parts, _, num_kv_heads, _, cached_dim = empty_cache(model, 1).shape
    cache_width = num_parts * num_kv_heads * cached_dim
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * head_dim
    active = per_token * (getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
    of_layer = layer_activations(config.hidden_size, active, width, cache_width)
    return ModelSizes(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        attention_width=width,
        cache_width=cache_width,
        activations=config.num_hidden_layers * of_layer,
        num_ids=model.get_output_embeddings().weight.shape[0],
        products=tuple(product._replace(times=count) for product, count in counts.items()),
    )


def _layer_of(target: ModelSizes) -> EagleShape:
    """A layer as the target's: keys and values as wide, the gated product as the largest of the target's."""
    head_dim = math.gcd(target.attention_width, target.cache_width // 2)  # how heads are cut does not count
    widest = max(p.inputs for p in target.products if p.outputs == target.hidden_size)
    heads = target.attention_width // head_dim, target.cache_width // 2 // head_dim
    return EagleShape(target.hidden_size, widest, *heads, head_dim, 1, 1e-5, "silu", fc_bias=False, qkv_bias=False)


def eagle_sizes(family: Family, shape: EagleShape, target: ModelSizes, num_ids: int, num_layers: int = 1) -> DraftSizes:
    """Sizes of an EAGLE-1/2 or EAGLE-3 drafter of so many layers and rows of its head."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    width, cache_width = shape.num_heads * shape.head_dim, 2 * shape.num_kv_heads * shape.head_dim
    is_third = family == Family.EAGLE3
    products = [
        Product(width + cache_width, hidden, num_layers),
        Product(hidden, width, num_layers),
        Product(2 * inner, hidden, num_layers),
        Product(hidden, inner, num_layers),
    ]
    if is_third:  # the first attention reads embedding and state side by side
        products[0] = Product(width + cache_width, 2 * hidden)
        if num_layers > 1:
            products.append(Product(width + cache_width, hidden, num_layers - 1))
    else:
        products.append(Product(hidden, 2 * hidden))
    activations = num_layers * layer_activations(hidden, inner, width, cache_width)
    body = ModelSizes(hidden, num_layers, width, cache_width, activations, num_ids, tuple(products))
    return DraftSizes(family.value, body, (Product(hidden, NUM_FEATURES * target.hidden_size),) if is_third else ())


def _medusa(config: Mapping[str, Any], target: ModelSizes) -> DraftSizes:
    """Published configs state no sizes, which are the target's, and wrong numbers of heads."""
    num_heads = whole_number(dict(config), MEDUSA_HEADS)
    num_layers = whole_number(dict(config), MEDUSA_LAYERS, 1)
    body = ModelSizes(target.hidden_size, 0, 0, 0, 0, target.num_ids, ())
    blocks = (Product(target.hidden_size, target.hidden_size, num_heads * num_layers),)
    return DraftSizes(Family.MEDUSA.value, body, blocks, is_parallel=True, max_depth=num_heads, can_pack=False)
