"""An exported target, loaded by plain transformers, against the weights that it was trained as."""

from __future__ import annotations

import argparse
import lzma
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nanospec.checkpoints.target import load_target
from nanospec.training.export_target import export_target
from nanospec.training.train_target import TargetTrainer, target_config

VOCAB = 300
TOKEN_IDS = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(4))
# float32 logits over two layers; both sides hold the same stored values.
SAME_VALUES = 1e-5
# Relative to the size of the logits: e4m3 keeps 4 significant bits, a rounding error of 2.6 % (rms) per embedding.
FLOAT8_SHARE = 0.08
# bf16 keeps 8 significant bits, each of two layers rounds a dozen times.
BF16_SHARE = 0.03


@pytest.fixture
def checkpoint() -> dict:
    args = argparse.Namespace(
        seed=0, num_drawn=100, matrix_lr=0.02, vector_lr=0.003, row_lr=0.004, weight_decay=0.01, compile=False
    )
    state = TargetTrainer(target_config(VOCAB, 128, 2, 64), torch.ones(VOCAB), args).state()
    generator = torch.Generator().manual_seed(5)
    for master in state["weights"]["masters"].values():
        spread = torch.randn(master.shape, generator=generator) * 0.02
        master.copy_(master + spread if master.ndim == 1 else spread)
    return state


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2}, unk_token="<s>")).save(str(path))
    return path


def unscaled_model(checkpoint: dict, table: Tensor, eps: float) -> LlamaForCausalLM:
    config = LlamaConfig(**{**checkpoint["config"], "rms_norm_eps": eps, "dtype": "float32"})
    model = LlamaForCausalLM(config).float().eval()
    masters = checkpoint["weights"]["masters"]
    state = {f"model.{name}": master.bfloat16().float() for name, master in masters.items()}
    model.load_state_dict({"model.embed_tokens.weight": table, "lm_head.weight": table, **state})
    return model


def exported_scale(checkpoint: dict, stored: dict[str, Tensor]) -> float:
    name = "layers.0.mlp.down_proj.weight"
    return (stored[f"model.{name}"].float() / checkpoint["weights"]["masters"][name].bfloat16().float()).median().item()


@torch.inference_mode()
def test_plain_transformers_gives_the_logits_of_the_unscaled_model(
    tmp_path: Path, checkpoint: dict, tokenizer: Path
) -> None:
    export_target(checkpoint, tokenizer, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    scale, eps = exported_scale(checkpoint, stored), checkpoint["config"]["rms_norm_eps"]
    table = stored["model.embed_tokens.weight"].float() / scale
    logits = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(TOKEN_IDS).logits

    # Scaling the residual stream by s is the same as dividing the norms' eps by its square.
    same_values = unscaled_model(checkpoint, table, eps / scale**2)(TOKEN_IDS).logits
    torch.testing.assert_close(logits, same_values, rtol=0, atol=SAME_VALUES)
    as_trained = unscaled_model(checkpoint, checkpoint["rows"]["table"], eps)(TOKEN_IDS).logits
    assert (logits - as_trained).norm() < FLOAT8_SHARE * as_trained.norm()
    in_bf16 = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)(TOKEN_IDS).logits
    assert (logits - in_bf16.float()).norm() < BF16_SHARE * logits.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_stays_tied_and_holds_the_stored_values(
    tmp_path: Path, checkpoint: dict, tokenizer: Path, dtype: torch.dtype
) -> None:
    export_target(checkpoint, tokenizer, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embedding.data_ptr() == head.data_ptr()
    assert stored.dtype == torch.float8_e4m3fn
    assert torch.equal(head, stored.to(dtype))


@pytest.mark.parametrize("is_compressed", [True, False])
def test_the_exported_directory_is_a_target_with_its_tokenizer(
    tmp_path: Path, checkpoint: dict, tokenizer: Path, is_compressed: bool
) -> None:
    if is_compressed:
        (tmp_path / "tokenizer.json.xz").write_bytes(lzma.compress(tokenizer.read_bytes()))
        tokenizer = tmp_path / "tokenizer.json.xz"
    export_target(checkpoint, tokenizer, tmp_path / "new" / "out")
    target, loaded = load_target(tmp_path / "new" / "out", dtype="float32", device="cpu")
    assert target.vocab_size == VOCAB
    assert loaded is not None
    message = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert loaded.apply_chat_template(message, tokenize=False) == "<s>[INST]x[/INST]y</s>"
