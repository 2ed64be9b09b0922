"""The SGLang adapter over a stub of the classes that it hooks: SGLang itself needs a GPU."""

from __future__ import annotations

import pkgutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.integrations.sglang import HotIds, register
from tests.integrations.sglang import stub

TOKEN_MAP = list(range(59, 39, -1))  # the most frequent ids are the last of the vocabulary


@pytest.fixture
def start(monkeypatch):
    """A worker of SGLang with the plug-in in it, ready to serve."""

    def start(token_map=TOKEN_MAP, switch="in-context", is_eagle3=False, **parallel):
        for name, module in stub.modules(**parallel).items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setenv("NANOSPEC_SGLANG", switch)
        monkeypatch.setenv("NANOSPEC_SGLANG_TOP", "2")
        monkeypatch.setenv("NANOSPEC_SGLANG_PINNED", "3")
        register()
        sys.modules[stub.PLUGINS].HookRegistry.apply_hooks()
        workers = sys.modules[stub.WORKERS]
        worker = workers.EAGLEWorkerV2(token_map, is_eagle3)
        # The stub's worker makes its own draft worker: the hooked class.
        worker._draft_worker = workers.EagleDraftWorker(token_map, is_eagle3)
        worker.start()
        return worker

    return start


def serve(worker: Any, requests: list[list[int]], num_steps: int = 12) -> tuple[list[list[int]], int]:
    """Tokens of requests of which one more joins the batch in every step, and steps times requests in all."""
    outputs: list[list[int]] = []
    states: list[Any] = []
    num_trees = 0
    for step in range(num_steps):
        if step < len(requests):
            states.append(worker.prefill(requests[step]))
            outputs.append(states[-1].bonus_tokens.tolist())
        for row, (tokens, state, _) in enumerate(worker.decode(states)):
            outputs[row] += tokens
            states[row] = state
        num_trees += len(states)
    return outputs, num_trees


def greedy(worker: Any, prompt: list[int], num_tokens: int) -> list[int]:
    tokens = [*prompt]
    for _ in range(num_tokens):
        tokens.append(int(worker.target_logits(torch.tensor(tokens[-1:])).argmax()))
    return tokens[len(prompt) :]


PROMPTS = [[1, 2, 3], [7], [20, 30], [5, 4]]


def test_output_is_the_targets_own_and_drafts_are_better_than_those_of_the_map(start):
    plain_outputs, _ = serve(plain := start(switch=""), PROMPTS)
    outputs, _ = serve(worker := start(), PROMPTS)
    for prompt, output, plain_output in zip(PROMPTS, outputs, plain_outputs, strict=True):
        assert output == greedy(worker, prompt, len(output))
        assert plain_output == greedy(plain, prompt, len(plain_output))
    assert sum(map(len, outputs)) > sum(map(len, plain_outputs))


def test_what_is_drafted_is_what_was_proposed_however_many_requests_came_between(start):
    worker = start()
    state = worker.prefill([1, 2, 3])
    proposed = state.topk_index.clone()
    columns = worker.draft_worker.captured[0].tolist()
    for prompt in ([10, 11, 12], [13, 14, 15], [16, 17, 18], [19, 20, 21]):  # their ids take columns
        worker.prefill(prompt)
    assert worker.draft_worker.captured[0].tolist() != columns
    [(_, _, tree)] = worker.decode([state])
    assert tree[1 : 1 + stub.TOPK] == proposed[0].tolist()
    assert torch.equal(state.topk_index, proposed)


def test_prompt_and_tree_and_the_targets_best_ids_are_drafted_from(start):
    worker = start()
    hot_token_id = worker.draft_worker.hot_token_id
    state = worker.prefill([1, 2, 3])
    assert {1, 2, 3, int(state.bonus_tokens)} <= set(hot_token_id.tolist())
    [(tokens, _, tree)] = worker.decode([state])
    first_choices = worker.target_logits(torch.tensor(tree)).argmax(-1).tolist()
    assert {*tokens, *tree, *first_choices} <= set(hot_token_id.tolist())


def test_buffers_keep_their_addresses(start):
    worker = start()
    lm_head = worker.draft_worker.draft_runner.model.lm_head
    addresses = worker.draft_worker.hot_token_id.data_ptr(), lm_head.weight.data_ptr()
    before = worker.draft_worker.hot_token_id.tolist()
    serve(worker, PROMPTS)
    assert worker.draft_worker.hot_token_id.tolist() != before
    assert (worker.draft_worker.hot_token_id.data_ptr(), lm_head.weight.data_ptr()) == addresses


def test_without_the_switch_nothing_is_hooked(start):
    worker = start(switch="")
    assert not sys.modules[stub.PLUGINS].HookRegistry._hooks
    serve(worker, PROMPTS)
    assert worker.draft_worker.hot_token_id.tolist() == TOKEN_MAP


def test_the_entry_point_names_register():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert pkgutil.resolve_name(project["entry-points"]["sglang.srt.plugins"]["nanospec"]) is register


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (NotImplementedError, "tp_size must be 1 with nanospec, got 2", {"tp_size": 2}),
        (NotImplementedError, "must be EAGLE with nanospec, got EAGLE3", {"is_eagle3": True}),
        (ValueError, "--speculative-token-map must name a list", {"token_map": None}),
        (ValueError, "token map: token ids must be distinct", {"token_map": [4, 5, 4, 6]}),
        (ValueError, "NANOSPEC_SGLANG must be 'in-context' or not set, got 'static'", {"switch": "static"}),
    ],
)
def test_what_cannot_work_is_refused_by_name(start, error, message, changes):
    with pytest.raises(error, match=message):
        start(**changes)


def test_a_hook_that_sglang_could_not_apply_is_an_error(start, monkeypatch):
    register_all = stub.HookRegistry.register.__func__

    def register_some(cls, target, hook, hook_type=stub.HookType.AFTER, *, source=None):
        if not target.endswith(".draft"):
            register_all(cls, target, hook, hook_type, source=source)

    monkeypatch.setattr(stub.HookRegistry, "register", classmethod(register_some))
    with pytest.raises(RuntimeError, match="EagleDraftWorker.draft must carry nanospec's hook"):
        start()


def test_more_proposals_than_the_map_has_room_for_are_an_error(start):
    worker = start(token_map=TOKEN_MAP[:6])
    states = [worker.prefill([1]), worker.prefill([2])]
    with pytest.raises(ValueError, match="the token map must hold at least 9 ids, 3 pinned ones"):
        worker.decode(states)


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(-1, 30), min_size=1, max_size=25), max_size=6), st.integers(0, 7), st.data())
def test_all_ids_are_distinct_and_have_their_rows_whatever_is_seen(observed, num_pinned, data):
    full_head = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    first_ids = torch.tensor(data.draw(st.permutations(range(30))))[:12]
    hot_ids = HotIds(full_head, first_ids, num_pinned)
    assert sorted(hot_ids.hot_token_id.tolist()) == sorted(first_ids.tolist())
    for ids in observed:
        hot_ids.observe(torch.tensor(ids))
        held = hot_ids.hot_token_id.tolist()
        assert len(set(held)) == 12
        assert set(first_ids[:num_pinned].tolist()) <= set(held)
        assert torch.equal(hot_ids.rows, full_head[hot_ids.hot_token_id])
    wanted = torch.tensor(data.draw(st.permutations(range(30))))[: 12 - num_pinned].view(1, -1)
    assert torch.equal(hot_ids.ids_of(hot_ids.columns_of(wanted)), wanted)
