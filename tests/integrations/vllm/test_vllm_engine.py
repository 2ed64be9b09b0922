"""vLLM itself, with and without the plugin, on the embedded pair: same tokens, as many accepted, fewer rows scored.

Engines without the plugin run in one process, those with it in another, at the same time: what is compared is asked for
before it is waited for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nanospec.demo import DRAFT_DIRECTORIES, TARGET_DIRECTORY
from nanospec.vocab.static_list import read_static_list
from tests.integrations.vllm.conftest import MOST_AT_ONCE

pytestmark = pytest.mark.with_vllm

LEAST_ACCEPTANCE = 0.97  # of what vLLM's own draft gets accepted
HYBRID = {"NANOSPEC_VOCAB": "hybrid:1024"}
NUM_OF_TRANSFORMERS = 8  # prompts
BLOCK_SIZE, NUM_SCARCE_BLOCKS = 32, 20  # too few for eight requests at their end
VOCAB_SIZE, NUM_SAYABLE = 131072, 4096


def acceptance(result: dict[str, Any]) -> float:
    metrics = result["metrics"]
    return metrics["num_accepted_tokens"] / metrics["num_draft_tokens"]


def comparison(result: dict[str, Any], own: dict[str, Any]) -> str:
    """For a person: what was accepted, what it cost."""
    first = [f"{1e3 * median(of['seconds_to_first_token'][:MOST_AT_ONCE]):.0f}" for of in (result, own)]
    return (
        f"acceptance {acceptance(result):.4f}, {acceptance(result) / acceptance(own):.1%} of vLLM's own; draft head "
        f"{result['head_ms_per_step']:.2f} ms per step, vLLM's own {own['head_ms_per_step']:.2f}, over "
        f"{result['rows_scored']:.0f} of {VOCAB_SIZE} rows; first token after {first[0]} ms, own {first[1]}"
    )


def assert_drafts_are_inside(result: dict[str, Any]) -> None:
    assert result["num_proposed"] > 0
    assert result["num_inside"] == result["num_proposed"]
    assert result["num_full"] == 0


Answer = Callable[[], dict[str, Any]]  # waits for what comes out of an engine


@pytest.fixture(scope="module")
def own(ask_engine, pair) -> Answer:
    """vLLM without the plugin."""
    return ask_engine(pair["draft without its list"], "eagle", None)


@pytest.fixture(scope="module")
def in_context(ask_engine, pair) -> Answer:
    """As it is installed: nothing is set."""
    return ask_engine(pair["draft without its list"], "eagle", {})


@pytest.fixture(scope="module")
def hybrid(ask_engine, pair) -> Answer:
    return ask_engine(pair["draft"], "eagle", HYBRID)


def test_greedy_output_is_that_of_vllm_without_the_plugin_and_of_transformers(own, in_context, hybrid, prompts):
    assert in_context()["token_ids"] == own()["token_ids"]
    assert hybrid()["token_ids"] == own()["token_ids"]
    model = AutoModelForCausalLM.from_pretrained(TARGET_DIRECTORY, dtype=torch.float32)
    model.generation_config.eos_token_id = None  # as ignore_eos
    for ids, token_ids in zip(prompts[:NUM_OF_TRANSFORMERS], own()["token_ids"], strict=False):
        output = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=len(token_ids))
        assert token_ids == output[0, len(ids) :].tolist()


@pytest.mark.parametrize("vocab", ["in_context", "hybrid"])
def test_drafts_are_inside_and_accepted_as_often(vocab, own, request):
    result = request.getfixturevalue(vocab)()
    print(f"\n{vocab}: {comparison(result, own())}")
    assert_drafts_are_inside(result)
    assert acceptance(result) >= LEAST_ACCEPTANCE * acceptance(own())


def test_prompts_in_chunks_preemptions_and_a_prefix_cache_cost_neither_output_nor_acceptance(ask_engine, pair, prompts):
    engine = {"max_num_batched_tokens": 64, "block_size": BLOCK_SIZE, "num_gpu_blocks_override": NUM_SCARCE_BLOCKS}
    twice = [
        ids for ids in prompts if len(ids) > BLOCK_SIZE for _ in range(2)
    ]  # the second finds the first one's block
    draft = pair["draft without its list"]
    ask_own = ask_engine(draft, "eagle", None, engine=engine, given=twice)
    result, own = ask_engine(draft, "eagle", {}, engine=engine, given=twice)(), ask_own()
    print(f"\nchunks: {comparison(result, own)}; {result['metrics']['num_preemptions']} preemptions")
    assert result["metrics"]["num_preemptions"] > 0
    assert result["metrics"]["prefix_cache_hits"] > 0
    assert result["token_ids"] == own["token_ids"]
    assert_drafts_are_inside(result)
    assert acceptance(result) >= LEAST_ACCEPTANCE * acceptance(own)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, for Inductor")
def test_sampled_drafts_in_a_compiled_engine_stay_inside(ask_engine, pair, prompts):
    speculative = {
        "method": "eagle", "model": pair["draft"], "num_speculative_tokens": 4,
        "draft_sample_method": "probabilistic",
    }  # fmt: skip
    sampling = {"temperature": 0.8, "seed": 1, "max_tokens": 24}
    engine = {"enforce_eager": False, "speculative_config": speculative}
    result = ask_engine(pair["draft"], "eagle", HYBRID, sampling, engine, prompts[:MOST_AT_ONCE])()
    assert_drafts_are_inside(result)
    assert all(len(token_ids) == sampling["max_tokens"] for token_ids in result["token_ids"])


def test_eagle3_drafts_are_accepted_as_often_and_leave_the_output_as_it_is(ask_engine, pair):
    draft = str(DRAFT_DIRECTORIES["eagle3"])
    ask_own = ask_engine(draft, "eagle3", None)
    hybrid = ask_engine(draft, "eagle3", HYBRID | {"NANOSPEC_FREQUENT_IDS": pair["list"]})()
    own = ask_own()
    print(f"\nEAGLE-3, hybrid: {comparison(hybrid, own)}")
    assert hybrid["token_ids"] == own["token_ids"]
    assert_drafts_are_inside(hybrid)
    assert acceptance(hybrid) >= LEAST_ACCEPTANCE * acceptance(own)


def save_random_eagle3(directory: Path, target_ids: torch.Tensor) -> str:
    """An EAGLE-3 draft of the embedded target that scores `target_ids`; its weights are noise."""
    hidden, generator = 256, torch.Generator().manual_seed(0)
    shapes = {
        "fc.weight": (hidden, 3 * hidden), "lm_head.weight": (target_ids.shape[0], hidden),
        "midlayer.self_attn.q_proj.weight": (256, 2 * hidden), "midlayer.self_attn.k_proj.weight": (128, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (128, 2 * hidden), "midlayer.self_attn.o_proj.weight": (hidden, 256),
        "midlayer.mlp.gate_proj.weight": (512, hidden), "midlayer.mlp.up_proj.weight": (512, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, 512),
    }  # fmt: skip
    tensors = {name: torch.randn(shape, generator=generator) * shape[1] ** -0.5 for name, shape in shapes.items()}
    for name in ("norm", "midlayer.hidden_norm", "midlayer.input_layernorm", "midlayer.post_attention_layernorm"):
        tensors[f"{name}.weight"] = torch.ones(hidden)
    tensors["d2t"] = target_ids - torch.arange(target_ids.shape[0])
    tensors["t2d"] = torch.zeros(VOCAB_SIZE, dtype=torch.bool).index_fill(0, target_ids, True)
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1,
        "head_dim": 64, "vocab_size": VOCAB_SIZE, "draft_vocab_size": target_ids.shape[0], "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "rope_theta": 10000.0, "torch_dtype": "float32",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def test_an_eagle3_draft_with_a_map_of_ids_stays_inside_and_leaves_the_output_as_it_is(ask_engine, pair, own, tmp_path):
    target_ids = read_static_list(pair["list"], VOCAB_SIZE)[:NUM_SAYABLE].sort().values
    draft = save_random_eagle3(tmp_path / "eagle3", target_ids)
    result = ask_engine(draft, "eagle3", HYBRID | {"NANOSPEC_FREQUENT_IDS": pair["list"]})()
    assert result["token_ids"] == own()["token_ids"]
    assert_drafts_are_inside(result)


class TestEagleBiases:
    """What vLLM's own loader of EAGLE-1 gets wrong."""

    def changed_draft(self, pair, directory: Path, fc_bias: float | None = None) -> str:
        """The embedded draft, its config with `"bias": true`, its fc with a bias where one is given."""
        shutil.copytree(pair["draft without its list"], directory)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"bias": True}))
        if fc_bias is not None:
            tensors = load_file(directory / "model.safetensors")
            sign = torch.tensor([1.0, -1.0]).repeat(config["hidden_size"] // 2)
            tensors["fc.bias"] = (sign * fc_bias).to(tensors["fc.weight"].dtype)
            save_file(tensors, directory / "model.safetensors")
        return str(directory)

    def test_a_config_that_says_bias_makes_no_biases_of_attention(self, ask_engine, pair, hybrid, tmp_path):
        draft = self.changed_draft(pair, tmp_path / "draft", fc_bias=0.0)
        result = ask_engine(draft, "eagle", HYBRID | {"NANOSPEC_FREQUENT_IDS": pair["list"]})()
        assert result["metrics"] == hybrid()["metrics"]

    def test_the_bias_of_fc_is_part_of_the_draft(self, ask_engine, pair, hybrid, tmp_path):
        draft = self.changed_draft(pair, tmp_path / "draft", fc_bias=100.0)
        result = ask_engine(draft, "eagle", HYBRID | {"NANOSPEC_FREQUENT_IDS": pair["list"]})()
        assert result["token_ids"] == hybrid()["token_ids"]
        assert acceptance(result) < acceptance(hybrid()) / 2  # it drowns the context, so drafts must change


def save_random_mimo(directory: Path, hidden: int = 64, vocab_size: int = 512) -> str:
    """A target with one MTP layer in its checkpoint (MiMo); its weights are noise."""
    generator = torch.Generator().manual_seed(0)
    heads = {"q_proj": hidden, "k_proj": hidden // 2, "v_proj": hidden // 2}
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int) -> None:
        tensors[name] = torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    for prefix in ("model.layers.0.", "model.layers.1.", "model.mtp_layers.0."):
        for name, width in heads.items():
            add(f"{prefix}self_attn.{name}.weight", width, hidden)
            tensors[f"{prefix}self_attn.{name}.bias"] = torch.zeros(width)
        add(f"{prefix}self_attn.o_proj.weight", hidden, hidden)
        for name in ("gate_proj", "up_proj"):
            add(f"{prefix}mlp.{name}.weight", 2 * hidden, hidden)
        add(f"{prefix}mlp.down_proj.weight", hidden, 2 * hidden)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = torch.ones(hidden)
    for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
        tensors[f"model.mtp_layers.0.{name}.weight"] = torch.ones(hidden)
    add("model.mtp_layers.0.input_proj.weight", hidden, 2 * hidden)
    add("model.embed_tokens.weight", vocab_size, hidden)
    add("lm_head.weight", vocab_size, hidden)
    tensors["model.norm.weight"] = torch.ones(hidden)
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    config = {
        "architectures": ["MiMoForCausalLM"], "model_type": "qwen2", "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2,
        "num_nextn_predict_layers": 1, "vocab_size": vocab_size, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "torch_dtype": "float32", "hidden_act": "silu",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def test_an_mtp_module_drafts_from_its_requests_ids(ask_engine, tmp_path):
    target = save_random_mimo(tmp_path / "mimo")
    prompts = [[place, 7, 90 + place, 300] for place in range(8)]
    engine = {
        "model": target, "skip_tokenizer_init": True,
        "speculative_config": {"method": "mtp", "model": target, "num_speculative_tokens": 1},
    }  # fmt: skip
    sampling = {"detokenize": False, "max_tokens": 24}
    ask_own = ask_engine(target, "mtp", None, sampling, engine, prompts)
    engine |= {"additional_config": {"nanospec": {"vocab": "in-context", "capacity": 64}}}
    result = ask_engine(target, "mtp", {}, sampling, engine, prompts)()
    assert result["token_ids"] == ask_own()["token_ids"]
    assert_drafts_are_inside(result)
