"""What is read from a model's settings, and what is refused by name."""

from __future__ import annotations

import pytest
import torch
import transformers

from nanospec import SpeculativeDecoder, TreeShape
from nanospec.layer_masks import FULL, SLIDING, LayerMasks
from nanospec.target import Target
from nanospec.target_families import (
    FAMILIES as ARCHITECTURES,
)
from nanospec.target_families import (
    layer_masks,
    logit_soft_cap,
    refuse_architecture,
    switching_position,
)
from tests.tiny_families import FAMILIES, LONGROPE_WINDOW, WINDOW, family_drafter, family_model

ATOL = 1e-5  # as in test_target: parts of transformers compute in float32


def test_every_supported_architecture_is_tested():
    tested = {family_model(name).config.model_type for name in FAMILIES}
    assert tested == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-bias", LayerMasks((FULL,), None, False)),
        ("mistral", LayerMasks((FULL,), None, False)),
        ("mistral-window", LayerMasks((SLIDING,), WINDOW, False)),
        ("phi3-window", LayerMasks((SLIDING,), WINDOW, False)),
        ("qwen3_moe", LayerMasks((SLIDING,), WINDOW, False)),
        ("qwen2", LayerMasks((FULL,), None, True)),
        ("qwen2-window", LayerMasks((FULL, SLIDING), WINDOW, True)),
        ("gemma2", LayerMasks((SLIDING, FULL), WINDOW, True)),
        ("gemma3", LayerMasks((SLIDING, FULL), WINDOW, True)),
    ],
)
def test_masks_are_those_that_the_layers_take(name, expected):
    assert layer_masks(family_model(name)) == expected


@pytest.mark.parametrize(("name", "cap"), [("gemma2", 6.0), ("gemma3_text", 6.0), ("gemma3", None), ("qwen3", None)])
def test_the_soft_cap_is_the_one_that_the_model_applies(name, cap):
    model = family_model(name, std=0.5)
    prompt = torch.arange(1, 9)[None]
    target = Target(model)
    assert logit_soft_cap(model) == cap
    with torch.inference_mode():
        plain = model(prompt).logits
        target.reset(9)
        prefill = target.prefill(prompt)
        torch.testing.assert_close(target.head(prefill.features), plain, atol=ATOL, rtol=0)
        uncapped = model.get_output_embeddings()(prefill.features)
    assert (
        (plain.abs().max() <= cap < uncapped.abs().max())
        if cap
        else torch.equal(target.head(prefill.features), uncapped)
    )


def test_a_cap_that_another_architectures_forward_ignores_is_ignored():
    model = family_model("llama-bias")
    model.config.final_logit_softcapping = 1.0
    assert logit_soft_cap(model) is None


@pytest.mark.parametrize("name", ["phi3-longrope", "llama-bias"])
def test_the_context_window_ends_where_a_pass_would_rotate_otherwise(name):
    model = family_model(name)
    expected = LONGROPE_WINDOW if name == "phi3-longrope" else None
    assert switching_position(model) == expected
    assert Target(model).context_window == (expected or 128)


@pytest.mark.parametrize("prompt_length", [LONGROPE_WINDOW - 12, LONGROPE_WINDOW - 2])
def test_a_tree_that_reaches_behind_the_switch_of_longrope_changes_no_token(prompt_length):
    target = Target(family_model("phi3-longrope"))
    decoder = SpeculativeDecoder(target, family_drafter(target), "full", TreeShape(5, 4, 24))
    prompt = [(7 * i) % 50 for i in range(prompt_length)]
    result = decoder.generate(prompt, max_new_tokens=60)
    assert len(result.token_ids) == LONGROPE_WINDOW - prompt_length
    expected = target.model.generate(torch.tensor([prompt]), max_length=LONGROPE_WINDOW, do_sample=False)
    assert result.token_ids == expected[0, prompt_length:].tolist()


def test_a_prompt_behind_the_switch_of_longrope_is_refused():
    target = Target(family_model("phi3-longrope"))
    decoder = SpeculativeDecoder(target, family_drafter(target), "full", TreeShape(2, 2, 4))
    with pytest.raises(ValueError, match=f"shorter than the context window of {LONGROPE_WINDOW}, got 50 tokens"):
        decoder.generate([1] * 50)
    target.reset(64)
    with pytest.raises(ValueError, match=f"at most {LONGROPE_WINDOW} tokens, where longrope switches, got 41"):
        target.prefill(torch.ones(1, LONGROPE_WINDOW + 1, dtype=torch.int64))
    target.prefill(torch.ones(1, LONGROPE_WINDOW, dtype=torch.int64))
    with pytest.raises(ValueError, match="where longrope switches, got 41"):
        target.decode(torch.ones(1, 1, dtype=torch.int64))


REFUSED = {
    "Mamba": "state_size=.*recurrent state cannot be branched",
    "Qwen3Next": "linear_num_value_heads=.*recurrent state cannot be branched",
    "Qwen3_5Text": "linear_num_value_heads=.*recurrent state cannot be branched",
    "BailingHybrid": "short_conv_kernel_size=.*recurrent state cannot be branched",
    "Ernie4_5_Moe": "",
    "InklingText": "",
    "RecurrentGemma": "lru_width=.*recurrent state cannot be branched",
    "Llama4Text": "attention_chunk_size=8192: attention within chunks",
    "Llama4": "attention_chunk_size=8192: attention within chunks",
    "DeepseekV2": r"kv_lora_rank=512: latent keys and values \(MLA\) are supported for deepseek_v3 alone",
    "Gemma3nText": "num_kv_shared_layers=15: layers that share keys and values",
    "T5": "is_encoder_decoder=True: an encoder",
    "Cohere": "logit_scale=0.0625: scaled logits",
    "Granite": "logits_scaling=1.0: scaled logits",
    "GPTNeoX": "",
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_architecture_is_refused_with_the_choices_and_the_reason(name):
    config = getattr(transformers, f"{name}Config")()
    message = f"model_type must be one of deepseek_v3, gemma, .*, qwen3_moe, got '{config.model_type}'"
    with pytest.raises(NotImplementedError, match=f"{message}.*{REFUSED[name]}"):
        refuse_architecture(config.to_dict())


@pytest.mark.parametrize("model_type", [None, 7, "nonsense"])
def test_a_model_type_that_is_none_is_refused(model_type):
    with pytest.raises(NotImplementedError, match=f"got {model_type!r}"):
        refuse_architecture({"model_type": model_type})


def test_a_model_of_another_architecture_is_refused():
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**sizes, num_attention_heads=2))
    with pytest.raises(NotImplementedError, match="got 'olmo2'"):
        Target(model)


@pytest.mark.parametrize(
    ("name", "kernel", "choices"),
    [
        ("llama-bias", "flex_attention", "llama must be one of sdpa, eager"),
        ("mistral-window", "flash_attention_2", "mistral must be one of sdpa, eager"),
        ("gemma2", "sdpa", "gemma2 must be one of eager"),
        ("gemma3", "flex_attention", "gemma3_text must be one of sdpa, eager"),
    ],
)
def test_attention_kernels_that_are_wrong_with_trees_are_refused(name, kernel, choices):
    model = family_model(name)
    model.config.get_text_config()._attn_implementation = kernel
    with pytest.raises(NotImplementedError, match=f"attn_implementation of {choices}, got '{kernel}'"):
        Target(model)


@pytest.mark.parametrize("name", ["gemma", "gemma3_text"])
def test_attention_to_later_tokens_is_refused(name):
    model = family_model(name, use_bidirectional_attention=True)
    with pytest.raises(NotImplementedError, match="use_bidirectional_attention must be off, got True"):
        Target(model)


def test_a_rotation_that_depends_on_the_length_of_a_pass_is_refused():
    model = family_model("llama-bias", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(NotImplementedError, match="rope_type must not depend on the length of a pass, got 'dynamic'"):
        Target(model)


@pytest.mark.parametrize("kind", ["chunked_attention", "linear_attention"])
def test_layers_that_neither_see_all_nor_slide_are_refused(kind):
    model = family_model("qwen3")
    model.config.layer_types = [FULL, kind, FULL]
    with pytest.raises(
        NotImplementedError, match=f"layer_types must be full_attention or sliding_attention, got '{kind}'"
    ):
        Target(model)


@pytest.mark.parametrize("window", [None, 0])
def test_sliding_layers_without_a_window_are_refused(window):
    model = family_model("gemma2")
    model.config.sliding_window = window
    with pytest.raises(ValueError, match=f"sliding_window must be at least 1 where layers slide, got {window}"):
        Target(model)


def test_experts_whose_shapes_depend_on_the_routing_are_not_compiled():
    model = family_model("mixtral")
    model.set_experts_implementation("eager")
    Target(model)
    with pytest.raises(NotImplementedError, match="must be grouped_mm or batched_mm to be compiled, got 'eager'"):
        Target(model, compiled_by="eager")


def test_experts_without_a_kernel_for_float64_are_refused():
    model = family_model("qwen3_moe")
    model.set_experts_implementation("grouped_mm")
    Target(model.float())
    with pytest.raises(NotImplementedError, match="must be eager or batched_mm in float64, got 'grouped_mm'"):
        Target(model.double())
