"""A draft model with the plugin mixed in: its own logits on the request's ids, all of them where that cannot be."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nanospec.integrations.vllm.settings import FREQUENT_IDS_FILE
from nanospec.vocab.static_list import write_static_list
from tests.integrations.vllm.stand_ins import (
    HIDDEN,
    VOCAB_SIZE,
    InContextPlainDraft,
    InContextPlainEagle,
    PlainDraft,
    active_ids,
    loaded_draft,
    vllm_config,
)

# A product over gathered rows may add in another order than one over all rows: some units of float64.
TOLERANCE = 1e-12


def hidden_states(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def test_logits_are_its_own_on_the_ids_of_each_request():
    draft, hidden = loaded_draft(), hidden_states(2)
    head = draft.head_now()
    head.rows.admit("a", [3, 17])
    head.rows.admit("b", [8])
    head.publish(["b", "a"])
    expected = torch.full((2, VOCAB_SIZE), -torch.inf, dtype=torch.float64)
    own = PlainDraft.compute_logits(draft, hidden)
    expected[0, 8], expected[1, 3], expected[1, 17] = own[0, 8], own[1, 3], own[1, 17]
    torch.testing.assert_close(draft.compute_logits(hidden), expected, rtol=0, atol=TOLERANCE)
    assert torch.equal(draft.get_top_tokens(hidden), expected.argmax(1))


def test_a_soft_cap_is_applied():
    draft, hidden = loaded_draft(), hidden_states(1)
    plain = PlainDraft.compute_logits(draft, hidden)
    draft.logits_processor.soft_cap = 0.7
    head = draft.head_now()
    head.rows.admit("a", list(range(VOCAB_SIZE)))
    head.publish(["a"])
    expected = torch.tanh(plain / 0.5 / 0.7) * 0.7 * 0.5
    torch.testing.assert_close(draft.compute_logits(hidden), expected, rtol=0, atol=TOLERANCE)


class SharedHead(torch.nn.Module):
    """As vLLM's: called, it is the norm before the head."""

    def __init__(self, head) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden):
        return 3 * hidden


def test_an_mtp_module_that_keeps_norm_and_head_in_its_layer_uses_those_of_the_step():
    draft, hidden = loaded_draft(), hidden_states(1)
    first, second = (SharedHead(torch.nn.Linear(HIDDEN, VOCAB_SIZE, bias=False, dtype=torch.float64)) for _ in range(2))
    layers = {"8": first, "9": second}
    draft.model.layers = torch.nn.ModuleDict({name: torch.nn.Module() for name in layers})
    for name, shared_head in layers.items():
        shared_head.head.tp_size = 1
        draft.model.layers[name].shared_head = shared_head
    draft.model.mtp_start_layer_idx, draft.model.num_mtp_layers = 8, 2
    head = draft.head_now()
    head.rows.admit("a", list(range(VOCAB_SIZE)))
    head.publish(["a"])
    for step, shared_head in enumerate((first, second, first)):
        expected = 0.5 * shared_head.head(3 * hidden)
        torch.testing.assert_close(draft.compute_logits(hidden, spec_step_idx=step), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("num_rows", [1, 3, 64])
def test_dummy_and_profile_runs_score_the_full_head(num_rows):
    draft, hidden = loaded_draft(), hidden_states(num_rows)
    own = PlainDraft.compute_logits(draft, hidden)
    assert torch.equal(draft.compute_logits(hidden), own)
    assert torch.equal(draft.get_top_tokens(hidden), own.argmax(1))


def test_switched_off_it_is_the_model_that_vllm_has():
    draft, hidden = loaded_draft(off=True), hidden_states(2)
    assert draft.head_now() is None
    assert torch.equal(draft.compute_logits(hidden), PlainDraft.compute_logits(draft, hidden))


def test_a_head_that_cannot_be_scored_by_rows_is_left_to_vllm_with_a_warning(caplog):
    draft = loaded_draft()
    draft._why_not = lambda: "lm_head must not be quantized, got Fp8LinearMethod"
    assert draft.head_now() is None
    assert "must not be quantized, got Fp8LinearMethod" in caplog.text
    hidden = hidden_states(1)
    assert torch.equal(draft.compute_logits(hidden), PlainDraft.compute_logits(draft, hidden))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"lora_config": object()}, "with LoRA"),
        ({"cache_config": SimpleNamespace(kv_sharing_fast_prefill=True)}, "kv_sharing_fast_prefill"),
    ],
)
def test_where_a_prompts_hidden_states_are_no_use_its_positions_are_left_out_with_a_warning(caplog, parts, reason):
    config = vllm_config()
    vars(config).update(parts)
    assert InContextPlainDraft(vllm_config=config).prompt_positions == 0
    assert f"none of the target's: {reason}" in caplog.text
    assert loaded_draft().prompt_positions > 0
    assert loaded_draft(num_top=0).prompt_positions == 0


def test_weights_that_are_not_read_from_a_file_get_a_head_all_the_same():
    draft = InContextPlainDraft(vllm_config=vllm_config())
    assert draft.head_now() is not None


def test_a_list_of_ids_beside_the_weights_is_no_weight():
    draft = InContextPlainDraft(vllm_config=vllm_config())
    draft.load_weights([("token_ids", torch.arange(3)), ("lm_head.weight", torch.ones(VOCAB_SIZE, HIDDEN))])
    assert (draft.lm_head.weight == 1).all()


class TestReducedDraft:
    """Of a draft that scores five of the target's ids (d2t)."""

    sayable = (2, 3, 11, 30, 39)

    def draft(self):
        draft = InContextPlainDraft(vllm_config=vllm_config())
        offsets = torch.tensor(self.sayable) - torch.arange(5)
        draft.draft_id_to_target_id = torch.nn.Parameter(offsets, requires_grad=False)
        draft.lm_head = torch.nn.Linear(HIDDEN, 5, bias=False, dtype=torch.float64)
        draft.lm_head.tp_size = 1
        draft.load_weights([])
        return draft

    def test_ids_go_through_the_map(self):
        draft, hidden = self.draft(), hidden_states(1)
        head = draft.head_now()
        head.rows.admit("a", [39, 5, 3])
        head.publish(["a"])
        logits, own = draft.compute_logits(hidden), PlainDraft.compute_logits(draft, hidden)
        assert (logits.isfinite().nonzero()[:, 1]).tolist() == [3, 39]
        torch.testing.assert_close(logits[:, [3, 39]], own[:, [3, 39]], rtol=0, atol=TOLERANCE)

    def test_a_request_whose_ids_it_lacks_gets_the_full_head(self):
        draft, hidden = self.draft(), hidden_states(1)
        head = draft.head_now()
        head.rows.admit("a", [0, 1])
        head.publish(["a"])
        assert torch.equal(draft.compute_logits(hidden), PlainDraft.compute_logits(draft, hidden))

    def test_a_map_that_repeats_an_id_is_refused(self):
        draft = self.draft()
        draft.draft_id_to_target_id[0] = self.sayable[1]
        with pytest.raises(ValueError, match="draft d2t must lead to distinct ids, got 1 repetitions"):
            draft._new_head()


class TestHybrid:
    def test_frequent_ids_lie_beside_the_draft(self, tmp_path):
        write_static_list(tmp_path / FREQUENT_IDS_FILE, torch.tensor([7, 9, 4, 1]))
        head = loaded_draft(str(tmp_path), vocab="hybrid:3").head_now()
        head.rows.admit("a", [30])
        assert active_ids(head, "a") == {7, 9, 4, 30}

    def test_a_list_may_be_named(self, tmp_path):
        write_static_list(tmp_path / "list.pt", torch.tensor([7, 9]))
        for settings in (
            {"vocab": f"hybrid:{tmp_path / 'list.pt'}"},
            {"vocab": "hybrid:2", "frequent_ids": str(tmp_path / "list.pt")},
        ):
            head = loaded_draft(**settings).head_now()
            head.rows.admit("a", [])
            assert active_ids(head, "a") == {7, 9}

    def test_no_list_is_an_error_that_says_where_one_belongs(self, tmp_path):
        with pytest.raises(ValueError, match="'hybrid:8' needs a list of frequent ids: .* NANOSPEC_FREQUENT_IDS"):
            loaded_draft(str(tmp_path), vocab="hybrid:8")

    def test_a_short_list_is_an_error(self, tmp_path):
        write_static_list(tmp_path / FREQUENT_IDS_FILE, torch.tensor([7, 9]))
        with pytest.raises(ValueError, match="'hybrid:8' needs as many frequent ids, .* has 2"):
            loaded_draft(str(tmp_path), vocab="hybrid:8")


class TestEagleBiases:
    def test_biases_that_no_tensor_fills_are_zero(self):
        draft = InContextPlainEagle(vllm_config=vllm_config())
        draft.load_weights([])
        assert not draft.model.o_proj.bias.any()

    def test_biases_of_the_file_are_kept(self):
        draft, bias = InContextPlainEagle(vllm_config=vllm_config()), torch.arange(float(HIDDEN))
        draft.load_weights([("model.o_proj.bias", bias)])
        assert torch.equal(draft.model.o_proj.bias, bias.double())

    @pytest.mark.parametrize("name", ["fc.bias", "model.fc.bias"])
    def test_the_bias_of_fc_is_added(self, name):
        draft, bias = InContextPlainEagle(vllm_config=vllm_config()), torch.arange(float(HIDDEN))
        states = torch.randn(3, 2 * HIDDEN, dtype=torch.float64)
        plain = draft.model.fc(states)
        draft.load_weights([(name, bias)])
        assert torch.equal(draft.model.fc(states), plain + bias)
        assert draft._vllm_config.additional_config["nanospec_fc_bias"]  # a compiled graph of its own

    def test_weights_may_be_replaced_later_one_by_one(self):
        draft, bias = InContextPlainEagle(vllm_config=vllm_config()), torch.arange(float(HIDDEN))
        draft.load_weights([("model.o_proj.bias", bias), ("fc.bias", bias)])
        head = draft.head_now()
        draft.load_weights([("fc.bias", 2 * bias)])
        assert torch.equal(draft.model.o_proj.bias, bias.double())
        assert torch.equal(draft.model.fc.bias, 2 * bias.double())
        assert draft.head_now() is head

    def test_the_bias_of_fc_is_added_where_the_plugin_is_off_by_config(self):
        draft, bias = InContextPlainEagle(vllm_config=vllm_config(off=True)), torch.ones(HIDDEN)
        draft.load_weights([("fc.bias", bias)])
        assert torch.equal(draft.model.fc.bias, bias.double())

    def test_a_bias_of_another_shape_is_refused(self):
        draft = InContextPlainEagle(vllm_config=vllm_config())
        with pytest.raises(ValueError, match=rf"draft fc.bias must be \[{HIDDEN}\], got shape \(3,\)"):
            draft.load_weights([("fc.bias", torch.ones(3))])

    def test_a_quantized_fc_is_left_as_it_is_with_a_warning(self, caplog):
        draft = InContextPlainEagle(vllm_config=vllm_config())
        draft.model.fc = fc = torch.nn.Identity()
        draft.load_weights([("fc.bias", torch.ones(HIDDEN))])
        assert draft.model.fc is fc
        assert "fc.bias of the draft is left out" in caplog.text
