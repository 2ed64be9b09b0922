"""EAGLE-3 checkpoints of every published layout: what they load to, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanospec.checkpoints import load_drafter
from nanospec.drafters.eagle3 import Eagle3Drafter
from nanospec.target import Target
from nanospec.vocab.same_head import is_same_head
from tests.checkpoints.eagle3_files import (
    CONFIG,
    HIDDEN,
    ROWS,
    SAYABLE,
    VOCAB,
    full_vocabulary,
    official,
    random_tensors,
    speculators,
    speculators_config,
    write_draft,
)

NUM_LAYERS = 8  # of the target
AUX = "eagle_aux_hidden_state_layer_ids"


def load(directory: Path, target: Target, tensors: dict[str, Tensor], config: dict[str, Any] = CONFIG, **options: Any):
    drafter = load_drafter(write_draft(directory, tensors, config), target, **options)
    assert isinstance(drafter, Eagle3Drafter)
    return drafter


def states_of(drafter: Eagle3Drafter) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(1, 5, drafter.shape.fc_inputs, generator=generator)
    drafter.reset(16)
    state = drafter.extend(torch.tensor([[3, 1, 4, 36, 0]]), features)
    level = drafter.advance(torch.tensor([[9, 2]]), state.expand(1, 2, -1), 1, torch.eye(2, dtype=torch.bool)[None])
    return torch.cat((state, level), 1)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("prefix", ["", "model.", "draft_model."])
def test_the_official_layout_is_read(tmp_path: Path, target: Target, file: str, prefix: str) -> None:
    tensors = official()
    stored = {prefix + name: tensor for name, tensor in tensors.items()}
    drafter = load_drafter(write_draft(tmp_path, stored, file=file), target)
    assert isinstance(drafter, Eagle3Drafter)
    state, layer = drafter.state_dict(), "layers.0."
    expected = {
        f"{layer}qkv_proj.weight": torch.cat([tensors[f"midlayer.self_attn.{name}_proj.weight"] for name in "qkv"]),
        f"{layer}o_proj.weight": tensors["midlayer.self_attn.o_proj.weight"],
        f"{layer}gate_up_proj.weight": torch.cat([tensors[f"midlayer.mlp.{n}_proj.weight"] for n in ("gate", "up")]),
        f"{layer}down_proj.weight": tensors["midlayer.mlp.down_proj.weight"],
        f"{layer}hidden_norm": tensors["midlayer.hidden_norm.weight"],
        f"{layer}input_layernorm": tensors["midlayer.input_layernorm.weight"],
        f"{layer}post_attention_layernorm": tensors["midlayer.post_attention_layernorm.weight"],
        "norm": tensors["norm.weight"],
        "fc.weight": tensors["fc.weight"],
        "lm_head.weight": tensors["lm_head.weight"],
    }
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert drafter.target_ids is not None
    assert torch.equal(drafter.target_ids, SAYABLE)
    assert drafter.feature_layers == (2, 4, 5)
    assert not any(parameter.requires_grad for parameter in drafter.parameters())


def test_half_precision_files_take_the_targets_dtype_and_maps_stay_integers(tmp_path: Path, target: Target) -> None:
    tensors = {name: tensor if name in ("d2t", "t2d") else tensor.half() for name, tensor in official().items()}
    drafter = load(tmp_path, target, tensors)
    assert drafter.dtype == torch.float32
    assert torch.equal(drafter.target_ids, SAYABLE)
    assert drafter.target_ids.dtype == torch.int64


@pytest.mark.parametrize("with_maps", [True, False])
def test_a_draft_of_the_full_vocabulary_needs_no_map(tmp_path: Path, target: Target, with_maps: bool) -> None:
    drafter = load(tmp_path, target, full_vocabulary(with_maps))
    assert drafter.target_ids is None
    assert drafter.head.weight.shape == (VOCAB, HIDDEN)
    assert not is_same_head(drafter.head.weight, target.head_weight)


def test_without_a_head_the_targets_is_used_if_all_ids_are_scored(tmp_path: Path, target: Target) -> None:
    tensors = full_vocabulary(with_maps=False)
    del tensors["lm_head.weight"]
    drafter = load(tmp_path, target, tensors)
    assert is_same_head(drafter.head.weight, target.head_weight)
    tensors["d2t"] = official()["d2t"]
    with pytest.raises(ValueError, match="draft must hold 'lm_head.weight': it scores 9 of the target's 37 ids"):
        load(tmp_path, target, tensors)


def test_a_stored_embedding_is_ignored_where_the_targets_fits(tmp_path: Path, target: Target) -> None:
    tensors = official()
    expected = states_of(load(tmp_path / "a", target, tensors))
    tensors["embed_tokens.weight"] = torch.ones(VOCAB, HIDDEN)
    assert torch.equal(states_of(load(tmp_path / "b", target, tensors)), expected)


def test_a_draft_of_another_width_keeps_its_own_embedding(tmp_path: Path, target: Target) -> None:
    tensors = official(hidden=8)
    config = {**CONFIG, "hidden_size": 8, "head_dim": 4, "target_hidden_size": HIDDEN}
    with pytest.raises(ValueError, match=r"missing tensors \['embed_tokens.weight'\]"):
        load(tmp_path, target, tensors, config)
    tensors["embed_tokens.weight"] = random_tensors({"e": (VOCAB, 8)})["e"]
    drafter = load(tmp_path, target, tensors, config)
    assert torch.equal(drafter.embed_tokens.weight, tensors["embed_tokens.weight"])
    assert states_of(drafter).shape == (1, 3, 8)


@pytest.mark.parametrize(
    "names", [("fc_norm.0", "fc_norm.1", "fc_norm.2"), ("aux_norm_low", "aux_norm_mid", "aux_norm_high")]
)
def test_the_norms_before_fc_of_eagle_3_1_are_read_under_both_sets_of_names(
    tmp_path: Path, target: Target, names: tuple[str, ...]
) -> None:
    norms = random_tensors({f"{name}.weight": (HIDDEN,) for name in names})
    config = {**CONFIG, "fc_norm": True, "norm_output": True}
    drafter = load(tmp_path, target, {**official(), **norms}, config)
    assert all(torch.equal(loaded, norm) for loaded, norm in zip(drafter.fc_norm, norms.values(), strict=True))
    assert drafter.wiring.norm_output
    with pytest.raises(ValueError, match=r"missing tensors \['fc_norm.0.weight', 'fc_norm.1.weight', 'fc_norm.2.wei"):
        load(tmp_path, target, official(), config)


def test_a_norm_over_all_features_is_read(tmp_path: Path, target: Target) -> None:
    norm = random_tensors({"input_norm.weight": (3 * HIDDEN,)})
    drafter = load(tmp_path, target, {**official(), **norm})
    assert torch.equal(drafter.input_norm, norm["input_norm.weight"])


@pytest.mark.parametrize(("num_layers", "qk_norm"), [(1, False), (1, True), (3, True)])
def test_the_layout_of_speculators_is_read(tmp_path: Path, target: Target, num_layers: int, qk_norm: bool) -> None:
    drafter = load(tmp_path / "a", target, speculators(num_layers, qk_norm), speculators_config())
    assert drafter.shape.num_layers == num_layers
    assert drafter.shape.qk_norm == qk_norm
    assert torch.isfinite(states_of(drafter)).all()
    if (num_layers, qk_norm) == (1, False):
        assert torch.equal(states_of(drafter), states_of(load(tmp_path / "b", target, official())))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIG, False),
        ({**CONFIG, "norm_before_residual": True}, True),
        (speculators_config(), False),
        (speculators_config(norm_before_residual=None), True),  # as the engines that serve them take it
    ],
)
def test_the_residual_is_what_the_config_says(
    tmp_path: Path, target: Target, config: dict[str, Any], expected: bool
) -> None:
    assert load(tmp_path, target, official(), config).wiring.norm_before_residual == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIG, (2, 4, 5)),
        ({**CONFIG, AUX: [1, 3, 6]}, (1, 3, 6)),
        ({**CONFIG, "eagle_config": {AUX: [1, 3, 6]}}, (2, 4, 7)),
        (speculators_config(**{AUX: [0, 3, 6]}), (0, 3, 6)),
    ],
)
def test_layer_ids_count_inputs_or_outputs_by_their_place(
    tmp_path: Path, target: Target, config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert load(tmp_path, target, official(), config).feature_layers == expected
    assert load(tmp_path, target, official(), config, feature_layers=[0, 1, 2]).feature_layers == (0, 1, 2)


def test_settings_of_a_nested_config_count(tmp_path: Path, target: Target) -> None:
    nested = {**CONFIG, "norm_output": True, "norm_before_residual": True, "eagle_config": {AUX: [0, 3, 5]}}
    wiring = load(tmp_path, target, official(), {"model_type": "eagle", "model": nested}).wiring
    assert (wiring.feature_layers, wiring.norm_output, wiring.norm_before_residual) == ((1, 4, 6), True, True)
    outside = {"model_type": "eagle", "model": CONFIG, "eagle_config": {AUX: [0, 3, 5]}}
    assert load(tmp_path, target, official(), outside).feature_layers == (1, 4, 6)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_angles_that_depend_on_the_length_are_refused(tmp_path: Path, target: Target, rope_type: str) -> None:
    factors = {"factor": 4.0, "short_factor": [1.0] * 2, "long_factor": [2.0] * 2}
    config = {**CONFIG, "rope_parameters": {"rope_type": rope_type, "rope_theta": 1e4, **factors}}
    with pytest.raises(NotImplementedError, match=f"draft rope_type must not depend .*, got '{rope_type}'"):
        load(tmp_path, target, official(), config)


@pytest.mark.parametrize("layers", [[2, 3, 3], [2, 4, NUM_LAYERS]])
def test_layers_that_the_target_lacks_are_refused_with_the_way_out(
    tmp_path: Path, target: Target, layers: list[int]
) -> None:
    with pytest.raises(ValueError, match="feature_layers must be distinct layers .*; name others with feature_layers="):
        load(tmp_path, target, official(), {**CONFIG, AUX: layers})


def test_rotary_base_is_ten_thousand_unless_the_draft_says_otherwise(tmp_path: Path, target: Target) -> None:
    for theta, settings in ((10000.0, {}), (1e6, {"rope_theta": 1e6})):
        drafter = load(tmp_path, target, official(), {**CONFIG, **settings})
        assert drafter.rotation(2)[0][1, 1].item() == pytest.approx(math.cos(theta**-0.5))  # head_dim 4


@pytest.mark.parametrize(
    "name", ["midlayer.hidden_norm.weight", "fc.weight", "norm.weight", "midlayer.mlp.up_proj.weight"]
)
def test_a_missing_tensor_is_named(tmp_path: Path, target: Target, name: str) -> None:
    tensors = official()
    del tensors[name]
    name = name.replace("midlayer", "layers.0")
    with pytest.raises(ValueError, match=rf"must be EAGLE-3: missing tensors \['{name}'\], unused tensors \[\]"):
        load(tmp_path, target, tensors)


@pytest.mark.parametrize("name", ["midlayer.self_attn.o_proj.bias", "mask_hidden", "fc_norm.3.weight"])
def test_an_unused_tensor_is_named(tmp_path: Path, target: Target, name: str) -> None:
    unused = name.replace("midlayer", "layers.0")
    with pytest.raises(ValueError, match=rf"unused tensors \['{unused}'\]"):
        load(tmp_path, target, {**official(), name: torch.zeros(HIDDEN)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc.weight": torch.zeros(HIDDEN, 2 * HIDDEN)}, r"'fc.weight' must have shape \(16, 48\), got \(16, 32\)"),
        ({"fc.weight": torch.zeros(8, 3 * HIDDEN)}, "config hidden_size must be 8 as in fc.weight, got 16"),
        ({"lm_head.weight": torch.zeros(VOCAB + 1, HIDDEN)}, "lm_head.weight must have at most the target's 37 rows"),
        (
            {"lm_head.weight": torch.zeros(ROWS + 1, HIDDEN)},
            r"d2t must have shape \(10,\) as its head has rows",
        ),
        ({"embed_tokens.weight": torch.zeros(VOCAB + 1, HIDDEN)}, "vocabulary must be the target's 37 ids, got 38"),
        ({"norm.weight": torch.full((HIDDEN,), torch.nan)}, "got NaN or infinity in 'norm.weight'"),
        ({"norm.weight": torch.zeros(HIDDEN, dtype=torch.int8)}, "got torch.int8 in 'norm.weight'"),
        ({"d2t": official()["t2d"], "t2d": official()["d2t"]}, r"draft d2t must have shape \(9,\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, target: Target, changes: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, target, {**official(), **changes})


def test_a_setting_of_the_wrong_kind_is_named(tmp_path: Path, target: Target) -> None:
    with pytest.raises(ValueError, match="config norm_output must be true or false, got 'yes'"):
        load(tmp_path, target, official(), {**CONFIG, "norm_output": "yes"})
    with pytest.raises(ValueError, match=f"config {AUX} must be a list of whole numbers, got 'all'"):
        load(tmp_path, target, official(), {**CONFIG, AUX: "all"})


@pytest.mark.parametrize("d2t", [torch.tensor(0), torch.zeros(VOCAB, 1, dtype=torch.int64)])
def test_a_map_of_another_shape_without_a_head_is_refused(tmp_path, target, d2t):
    tensors = full_vocabulary(with_maps=False)
    del tensors["lm_head.weight"]
    with pytest.raises(ValueError, match="draft d2t must be 1-D, an offset per row of the draft's head, got shape"):
        load_drafter(write_draft(tmp_path, {**tensors, "d2t": d2t}), target)
