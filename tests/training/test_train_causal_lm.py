"""A small language model in training, made of a target's first layers, and in its directory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from nanospec.checkpoints import load_drafter
from nanospec.drafters.causal_lm import CausalLMDrafter
from nanospec.records import DraftVocab
from nanospec.training.draft_trainer import DraftTrainingSettings
from nanospec.training.train_causal_lm import causal_lm_trainer, first_layers, save_causal_lm
from tests.tiny_pair import VOCAB_SIZE, tiny_eagle3_target, tiny_model

SEQ_LEN = 16
# float64: the same sums over a longer cache.
ATOL = 1e-10


def test_the_first_layers_are_the_models_own_and_leave_it_alone() -> None:
    model = tiny_model(0, num_layers=4)
    hidden = model(torch.arange(9)[None], output_hidden_states=True).hidden_states
    smaller = first_layers(model, 2)
    expected = model.model.norm(hidden[2])
    got = smaller.model(torch.arange(9)[None]).last_hidden_state
    torch.testing.assert_close(got, expected, rtol=0, atol=ATOL)
    assert (model.config.num_hidden_layers, smaller.config.num_hidden_layers) == (4, 2)
    assert len(model.model.layers) == 4


def test_kinds_of_layers_are_cut_with_the_layers() -> None:
    config = Gemma2Config(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    smaller = first_layers(Gemma2ForCausalLM(config), 3)
    assert smaller.config.layer_types == config.layer_types[:3]


@pytest.mark.parametrize("num_layers", [0, 4])
def test_it_must_be_smaller_and_have_a_layer(num_layers: int) -> None:
    with pytest.raises(ValueError, match=rf"num_layers must be in \[1, 3\], got {num_layers}"):
        first_layers(tiny_model(0, num_layers=4), num_layers)


def test_what_was_trained_is_what_its_directory_drafts(tmp_path: Path) -> None:
    target = tiny_eagle3_target(0).requires_grad_(False)
    settings = DraftTrainingSettings(SEQ_LEN, num_drawn=40, compile=False)
    trainer, model = causal_lm_trainer(target, torch.ones(VOCAB_SIZE), settings)
    tokens = torch.randint(VOCAB_SIZE, (2 * SEQ_LEN + 1,), generator=torch.Generator().manual_seed(4))
    for _ in range(3):
        trainer.step(tokens, 1.0)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "tokenizer_config.json").write_text("{}")
    save_causal_lm(model, tmp_path / "draft", tmp_path / "target")
    assert (tmp_path / "draft" / "tokenizer_config.json").exists()
    loaded = load_drafter(tmp_path / "draft", target)
    assert isinstance(loaded, CausalLMDrafter)

    ids = torch.arange(VOCAB_SIZE)[None]
    vocab = DraftVocab(ids, torch.tensor([VOCAB_SIZE]), loaded.head.weight[None], True)
    loaded.reset(SEQ_LEN)
    loaded.begin(tokens[None, :1])
    state = loaded.extend(tokens[None, 1:10], torch.empty(1, 9, 0))
    expected = model(tokens[None, :10]).logits[:, -1:].detach()
    torch.testing.assert_close(loaded.logits(state, vocab), expected, rtol=0, atol=ATOL)
