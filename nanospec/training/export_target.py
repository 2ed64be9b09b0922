"""Writes a trained target as a Hugging Face directory: embeddings in float8, the body in bf16, tokenizer beside it.

    python -m nanospec.training.export_target --run runs/target --tokenizer tokenizer.json.xz \\
        --corpus train.jsonl.xz --out DIR

A float8 (e4m3) number is also a bf16 and a float32 number: whoever loads the file gets the stored values exactly.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from nanospec.checkpoints.tokenizer import read_tokenizer
from nanospec.training.corpus import tokenize_corpus
from nanospec.vocab.static_list import write_static_list

TABLE_RMS = 0.125
NUM_FREQUENT = 32768
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST]{{ message['content'] }}[/INST]{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def export_tensors(checkpoint: dict) -> dict[str, Tensor]:
    """Names and dtypes of the safetensors file from a training checkpoint; the tied head is not stored twice.

    The table is scaled by a power of two, so that few entries fall below float8's normal range while embeddings and
    features stay of one size, as a drafter that reads both likes it. The body is rescaled with it: what the layers
    add to the residual stream grows alike, the final norm undoes it for the head.
    """
    masters, table = checkpoint["weights"]["masters"], checkpoint["rows"]["table"]
    scale = 2.0 ** round(torch.log2(TABLE_RMS / table.square().mean().sqrt()).item())
    tensors = {"model.embed_tokens.weight": (table * scale).to(torch.float8_e4m3fn)}
    for name, master in masters.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            master = master * scale
        if name == "norm.weight":
            master = master / scale
        tensors[f"model.{name}"] = master.to(torch.bfloat16).contiguous()
    return tensors


def export_target(checkpoint: dict, tokenizer: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save_file(export_tensors(checkpoint), out / "model.safetensors", metadata={"format": "pt"})
    config = LlamaConfig(**checkpoint["config"])
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(out)
    if tokenizer.suffix == ".xz":
        shutil.copy(tokenizer, out / "tokenizer.json.xz")
    else:
        (out / "tokenizer.json.xz").write_bytes(lzma.compress(tokenizer.read_bytes()))
    settings = {
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings, "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the --out of train_target")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True, help="what the most frequent ids are counted on")
    parser.add_argument("--out", type=Path, required=True, help="target/ and draft/frequent_ids.safetensors go here")
    args = parser.parse_args()
    checkpoint = torch.load(args.run / "checkpoint.pt", weights_only=True)
    export_target(checkpoint, args.tokenizer, args.out / "target")
    tokenizer = read_tokenizer(args.tokenizer)
    corpus = tokenize_corpus(args.corpus, tokenizer, args.run.parent / "tokens")
    frequent = corpus.frequent_ids(tokenizer.get_vocab_size(), NUM_FREQUENT)
    (args.out / "draft").mkdir(exist_ok=True)
    write_static_list(args.out / "draft" / "frequent_ids.safetensors", frequent.to(torch.int32))


if __name__ == "__main__":
    main()
