"""Native MTP modules in the files of their target: read as transformers reads them, refused by name when damaged."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import MtpModel

from nanospec import SpeculativeDecoder, TreeShape
from nanospec.checkpoints import load_drafter
from nanospec.checkpoints.describe import describe_checkpoint
from nanospec.checkpoints.mtp import load_mtp_drafter
from nanospec.checkpoints.target import load_target
from nanospec.drafters import CausalLMDrafter, MtpDrafter
from nanospec.target import Target
from tests.tiny_families import SIZES, VOCAB_SIZE, family_model
from tests.tiny_mtp import KINDS, mtp_model, target_model

NUM_LAYERS, WIDTH = SIZES["num_hidden_layers"], SIZES["hidden_size"]
BESIDE = {"enorm": "pre_fc_norm_embedding", "hnorm": "pre_fc_norm_hidden", "eh_proj": "fc", "post_norm": "norm"}


def published(name: str, mtp: MtpModel) -> dict[str, Tensor]:
    """The modules' tensors as they are published, without embedding and head."""
    tensors: dict[str, Tensor] = {}
    for index, layer in enumerate(mtp.layers):
        start = "mtp." if name == "mellum" else f"model.layers.{NUM_LAYERS + index}."
        block = f"{start}layers.0." if name == "mellum" else start
        for part, published_part in BESIDE.items():
            place = published_part if name == "mellum" else part.replace("post_norm", "shared_head.norm")
            tensors[f"{start}{place}.weight"] = getattr(layer, part).weight
        for key, value in layer.mtp_block.state_dict().items():
            if not key.startswith("mlp.experts."):
                tensors[block + key] = value
        experts = layer.mtp_block.mlp.experts
        for number in range(experts.num_experts):
            gate, up = experts.gate_up_proj[number].chunk(2)
            down = experts.down_proj[number]
            for kind, value in (("gate", gate), ("up", up), ("down", down)):
                tensors[f"{block}mlp.experts.{number}.{kind}_proj.weight"] = value
    return {key: value.float().clone() for key, value in tensors.items()}


def write_target(directory: Path, model: PreTrainedModel, modules: dict[str, Tensor]) -> Path:
    """The target as transformers saves it, in float32, and the modules in the same file."""
    model.float().save_pretrained(directory)
    file = directory / "model.safetensors"
    save_file(load_file(file) | modules, file, metadata={"format": "pt"})
    return directory


def write_modules(directory: Path, modules: dict[str, Tensor]) -> Path:
    save_file(modules, directory / "model.safetensors")
    return directory


def written(directory: Path, name: str = "glm4_moe", num_modules: int = 1, seed: int = 2) -> Path:
    model = target_model(name, num_modules)
    return write_target(directory, model, published(name, mtp_model(model, seed)))


@pytest.mark.parametrize(("name", "num_modules"), KINDS)
def test_modules_in_the_targets_checkpoint_are_read_as_transformers_reads_them(
    tmp_path, monkeypatch, name, num_modules
):
    target, _ = load_target(written(tmp_path, name, num_modules), device="cpu")
    layers = range(NUM_LAYERS, NUM_LAYERS + num_modules)  # published checkpoints have layers of other numbers
    patterns = [rf"model\.layers\.{layer}\..*" for layer in layers] if name != "mellum" else [r"^mtp\."]
    monkeypatch.setattr(target.model, "_keys_to_ignore_on_load_unexpected", patterns)
    expected = MtpModel.from_pretrained(target.model).layers.state_dict()
    drafter = load_drafter("mtp", target)
    assert isinstance(drafter, MtpDrafter)
    state = drafter.layers.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize(("name", "num_modules"), [("glm4_moe", 1), ("deepseek_v3", 2), ("mellum", 1)])
def test_a_pair_named_by_the_targets_directory_decodes_exactly(tmp_path, name, num_modules):
    directory = written(tmp_path, name, num_modules)
    options = {"vocab": "in-context", "tree": TreeShape(3, 3, 9), "device": "cpu", "dtype": "float32"}
    decoder = SpeculativeDecoder.from_pretrained(directory, "mtp", **options)
    plain = decoder.generate_autoregressive([1, 2, 3], max_new_tokens=20)
    result = decoder.generate([1, 2, 3], max_new_tokens=20)
    assert result.token_ids == plain.token_ids
    assert result.stats.drafter == "mtp"
    assert result.stats.mean_accept_length > 1


def test_routers_keep_their_precision_in_a_narrow_target(tmp_path):
    target, _ = load_target(written(tmp_path), dtype="bfloat16", device="cpu")
    for name, tensor in load_drafter("mtp", target).state_dict().items():
        assert tensor.dtype == (torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16)


def test_a_directory_with_the_modules_alone_is_recognised(tmp_path):
    for name in ("glm4_moe", "mellum"):
        model = target_model(name, 1)
        modules = published(name, mtp_model(model))
        (tmp_path / name).mkdir()
        drafter = load_drafter(write_modules(tmp_path / name, modules), Target(model.float()))
        assert isinstance(drafter, MtpDrafter)
        about = describe_checkpoint(tmp_path / name)
        assert (about.family, about.num_mtp_modules, about.hidden_size) == ("native MTP", 1, WIDTH)
        save_file({**modules, "more.weight": torch.zeros(2)}, tmp_path / name / "model.safetensors")
        with pytest.raises(
            ValueError, match=r"must be native MTP: missing tensors \[\], unused tensors \['more.weight'\]"
        ):
            load_drafter(tmp_path / name, Target(model))


def test_a_language_model_is_one_with_modules_too(tmp_path):
    target, _ = load_target(written(tmp_path), device="cpu")
    assert isinstance(load_drafter(tmp_path, target), CausalLMDrafter)


def test_inspect_counts_them_and_holds_them_against_their_target(tmp_path):
    directory = written(tmp_path, "deepseek_v3", 2)
    about = describe_checkpoint(directory, directory)
    assert (about.family, about.num_layers, about.num_mtp_modules) == ("causal language model", NUM_LAYERS, 2)
    assert about.problems == []
    own = describe_checkpoint("mtp", directory)
    assert (own.family, own.num_layers, own.num_mtp_modules, own.problems) == ("native MTP", 0, 2, [])
    assert own.num_parameters < about.num_parameters
    with pytest.raises(ValueError, match="target must be given with 'mtp'"):
        describe_checkpoint("mtp")
    family_model("glm4_moe").float().save_pretrained(tmp_path)
    (problem,) = describe_checkpoint("mtp", tmp_path).problems
    assert problem.startswith(
        "draft must be native MTP modules, numbered on from the target's 3 layers or named 'mtp.'"
    )
    assert describe_checkpoint(tmp_path).num_mtp_modules is None


def test_only_the_shards_with_modules_are_opened(tmp_path, monkeypatch):
    target, _ = load_target(written(tmp_path), device="cpu")
    expected = load_drafter("mtp", target).state_dict()
    tensors = load_file(tmp_path / "model.safetensors")
    places = {name: f"model-{1 + (f'layers.{NUM_LAYERS}.' in name)}.safetensors" for name in tensors}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == shard}, tmp_path / shard)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    monkeypatch.setattr("nanospec.checkpoints.files.load_file", None)  # would read whole files
    state = load_drafter("mtp", target).state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    (tmp_path / "model-2.safetensors").write_bytes(b"no header")
    with pytest.raises(ValueError, match="model-2.safetensors must be a readable weight file"):
        load_drafter("mtp", target)


@pytest.mark.parametrize("stored", ["embed_tokens.weight", "shared_head.head.weight"])
def test_a_stored_embedding_or_head_is_the_targets_or_its_own(tmp_path, stored):
    model = target_model("glm4_moe", 2)
    modules, target = published("glm4_moe", mtp_model(model)), Target(model.float())
    shared = target.embed_tokens.weight if stored.startswith("embed") else target.head_weight
    names = [f"model.layers.{NUM_LAYERS + index}.{stored}" for index in range(2)]
    first = load_drafter(write_modules(tmp_path, modules | {names[0]: shared.clone()}), target)
    assert not any("embed_tokens" in name or "lm_head" in name for name in first.state_dict())
    other = torch.randn(VOCAB_SIZE, WIDTH, generator=torch.Generator().manual_seed(0))
    own = load_drafter(write_modules(tmp_path, modules | {name: other.clone() for name in names}), target)
    weight = own.embed_tokens.weight if stored.startswith("embed") else own.head.weight
    assert torch.equal(weight, other)
    with pytest.raises(NotImplementedError, match=f"MTP modules must all have the same {stored}, got different ones"):
        load_drafter(write_modules(tmp_path, modules | {names[0]: other}), target)
    with pytest.raises(ValueError, match=rf"{stored}' must have shape \(50, 32\), got \(49, 32\)"):
        load_drafter(write_modules(tmp_path, modules | {names[0]: other[:49].clone()}), target)


@pytest.mark.parametrize("name", ["glm4_moe", "mellum"])
def test_every_missing_and_every_unused_tensor_is_named(tmp_path, name):
    model = target_model(name, 1)
    modules, target = published(name, mtp_model(model)), Target(model.float())
    for missing in modules:
        rest = {key: value for key, value in modules.items() if key != missing}
        extra = missing + "_scale"
        with pytest.raises(ValueError, match="must be native MTP") as caught:
            load_mtp_drafter(write_modules(tmp_path, {**rest, extra: torch.ones(2)}), target)
        assert repr(missing.removeprefix("model.")) in str(caught.value)
        assert repr(extra.removeprefix("model.")) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor * torch.nan, "weights must be finite, got NaN or infinity in 'layers.3."),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "weights must be float64, .*, got torch.float8_e4m3fn in 'lay"),
        (lambda tensor: tensor.int(), "weights must be float64, .*, got torch.int32 in 'layers.3."),
        (lambda tensor: tensor[:-1].clone(), "draft tensor 'layers.3.* must have shape "),
        (lambda tensor: tensor[None].clone(), "weights must be vectors or matrices|must have shape"),
    ],
)
@pytest.mark.parametrize("part", ["eh_proj.weight", "mlp.experts.1.up_proj.weight", "mlp.gate.e_score_correction_bias"])
def test_damaged_tensors_are_refused_by_name(tmp_path, part, change, message):
    model = target_model("glm4_moe", 1)
    modules, key = published("glm4_moe", mtp_model(model)), f"model.layers.{NUM_LAYERS}.{part}"
    with pytest.raises(ValueError, match=message):
        load_drafter(write_modules(tmp_path, modules | {key: change(modules[key])}), Target(model.float()))


def test_another_number_of_modules_than_the_config_says_is_refused(tmp_path):
    model = target_model("glm4_moe", 2)
    modules = published("glm4_moe", mtp_model(model))
    one = {key: value for key, value in modules.items() if f"layers.{NUM_LAYERS}." in key}
    with pytest.raises(ValueError, match="num_mtp_layers must be 1, as many as there are MTP modules, got 2"):
        load_drafter(write_modules(tmp_path, one), Target(model.float()))


def test_targets_without_a_checkpoint_or_without_modules_are_refused(tmp_path):
    model = target_model("glm4_moe", 1)
    with pytest.raises(ValueError, match="draft 'mtp' needs a target that was read from a checkpoint, got one made in"):
        load_drafter("mtp", Target(model))
    model.float().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="draft must be native MTP modules, numbered on from the target's 3 layers"):
        SpeculativeDecoder.from_pretrained(tmp_path, "mtp", device="cpu")
    llama = family_model("llama-bias").float()
    other = write_modules(tmp_path, published("glm4_moe", mtp_model(model)))
    with pytest.raises(NotImplementedError, match="must be one of .* for native MTP modules, got 'llama'"):
        load_drafter(other, Target(llama))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=3))
def test_a_damaged_file_loads_or_is_refused_with_a_typed_error(tmp_path, kept, flips):
    model = target_model("glm4_moe", 1)
    file = write_modules(tmp_path, published("glm4_moe", mtp_model(model))) / "model.safetensors"
    content = bytearray(file.read_bytes())
    for place, change in flips:
        content[int(place * 3000)] ^= change  # the header lies in front
    file.write_bytes(content[: int(kept * len(content))] if kept < 0.5 else content)
    with suppress(ValueError, TypeError, NotImplementedError, FileNotFoundError):
        load_drafter(tmp_path, Target(model.float()))


def test_modules_are_read_at_the_commit_of_their_target(tmp_path, monkeypatch):
    directory = written(tmp_path)
    model = load_target(directory, device="cpu")[0].model
    asked = []

    def snapshot(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision))
        return str(directory)

    monkeypatch.setattr("nanospec.checkpoints.files.snapshot_download", snapshot)
    model.config.name_or_path, model.config._commit_hash = "somebody/model", "0123abcd"
    load_drafter("mtp", Target(model))
    assert set(asked) == {("somebody/model", "0123abcd")}
