"""Loads the target: a Hugging Face causal language model and its tokenizer, from a directory, a hub id or memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from nanospec.checkpoints.detect import normalise_name
from nanospec.checkpoints.files import (
    WEIGHT_DTYPES,
    check_finite,
    has_weights,
    read_config,
    read_tensors,
    resolve_checkpoint,
)
from nanospec.checkpoints.language_model_files import (
    check_config_claims,
    check_layers_are_stored,
    check_size_is_stored,
    check_tokenizer_sizes,
)
from nanospec.checkpoints.mtp import is_mtp_name
from nanospec.checkpoints.tokenizer import load_compressed_tokenizer, tokenizer_errors
from nanospec.ops.weight_first import use_weight_first
from nanospec.target import Target
from nanospec.target_families import FAMILIES, refuse_architecture
from nanospec.untrusted_files import shown_names

DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip
# What transformers raises for a config or weights that it cannot make a model of.
UNUSABLE = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError,
    ImportError, SafetensorError, StrictDataclassError,
)  # fmt: skip


def load_target(
    source: str | Path | PreTrainedModel,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> tuple[Target, PreTrainedTokenizerBase | None]:
    """The target on its device, and its tokenizer where there is one.

    dtype None keeps the checkpoint's; device None is CUDA where there is one, else the CPU. A loaded module is taken
    as it is: dtype and device must then be None. Raises FileNotFoundError, ValueError (unreadable or non-finite
    weights, unknown dtype) or NotImplementedError (see `Target`).
    """
    if isinstance(source, PreTrainedModel):
        if dtype is not None or device is not None:
            raise ValueError(f"dtype and device must be None for a loaded target, got {dtype!r} and {device!r}")
        return Target(source), None
    if not isinstance(source, str | Path):
        raise TypeError(f"target must be a path, a hub id or a PreTrainedModel, got {type(source).__name__}")
    model, tokenizer = load_language_model(source, "target", dtype, device)
    return Target(model), tokenizer


def load_language_model(
    source: str | Path, argument: str, dtype: str | torch.dtype | None, device: str | torch.device | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """As `load_target`, without a `Target` around it; errors call it `argument`."""
    torch_dtype = parse_dtype(dtype)
    directory = resolve_checkpoint(source, argument)
    attention = _check_config(directory, argument)
    place = parse_device(device)
    _build_skeleton(directory, read_tensors(directory, specs_only=True), attention, argument)
    model = _load_model(directory, torch_dtype, attention, argument).to(place)
    check_finite(dict(model.state_dict()), directory)
    use_weight_first(model)
    return model, load_tokenizer(directory)


def load_target_skeleton(path: str | Path) -> Target:
    """The target in `path` (directory or hub id) without its weights, on the meta device: what a draft is checked with.

    Raises FileNotFoundError, ValueError for a config that is none of transformers, NotImplementedError (see `Target`).
    """
    return Target(load_model_skeleton(path, "target"))


def load_model_skeleton(path: str | Path, argument: str) -> PreTrainedModel:
    """As `load_target_skeleton`, without a `Target` around it; errors call it `argument`.

    Where there are weights, their shapes must be able to fill it.
    """
    directory = resolve_checkpoint(path, argument)
    attention = _check_config(directory, argument)
    specs = read_tensors(directory, specs_only=True) if has_weights(directory) else None
    return _build_skeleton(directory, specs, attention, argument)


def _check_config(directory: Path, argument: str) -> str:
    """The attention kernel of a language model whose config may be handed to transformers."""
    config = read_config(directory)
    refuse_architecture(config, argument)
    check_config_claims(config, directory, argument)
    return FAMILIES[config["model_type"]].attention[0]


def _build_skeleton(
    directory: Path, specs: Mapping[str, Tensor] | None, attention: str, argument: str
) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if specs is not None:
            check_layers_are_stored(config, specs, argument)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, trust_remote_code=False)
    except UNUSABLE as error:
        raise _unusable(directory, argument, error) from error
    if specs is not None:
        check_size_is_stored(model, specs, argument)
    return model


def _unusable(directory: Path, argument: str, error: BaseException) -> ValueError:
    reason = str(error)[:400] or type(error).__name__
    return ValueError(f"{argument} must be a causal language model of transformers, got {directory}: {reason}")


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """ValueError listing the choices for a name that is none of them."""
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        return DTYPES[dtype]
    return dtype


def parse_device(device: str | torch.device | None) -> torch.device:
    """CUDA where there is one for None. ValueError for a device that is unknown or not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be a device of torch, got {device!r}: {str(error).splitlines()[0]}") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be there, got {device!r} with {torch.cuda.device_count()} CUDA devices")
    return place


def _load_model(directory: Path, dtype: torch.dtype | None, attention: str, argument: str) -> PreTrainedModel:
    try:
        with _QuietLoading():
            model, report = AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype or "auto", attn_implementation=attention, output_loading_info=True,
                trust_remote_code=False,
            )  # fmt: skip
    except UNUSABLE as error:
        raise _unusable(directory, argument, error) from error
    missing = shown_names(report["missing_keys"])
    num_layers = model.config.get_text_config().num_hidden_layers
    unused = shown_names(
        name for name in report["unexpected_keys"] if not is_mtp_name(normalise_name(name), num_layers)
    )
    if missing:
        raise ValueError(f"{argument} {directory} must hold all its weights, missing {missing}")
    if unused:
        raise ValueError(f"{argument} {directory} must hold its weights alone, got others too: {unused}")
    if model.dtype not in WEIGHT_DTYPES:
        raise ValueError(f"{argument} config dtype must be one of {', '.join(DTYPES)}, got {model.dtype}")
    return model


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a directory, None if there is none. ValueError for one that cannot be read."""
    if (directory / "tokenizer.json.xz").exists():
        return load_compressed_tokenizer(directory)
    if any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        check_tokenizer_sizes(directory)
        with tokenizer_errors(f"tokenizer must be one of transformers, got {directory}"):
            return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    return None


class _QuietLoading:
    """No progress bars of transformers while our own caller may be writing JSON or a table."""

    def __enter__(self) -> None:
        self.enabled = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *details: object) -> None:
        if self.enabled:
            transformers_logging.enable_progress_bar()
