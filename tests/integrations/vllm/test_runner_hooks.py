"""The hooks in both runners against stand-ins: who the rows are, what is learnt, what is scored when."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from nanospec.integrations.vllm import runner_v1, runner_v2
from nanospec.integrations.vllm.runner_hooks import install_hooks
from nanospec.integrations.vllm.runner_v1 import rows_by_request, top_by_request
from tests.integrations.vllm.stand_ins import VOCAB_SIZE, active_ids, loaded_draft


def one_hot_logits(*best: int) -> torch.Tensor:
    """A row for each, whose best id that is and whose second is the next one."""
    logits = torch.zeros(len(best), VOCAB_SIZE)
    for row, token_id in enumerate(best):
        logits[row, token_id], logits[row, (token_id + 1) % VOCAB_SIZE] = 2.0, 1.0
    return logits


def request(*prompt: int, output: tuple[int, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(prompt_token_ids=list(prompt), output_token_ids=list(output))


def metadata(*num_drafted: int) -> SimpleNamespace:
    ends = torch.tensor(num_drafted, dtype=torch.int32).add(1).cumsum(0)
    return SimpleNamespace(cu_num_sampled_tokens=ends, max_spec_len=max(num_drafted))


def test_rows_of_a_flat_list_go_to_their_requests():
    ids = rows_by_request(torch.tensor([[7], [8], [9]]), torch.tensor([2, 3]), 2)
    assert ids.tolist() == [[[7], [8]], [[9], [-1]]]


def test_the_best_ids_at_every_verified_position_are_read():
    logits = one_hot_logits(4, 9, 20, 30)
    assert top_by_request(logits, metadata(2, 0), 2, 2).tolist() == [
        [[4, 5], [9, 10], [20, 21]],
        [[30, 31], [-1, -1], [-1, -1]],
    ]
    assert top_by_request(logits[:2], None, 2, 1).tolist() == [[[4]], [[9]]]
    assert top_by_request(logits, metadata(2, 0), 2, 0).shape == (2, 0, 0)
    assert top_by_request(None, None, 2, 3).shape == (2, 0, 0)


class RunnerV1:
    """vLLM's V1 runner, as far as the hook goes: what it samples is given, and sampling spoils its logits."""

    def __init__(self, draft) -> None:
        self.drafter = SimpleNamespace(model=draft, use_local_argmax_reduction=False)
        self.requests: dict[str, SimpleNamespace] = {}
        self.input_batch = SimpleNamespace(req_ids=[])
        self.to_sample = torch.empty(0, 0)

    def _sample(self, logits, spec_decode_metadata):
        if logits is not None:
            logits.fill_(0)
        return SimpleNamespace(sampled_token_ids=self.to_sample)

    def step(self, batch: dict[str, list[int]], logits, spec_decode_metadata=None):
        self.input_batch.req_ids, self.to_sample = list(batch), torch.tensor(list(batch.values()), dtype=torch.int32)
        return self._sample(logits, spec_decode_metadata)


@pytest.fixture
def v1(monkeypatch):
    module = ModuleType(runner_v1.RUNNER)
    module.GPUModelRunner = type("GPUModelRunner", (RunnerV1,), {"_sample": RunnerV1._sample})
    monkeypatch.setitem(sys.modules, runner_v1.RUNNER, module)
    assert runner_v1.install()
    wrapped = module.GPUModelRunner._sample
    assert runner_v1.install()  # loaded again
    assert module.GPUModelRunner._sample is wrapped
    return module.GPUModelRunner


class TestV1:
    def test_a_request_learns_its_prompt_its_tokens_and_the_targets_suggestions(self, v1):
        draft = loaded_draft(num_top=2)
        runner = v1(draft)
        runner.requests = {"a": request(1, 2), "b": request(30, output=(31, -1))}
        runner.step({"a": [5], "b": [32]}, one_hot_logits(5, 10))
        head = draft.head_now()
        assert active_ids(head, "a") == {1, 2, 5, 6}
        assert active_ids(head, "b") == {30, 31, 32, 10, 11}
        runner.step({"b": [33, -1, -1], "a": [5, 7, 20]}, one_hot_logits(33, 5, 7, 20), metadata(0, 2))
        assert active_ids(head, "a") == {1, 2, 5, 6, 7, 8, 20, 21}
        assert active_ids(head, "b") == {30, 31, 32, 10, 11, 33, 34}

    def test_rows_of_the_batch_are_its_requests_in_its_order(self, v1):
        draft = loaded_draft(num_top=0)
        runner = v1(draft)
        runner.requests = {"a": request(1), "b": request(2)}
        runner.step({"a": [3], "b": [4]}, None)
        runner.step({"b": [5], "a": [6]}, None)
        logits = draft.compute_logits(torch.ones(2, draft.lm_head.in_features, dtype=torch.float64))
        assert [row.isfinite().nonzero()[:, 0].tolist() for row in logits] == [[2, 4, 5], [1, 3, 6]]

    def test_a_request_that_left_takes_its_ids_along(self, v1):
        draft = loaded_draft(num_top=0)
        runner = v1(draft)
        runner.requests = {"a": request(1)}
        runner.step({"a": [3]}, None)
        runner.requests = {"a": request(9)}  # another one, of the same name
        runner.step({"a": [4]}, None)
        assert active_ids(draft.head_now(), "a") == {9, 4}
        runner.requests = {"b": request()}
        runner.step({"b": [8]}, None)
        assert len(draft.head_now().rows) == 1

    def test_greedy_drafts_ask_for_the_best_id_only(self, v1):
        runner = v1(loaded_draft())
        runner.requests = {"a": request(1)}
        runner.step({"a": [3]}, one_hot_logits(3))
        assert runner.drafter.use_local_argmax_reduction

    def test_runners_without_such_a_draft_work_as_before(self, v1):
        for model in (None, torch.nn.Linear(1, 1)):
            runner = v1(model)
            assert runner.step({"a": [3]}, None).sampled_token_ids.tolist() == [[3]]
        off = v1(loaded_draft(off=True))
        off.step({"a": [3]}, None)
        assert not off.drafter.use_local_argmax_reduction


def test_a_process_without_a_known_runner_says_so(monkeypatch, caplog):
    for name in (runner_v1.RUNNER, runner_v2.RUNNER):
        monkeypatch.delitem(sys.modules, name, raising=False)
    install_hooks()
    assert "no model runner that the plugin knows is in use" in caplog.text


class RunnerV2:
    def __init__(self, draft) -> None:
        self.speculator = SimpleNamespace(model=draft)
        self.req_states = SimpleNamespace(req_id_to_index={})
        self.sampler = SamplerV2()

    def add_requests(self, scheduler_output) -> None:
        for place, new in enumerate(scheduler_output.scheduled_new_reqs):
            self.req_states.req_id_to_index[new.req_id] = place

    def sample(self, hidden_states, input_batch, grammar_output):
        return self.sampler(hidden_states, input_batch), input_batch.num_sampled, None


class SamplerV2:
    def __call__(self, logits, input_batch):
        logits.fill_(0)
        return SimpleNamespace(sampled_token_ids=input_batch.to_sample)


class SpeculatorV2:
    def __init__(self, draft) -> None:
        self.model, self.acceptance_estimator, self.seen = draft, None, []

    def capture(self) -> None:
        self.seen.append(self.model.head_now().is_full)

    def propose(self, input_batch, is_profile=False, dummy_run=False):
        self.seen.append((self.model.head_now().is_full, is_profile))
        return input_batch


@pytest.fixture
def v2(monkeypatch):
    names = {
        runner_v2.RUNNER: ("GPUModelRunner", RunnerV2),
        runner_v2.SPECULATOR: ("TargetDependentARSpeculator", SpeculatorV2),
        runner_v2.SAMPLERS[0][0]: ("Sampler", SamplerV2),
    }
    classes = {}
    for module_name, (name, base) in names.items():
        module = ModuleType(module_name)
        classes[name] = type(name, (base,), {})
        setattr(module, name, classes[name])
        monkeypatch.setitem(sys.modules, module_name, module)
    runner_v2.install()
    runner_v2.install()

    def make(draft):
        runner = classes["GPUModelRunner"](draft)
        runner.sampler, runner.speculator = classes["Sampler"](), classes["TargetDependentARSpeculator"](draft)
        return runner

    return make


def batch_v2(batch: dict[str, list[int]], num_sampled: list[int], ends: list[int]) -> SimpleNamespace:
    return SimpleNamespace(
        req_ids=list(batch), num_reqs=len(batch), to_sample=torch.tensor(list(batch.values())),
        num_sampled=torch.tensor(num_sampled), cu_num_logits=torch.tensor([0, *ends]),
        num_draft_tokens=ends[-1] - len(batch), num_draft_tokens_per_req=torch.tensor([0, *ends]).diff().numpy() - 1,
    )  # fmt: skip


class TestV2:
    """Stand-ins only: the runner itself needs a GPU."""

    def added(self, v2, draft, **prompts: list[int]):
        runner = v2(draft)
        new = [SimpleNamespace(req_id=name, prefill_token_ids=ids) for name, ids in prompts.items()]
        runner.add_requests(SimpleNamespace(scheduled_new_reqs=new))
        return runner

    def test_a_request_learns_what_it_learns_in_v1(self, v2):
        draft = loaded_draft(num_top=2)
        runner = self.added(v2, draft, a=[1, 2], b=[30])
        runner.sample(one_hot_logits(5, 10), batch_v2({"a": [5], "b": [32]}, [1, 0], [1, 2]), None)
        head = draft.head_now()
        assert active_ids(head, "a") == {1, 2, 5, 6}
        assert active_ids(head, "b") == {30, 10, 11}  # of a prompt in chunks nothing was sampled
        batch = batch_v2({"b": [33, 99, 99], "a": [5, 7, 20]}, [1, 2], [1, 4])
        runner.sample(one_hot_logits(33, 5, 7, 20), batch, None)
        assert active_ids(head, "a") == {1, 2, 5, 6, 7, 8, 20, 21}
        assert active_ids(head, "b") == {30, 10, 11, 33, 34}

    def test_graphs_are_captured_over_the_buffers(self, v2):
        runner = v2(loaded_draft())
        runner.speculator.capture()
        assert runner.speculator.seen == [False]
        assert runner.speculator.use_local_argmax_reduction

    def test_a_profile_takes_the_full_head_and_a_dummy_run_the_buffers(self, v2):
        runner = v2(loaded_draft())
        runner.speculator.propose(None, is_profile=True, dummy_run=True)
        runner.speculator.propose(None, dummy_run=True)
        assert runner.speculator.seen == [(True, True), (False, False)]

    def test_where_a_request_can_say_nothing_no_graph_is_replayed(self, v2):
        draft = loaded_draft(num_top=0)
        runner = self.added(v2, draft, a=[])
        runner.sample(one_hot_logits(5), batch_v2({"a": [5]}, [0], [1]), None)
        runner.speculator.propose(None)
        runner.sample(one_hot_logits(5), batch_v2({"a": [5]}, [1], [1]), None)
        runner.speculator.propose(None)
        assert runner.speculator.seen == [(True, True), (False, False)]

    def test_an_estimator_of_acceptance_keeps_its_logits(self, v2):
        runner = v2(loaded_draft())
        runner.speculator.acceptance_estimator = object()
        runner.speculator.propose(None)
        assert not runner.speculator.use_local_argmax_reduction
