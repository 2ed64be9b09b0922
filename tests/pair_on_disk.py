"""A tiny random pair saved as checkpoints, with a byte-level tokenizer: what a command line can load."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nanospec.checkpoints import save_eagle_drafter
from nanospec.target import Target
from tests.tiny_pair import tiny_drafter, tiny_model

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
WINDOW = 256


def save_pair(root: Path, window: int = WINDOW) -> tuple[str, str]:
    """Directories of a target over the 256 bytes and of its drafter."""
    model = tiny_model(seed=4, vocab_size=len(ALPHABET), dtype=torch.float32, window=window)
    drafter = tiny_drafter(Target(model), seed=2, std=0.02)
    model.save_pretrained(root / "target")
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(ALPHABET)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(root / "target")
    config = {
        "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40,
        "max_position_embeddings": window,
    }  # fmt: skip
    save_eagle_drafter(drafter, root / "draft", config)
    return str(root / "target"), str(root / "draft")
