"""Damaged checkpoints of every format: each is refused with a typed error, or is the same draft as before."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanospec.checkpoints import describe_checkpoint, load_drafter
from nanospec.checkpoints.target import load_target
from nanospec.checkpoints.trim import read_draft_head, trim_draft
from tests.fuzz.cases import cases, result_or_refusal
from tests.fuzz.damage import changed_configs, changed_tensors, damaged, json_text, json_values
from tests.fuzz.valid_files import (
    config_bytes,
    directory_of,
    drafts,
    language_model,
    same_draft,
    target,
    weight_bytes,
)

FORMATS = sorted(drafts())
KEYS = (
    "head_dim", "rope_theta", "rope_scaling", "rope_parameters", "eagle_config", "norm_output", "fc_norm", "model",
    "transformer_layer_config", "speculators_model_type", "eagle_aux_hidden_state_layer_ids", "model_type",
    "norm_before_fc", "norm_before_residual", "original_lm_head",
)  # fmt: skip
MODEL_KEYS = (
    "num_labels", "auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "layer_types",
    "transformers_weights", "text_config", "sliding_window", "torch_dtype", "rope_scaling", "id2label", "pruned_heads",
    "experts_implementation", "num_local_experts", "is_encoder_decoder", "tokenizer_class",
)  # fmt: skip
HEADER = 3000  # bytes: names and shapes lie in front


def loaded(files: dict[str, bytes]):
    with directory_of(files) as directory:
        return result_or_refusal(lambda: load_drafter(directory, target()))


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_weight_file_is_refused_or_has_other_numbers_alone(name: str) -> None:
    file, tensors, config = drafts()[name]
    whole = weight_bytes(file, tensors)
    expected = loaded({file: whole, "config.json": config_bytes(config)})
    shapes = {key: tensor.shape for key, tensor in expected.state_dict().items()}

    @cases(70)
    @given(content=st.booleans().flatmap(lambda is_header: damaged(whole, HEADER if is_header else None)))
    def check(content: bytes) -> None:
        found = loaded({file: content, "config.json": config_bytes(config)})
        if not isinstance(found, Exception):
            assert {key: tensor.shape for key, tensor in found.state_dict().items()} == shapes
            assert all(tensor.isfinite().all() for tensor in found.state_dict().values())

    check()


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_config_is_refused_or_changes_no_number(name: str) -> None:
    file, tensors, config = drafts()[name]
    whole = weight_bytes(file, tensors)
    expected = loaded({file: whole, "config.json": config_bytes(config)})

    @cases(60)
    @given(text=st.one_of(changed_configs(config, KEYS), json_values.map(json_text), damaged(config_bytes(config))))
    def check(text: bytes) -> None:
        found = loaded({file: whole, "config.json": text})
        assert isinstance(found, Exception) or same_draft(found, expected)

    check()


@pytest.mark.parametrize("name", FORMATS)
def test_changed_tensors_are_refused_or_are_all_used(name: str) -> None:
    file, tensors, config = drafts()[name]

    @cases(100)
    @given(changed=changed_tensors(tensors))
    def check(changed: dict[str, torch.Tensor]) -> None:
        found = loaded({file: weight_bytes(file, changed), "config.json": config_bytes(config)})
        if not isinstance(found, Exception):
            used = sum(part.numel() for part in found.state_dict().values())
            outside = ("d2t", "t2d", "token_map", "embed_tokens.weight")
            stored = sum(part.numel() for key, part in changed.items() if key.split("model.")[-1] not in outside)
            assert used == stored

    check()


def test_a_damaged_language_model_is_refused_or_is_whole() -> None:
    tensors, config = language_model()
    whole, text = weight_bytes("model.safetensors", tensors), config_bytes(config)
    options = st.one_of(
        st.tuples(st.just(whole), changed_configs(config, MODEL_KEYS)),
        st.tuples(changed_weights("model.safetensors", tensors), st.just(text)),
        st.tuples(damaged(whole, HEADER), st.just(text)),
    )
    default = torch.get_default_dtype()

    @cases(200)
    @given(files=options)
    def check(files: tuple[bytes, bytes]) -> None:
        with directory_of({"model.safetensors": files[0], "config.json": files[1]}) as directory:
            found = result_or_refusal(lambda: load_target(directory, device="cpu"))
            if not isinstance(found, Exception):
                state = found[0].model.state_dict()
                assert {name: part.shape for name, part in state.items()} == {n: t.shape for n, t in tensors.items()}
        assert torch.get_default_dtype() == default

    check()


@cases(100)
@given(data=st.data(), name=st.sampled_from(FORMATS))
def test_a_damaged_checkpoint_is_described_or_refused(data: st.DataObject, name: str) -> None:
    file, tensors, config = drafts()[name]
    weights = st.one_of(changed_weights(file, tensors), damaged(weight_bytes(file, tensors), HEADER))
    files = {
        file: data.draw(weights),
        "config.json": data.draw(st.one_of(changed_configs(config, KEYS), st.just(config_bytes(config)))),
    }
    with directory_of(files) as directory:
        found = result_or_refusal(lambda: describe_checkpoint(directory))
    assert isinstance(found, Exception) or json.dumps(asdict(found))


@cases(60)
@given(data=st.data(), name=st.sampled_from([name for name in FORMATS if "EAGLE" in name or name == "speculators"]))
def test_a_draft_with_changed_tensors_is_trimmed_or_refused(data: st.DataObject, name: str) -> None:
    file, tensors, config = drafts()[name]
    with directory_of({file: data.draw(changed_weights(file, tensors)), "config.json": config_bytes(config)}) as draft:
        head = result_or_refusal(lambda: read_draft_head(draft))
        if not isinstance(head, Exception):
            ids = head.ids[:3]
            found = result_or_refusal(lambda: trim_draft(head, ids, draft / "trimmed"))
            assert isinstance(found, Exception) or found.trimmed_rows == ids.shape[0]


def changed_weights(file: str, tensors: dict[str, torch.Tensor]) -> st.SearchStrategy[bytes]:
    return changed_tensors(tensors).map(lambda changed: weight_bytes(file, changed))
