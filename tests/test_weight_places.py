"""What a captured pass reads: other memory or other adapters are told, numbers written in place are not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from nanospec.weight_places import weight_places, weight_state
from tests.tiny_families import FAMILIES, family_model
from tests.tiny_pair import tiny_model


class Adapted(nn.Module):
    """Keeps the names of a LoRA layer of peft."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.scaling = base, {"first": 1.0}
        self._disable_adapters, self._active_adapter, self.merged_adapters = False, ["first"], []
        self.lora_A = nn.ModuleDict({"first": nn.Linear(base.in_features, 2, bias=False)})


def replace_a_weight(model):
    down = model.model.layers[0].mlp.down_proj
    down.weight = nn.Parameter(down.weight.clone())


def cast_a_weight(model):
    model.model.layers[0].mlp.down_proj.half()


def add_an_adapter(model):
    mlp = model.model.layers[0].mlp
    mlp.down_proj = Adapted(mlp.down_proj)


def replace_a_buffer(model):
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.clone()


@pytest.mark.parametrize("change", [replace_a_weight, cast_a_weight, add_an_adapter, replace_a_buffer])
def test_a_change_of_what_a_pass_reads_is_told(change):
    model = tiny_model(3)
    before = weight_places(model)
    assert weight_places(model) == before
    change(model)
    assert weight_places(model) != before


@pytest.mark.parametrize(
    ("name", "value"),
    [("_disable_adapters", True), ("_active_adapter", []), ("merged_adapters", ["first"]), ("scaling", {"first": 2.0})],
)
def test_a_change_of_adapters_is_told(name, value):
    model = nn.Sequential(Adapted(nn.Linear(3, 4)))
    before = weight_places(model)
    setattr(model[0], name, value)
    assert weight_places(model) != before


def test_what_an_adapter_changes_in_place_is_told():
    """peft extends its own list when it merges."""
    model = nn.Sequential(Adapted(nn.Linear(3, 4)))
    before = weight_places(model)
    model[0].merged_adapters.append("first")
    assert weight_places(model) != before


def test_numbers_written_in_place_are_the_same_place():
    model = tiny_model(3)
    before = weight_places(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert weight_places(model) == before


def test_a_tensor_that_is_a_shell_lies_where_its_parts_lie():
    first, second = torch.zeros(2, 3), torch.zeros(2, 3)
    model = nn.Linear(3, 2, bias=False)
    model.weight = nn.Parameter(TwoTensor(first, second))
    before = weight_places(model)
    model.weight = nn.Parameter(TwoTensor(first, second))
    assert weight_places(model) == before
    model.weight = nn.Parameter(TwoTensor(first, second.clone()))
    assert weight_places(model) != before


def test_what_is_no_module_has_no_weights():
    assert weight_places(object(), nn.Identity()) == weight_state(object(), nn.Identity()) == ((),)


def cast_there_and_back(model):
    model.float()
    model.double()


def replace_the_rotary_embedding(model):
    model.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)


def write_a_buffer(model):
    model.model.rotary_emb.inv_freq.mul_(0.5)


def write_a_weight(model):
    with torch.no_grad():
        model.lm_head.weight.mul_(2)


def load_weights(model):
    model.load_state_dict(model.state_dict())


CHANGES = [replace_a_weight, cast_a_weight, cast_there_and_back, add_an_adapter, write_a_weight, load_weights]


@pytest.mark.parametrize("change", [*CHANGES, replace_a_buffer, replace_the_rotary_embedding, write_a_buffer])
def test_other_weights_and_numbers_written_into_them_are_another_state(change):
    model = tiny_model(3)
    before = weight_state(model)
    assert weight_state(model) == before
    change(model)
    assert weight_state(model) != before


def test_a_weight_at_the_address_of_an_earlier_one_is_another_state():
    model, memory = nn.Linear(8, 8, bias=False), np.ones((8, 8), np.float32)
    model.weight = nn.Parameter(torch.from_numpy(memory))
    place, before = weight_places(model), weight_state(model)
    model.weight = nn.Parameter(torch.from_numpy(2 * memory))
    memory *= 3
    model.weight = nn.Parameter(torch.from_numpy(memory))
    assert weight_places(model) == place
    assert weight_state(model) != before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_leaves_the_state_as_it_was(family):
    model = family_model(family)
    before = weight_state(model)
    model(input_ids=torch.tensor([[3, 1, 4]]))
    assert weight_state(model) == before


def test_another_rotary_embedding_of_longrope_is_another_state():
    model = family_model("phi3-longrope")
    before = weight_state(model)
    replace_the_rotary_embedding(model)
    assert weight_state(model) != before


def test_the_state_of_a_weight_made_in_inference_mode_can_be_told():
    with torch.inference_mode():
        model = nn.Linear(2, 3)
    assert weight_state(model) == weight_state(model)


class OnAMesh(TwoTensor):
    """Names what is no tensor among its parts, as a DTensor does."""

    def __tensor_flatten__(self):
        names, context = super().__tensor_flatten__()
        return [*names, "mesh"], context


def test_a_shell_may_name_parts_that_are_no_tensors():
    parts = torch.randn(2, 2), torch.randn(2, 2)
    model = nn.Linear(2, 2, bias=False)
    model.weight = nn.Parameter(OnAMesh(*parts), requires_grad=False)
    model.weight.mesh = "cpu:2"
    before = weight_state(model)
    assert weight_state(model) == before
    assert weight_places(model) == weight_places(model)
    model.weight.b.data = torch.randn(2, 2)
    assert weight_state(model) != before
