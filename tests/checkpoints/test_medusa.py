"""Medusa heads in every published layout, written by hand, against the drafter that is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nanospec.checkpoints import load_medusa_drafter
from nanospec.drafters.medusa import MedusaDrafter, MedusaShape
from nanospec.records import DraftVocab
from nanospec.target import Target

HIDDEN, VOCAB, HEADS = 16, 37, 5
TOKEN_MAP = torch.tensor([30, 0, 7, 12])
# As uploaded: two heads, where the file has five; neither hidden size nor vocabulary.
CONFIG = {"base_model_name_or_path": "vicuna", "medusa_num_heads": 2, "medusa_num_layers": 1}


class Intruder:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def random(*size: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(*size, generator=generator) * 0.3


def heads(num_layers: int = 1, num_rows: int = VOCAB, bias: bool = True) -> list[dict[str, Any]]:
    """Per head its blocks, [D, D + 1] with the bias last, and its output rows."""
    blocks = random(HEADS, num_layers, HIDDEN, HIDDEN + 1)
    rows = random(HEADS, num_rows, HIDDEN)
    return [
        {"blocks": [(b[:, :-1], b[:, -1] if bias else None) for b in blocks[h]], "rows": rows[h]} for h in range(HEADS)
    ]


def published(parts: list[dict[str, Any]], outputs: str = "own") -> dict[str, Tensor]:
    """FasterDecoding's names; without output rows those of text-generation-inference."""
    tensors = {}
    for h, head in enumerate(parts):
        for layer, (weight, bias) in enumerate(head["blocks"]):
            tensors[f"{h}.{layer}.linear.weight"] = weight
            if bias is not None:
                tensors[f"{h}.{layer}.linear.bias"] = bias
        if outputs == "own":
            tensors[f"{h}.{len(head['blocks'])}.weight"] = head["rows"]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def vllm(parts: list[dict[str, Any]], outputs: str = "own") -> dict[str, Tensor]:
    tensors = {}
    for h, head in enumerate(parts):
        for layer, (weight, bias) in enumerate(head["blocks"]):
            tensors[f"blocks.{h}.layers.{layer}.weight"] = weight
            if bias is not None:
                tensors[f"blocks.{h}.layers.{layer}.bias"] = bias
        if outputs == "own" or (outputs == "first" and h == 0):
            tensors[f"lm_heads.{h}.weight"] = head["rows"]
    if outputs == "shared":
        tensors["lm_head.weight"] = parts[0]["rows"]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def write(directory: Path, tensors: dict[str, Tensor], file: str = "medusa_lm_head.pt", **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    if file.endswith(".safetensors"):
        save_file(tensors, directory / file)
    else:
        torch.save(tensors, directory / file)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}), encoding="utf-8")
    return directory


def all_logits(drafter: MedusaDrafter, target: Target, feature: Tensor) -> Tensor:
    """[heads, V]"""
    ids = torch.arange(VOCAB)[None]
    vocab = DraftVocab(ids, torch.tensor([VOCAB], dtype=torch.int32), target.head_weight.detach()[None], True)
    state = drafter.extend(torch.zeros(1, 1, dtype=torch.int64), feature[None, None])
    logits = []
    for depth in range(1, drafter.max_depth + 1):
        logits.append(drafter.logits(state, vocab)[0, 0])
        state = drafter.advance(ids[:, :1], state, depth, torch.ones(1, 1, depth, dtype=torch.bool))
    return torch.stack(logits)


def expected_logits(parts: list[dict[str, Any]], rows: list[Tensor], feature: Tensor) -> Tensor:
    """[heads, R], one head after the other."""
    logits = []
    for head, own_rows in zip(parts, rows, strict=True):
        x = feature
        for weight, bias in head["blocks"]:
            inner = weight @ x + (0 if bias is None else bias)
            x = x + inner * torch.sigmoid(inner)
        logits.append(own_rows @ x)
    return torch.stack(logits)


def check(drafter: MedusaDrafter, target: Target, parts: list[dict[str, Any]], rows: list[Tensor]) -> None:
    feature = random(HIDDEN)
    torch.testing.assert_close(all_logits(drafter, target, feature), expected_logits(parts, rows, feature))


@pytest.mark.parametrize("file", ["medusa_lm_head.pt", "medusa_lm_head.safetensors", "model.safetensors"])
@pytest.mark.parametrize("prefix", ["", "medusa_head.", "medusa_heads.", "module."])
def test_files_and_prefixes_as_published_are_read(tmp_path: Path, target: Target, file: str, prefix: str) -> None:
    parts = heads()
    tensors = {prefix + name: tensor for name, tensor in published(parts).items()}
    drafter = load_medusa_drafter(write(tmp_path, tensors, file), target)
    assert drafter.shape == MedusaShape(HIDDEN, HEADS, 1, HEADS, VOCAB)
    assert not any(parameter.requires_grad for parameter in drafter.parameters())
    check(drafter, target, parts, [head["rows"] for head in parts])


@pytest.mark.parametrize("layout", [published, vllm])
@pytest.mark.parametrize(("num_layers", "bias"), [(1, False), (2, True), (3, False)])
def test_layers_and_biases_are_those_of_the_tensors(
    tmp_path: Path, target: Target, layout, num_layers: int, bias: bool
) -> None:
    parts = heads(num_layers, bias=bias)
    drafter = load_medusa_drafter(write(tmp_path, layout(parts)), target)
    assert drafter.shape == MedusaShape(HIDDEN, HEADS, num_layers, HEADS, VOCAB, bias)
    check(drafter, target, parts, [head["rows"] for head in parts])


def test_heads_without_blocks_are_linear(tmp_path: Path, target: Target) -> None:
    parts = heads(num_layers=1)
    for head in parts:
        head["blocks"] = []
    drafter = load_medusa_drafter(write(tmp_path, published(parts)), target)
    assert drafter.shape == MedusaShape(HIDDEN, HEADS, 0, HEADS, VOCAB, False)
    check(drafter, target, parts, [head["rows"] for head in parts])


@pytest.mark.parametrize("layout", [published, vllm])
def test_heads_without_output_rows_use_the_targets(tmp_path: Path, target: Target, layout) -> None:
    parts = heads()
    drafter = load_medusa_drafter(write(tmp_path, layout(parts, "none")), target)
    assert drafter.shape.num_outputs == 0
    check(drafter, target, parts, [target.head_weight] * HEADS)


@pytest.mark.parametrize(("outputs", "config"), [("shared", {}), ("first", {"original_lm_head": True})])
def test_one_output_matrix_serves_all_heads(tmp_path: Path, target: Target, outputs: str, config: dict) -> None:
    parts = heads()
    drafter = load_medusa_drafter(write(tmp_path, vllm(parts, outputs), "model.safetensors", **config), target)
    assert drafter.shape.num_outputs == 1
    check(drafter, target, parts, [parts[0]["rows"]] * HEADS)


def test_one_output_matrix_is_missing_the_others_unless_the_config_shares_it(tmp_path: Path, target: Target) -> None:
    with pytest.raises(ValueError, match=r"missing tensors \['lm_heads.1.weight', .*'lm_heads.4.weight'\]"):
        load_medusa_drafter(write(tmp_path, vllm(heads(), "first")), target)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_token_map_says_which_ids_the_rows_score(tmp_path: Path, target: Target, dtype: torch.dtype) -> None:
    parts = heads(num_rows=4)
    drafter = load_medusa_drafter(write(tmp_path, {**vllm(parts), "token_map": TOKEN_MAP.to(dtype)}), target)
    feature = random(HIDDEN)
    logits, expected = all_logits(drafter, target, feature), expected_logits(parts, [p["rows"] for p in parts], feature)
    torch.testing.assert_close(logits[:, TOKEN_MAP], expected)
    assert logits.isneginf().sum() == HEADS * (VOCAB - 4)


def test_rows_of_all_ids_beside_a_token_map_score_all_ids(tmp_path: Path, target: Target) -> None:
    parts = heads()
    drafter = load_medusa_drafter(write(tmp_path, {**vllm(parts), "token_map": TOKEN_MAP}), target)
    check(drafter, target, parts, [head["rows"] for head in parts])


def test_half_precision_files_take_the_targets_dtype(tmp_path: Path, target: Target) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in published(heads()).items()}
    drafter = load_medusa_drafter(write(tmp_path, tensors), target)
    assert drafter.dtype == torch.float32
    assert torch.equal(drafter.outputs[3], tensors["3.1.weight"].float())


def test_no_config_is_needed(tmp_path: Path, target: Target) -> None:
    (write(tmp_path, published(heads())) / "config.json").unlink()
    assert load_medusa_drafter(tmp_path, target).max_depth == HEADS


@pytest.mark.parametrize("name", ["2.0.linear.weight", "2.0.linear.bias", "4.1.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, target: Target, name: str) -> None:
    tensors = published(heads())
    del tensors[name]
    with pytest.raises(ValueError, match=rf"missing tensors \['{name}'\], unused tensors \[\]"):
        load_medusa_drafter(write(tmp_path, tensors), target)


@pytest.mark.parametrize(
    "name", ["norm.weight", "0.7.weight", "lm_head.weight", "blocks.0.extra", "0.0.linear.scale", "token_maps"]
)
def test_an_unused_tensor_is_named(tmp_path: Path, target: Target, name: str) -> None:
    with pytest.raises(ValueError, match=rf"unused tensors \['{name}'\]"):
        load_medusa_drafter(write(tmp_path, {**published(heads()), name: torch.zeros(HIDDEN)}), target)


def test_a_gap_between_the_heads_is_named(tmp_path: Path, target: Target) -> None:
    tensors = {name.replace("4.", "9000000000.", 1): tensor for name, tensor in published(heads()).items()}
    with pytest.raises(ValueError, match=r"missing tensors \['4.0.linear.bias', .* unused tensors \['9000000000.0"):
        load_medusa_drafter(write(tmp_path, tensors), target)


def test_layouts_do_not_mix(tmp_path: Path, target: Target) -> None:
    tensors = {**published(heads(), "none"), "lm_heads.0.weight": random(VOCAB, HIDDEN)}
    with pytest.raises(ValueError, match=r"unused tensors \['0.0.linear.bias'"):
        load_medusa_drafter(write(tmp_path, tensors), target)


def test_a_map_without_rows_of_its_own_is_unused(tmp_path: Path, target: Target) -> None:
    with pytest.raises(ValueError, match=r"unused tensors \['token_map'\]"):
        load_medusa_drafter(write(tmp_path, {**published(heads(), "none"), "token_map": TOKEN_MAP}), target)


@pytest.mark.parametrize(
    ("name", "size"),
    [("0.0.linear.weight", (HIDDEN, 8)), ("1.0.linear.bias", (8,)), ("4.1.weight", (36, HIDDEN))],
    ids=["block", "bias", "rows"],
)
def test_a_wrong_shape_is_named(tmp_path: Path, target: Target, name: str, size: tuple[int, ...]) -> None:
    tensors = {**published(heads()), name: torch.zeros(size)}
    with pytest.raises(ValueError, match=rf"tensor '{name}' must have shape .* hidden size 16 and 37 ids, got"):
        load_medusa_drafter(write(tmp_path, tensors), target)


@pytest.mark.parametrize(
    ("token_map", "message"),
    [
        (torch.tensor([1.0, 2.0]), "token_map must hold integers, got torch.float32"),
        (torch.tensor([[1, 2]]), r"token_map must be 1-D and not empty, got shape \(1, 2\)"),
        (torch.tensor([1, 37, 2, 3]), "token_map must hold ids between 0 and 36, got 37"),
        (torch.tensor([-1, 3, 2, 4]), "token_map must hold ids between 0 and 36, got -1"),
        (torch.tensor([3, 1, 3, 1]), "token_map must hold distinct ids, got 2 repetitions"),
        (torch.tensor([3, 1, 2]), r"'lm_heads.0.weight' must have shape \(3, 16\)"),
    ],
)
def test_a_wrong_token_map_is_named(tmp_path: Path, target: Target, token_map: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_medusa_drafter(write(tmp_path, {**vllm(heads(num_rows=4)), "token_map": token_map}), target)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.full((HIDDEN, HIDDEN), torch.nan), "weights must be finite, got NaN or infinity in '0.0.linear.weight'"),
        (torch.zeros(HIDDEN, HIDDEN, dtype=torch.int8), "got torch.int8 in '0.0.linear.weight'"),
    ],
    ids=["nan", "int8"],
)
def test_weights_of_the_wrong_kind_are_named(tmp_path: Path, target: Target, tensor: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_medusa_drafter(write(tmp_path, {**published(heads()), "0.0.linear.weight": tensor}), target)


def test_what_holds_no_heads_is_refused(tmp_path: Path, target: Target) -> None:
    with pytest.raises(ValueError, match=r"draft must hold Medusa heads, got tensors \['fc.weight'\]"):
        load_medusa_drafter(write(tmp_path, {"fc.weight": torch.zeros(HIDDEN, 2 * HIDDEN)}), target)


@pytest.mark.parametrize("kept_bytes", [0, 5, 300])
@pytest.mark.parametrize("file", ["medusa_lm_head.pt", "medusa_lm_head.safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, target: Target, file: str, kept_bytes: int) -> None:
    path = write(tmp_path, published(heads()), file) / file
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ValueError, match=f"{file} must be a readable weight file"):
        load_medusa_drafter(tmp_path, target)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, target: Target) -> None:
    torch.save({**published(heads()), "0.0.linear.bias": Intruder(tmp_path / "ran")}, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(ValueError, match="must be a readable weight file"):
        load_medusa_drafter(tmp_path, target)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path: Path, target: Target) -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint must hold one of"):
        load_medusa_drafter(tmp_path, target)
