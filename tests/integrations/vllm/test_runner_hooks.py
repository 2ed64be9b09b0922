"""The hooks in both runners against stand-ins: who the rows are, what is learnt, what is scored when."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
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


def request(*prompt: int, output: tuple[int, ...] = (), num_computed_tokens: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        prompt_token_ids=list(prompt), output_token_ids=list(output), num_tokens=len(prompt) + len(output),
        num_computed_tokens=num_computed_tokens,
    )  # fmt: skip


def metadata(*num_drafted: int) -> SimpleNamespace:
    ends = torch.tensor(num_drafted, dtype=torch.int32).add(1).cumsum(0)
    return SimpleNamespace(
        cu_num_sampled_tokens=ends, max_spec_len=max(num_drafted), num_draft_tokens=list(num_drafted)
    )


class Target:
    """A target whose hidden state is its best id [n, 1], and the same state makes the same logits."""

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return one_hot_logits(*hidden[:, 0].tolist())


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
        self.model, self.execute_model_state = Target(), None

    def sample_tokens(self, grammar_output):
        state, self.execute_model_state = self.execute_model_state, None
        return self._sample(state.logits, state.spec_decode_metadata)

    def _sample(self, logits, spec_decode_metadata):
        if logits is not None:
            logits.fill_(0)
        return SimpleNamespace(sampled_token_ids=self.to_sample)

    def step(
        self, batch: dict[str, list[int]], logits, spec_decode_metadata=None, read: dict[str, list[int]] | None = None
    ):
        """read: of each request, the target's best id after every token that the pass reads; None: what is scored."""
        self.input_batch.req_ids, self.to_sample = list(batch), torch.tensor(list(batch.values()), dtype=torch.int32)
        num_drafted = [0] * len(batch) if spec_decode_metadata is None else spec_decode_metadata.num_draft_tokens
        num_read = [drafted + 1 for drafted in num_drafted] if read is None else [len(read[name]) for name in batch]
        states = [0] * sum(num_read) if read is None else [best for name in batch for best in read[name]]
        self.execute_model_state = SimpleNamespace(
            logits=logits, spec_decode_metadata=spec_decode_metadata, hidden_states=torch.tensor(states)[:, None],
            scheduler_output=SimpleNamespace(num_scheduled_tokens=dict(zip(batch, num_read, strict=True))),
        )  # fmt: skip
        return self.sample_tokens(None)


@pytest.fixture
def v1(monkeypatch):
    module = ModuleType(runner_v1.RUNNER)
    own = {name: getattr(RunnerV1, name) for name in ("_sample", "sample_tokens")}
    module.GPUModelRunner = type("GPUModelRunner", (RunnerV1,), own)
    monkeypatch.setitem(sys.modules, runner_v1.RUNNER, module)
    assert runner_v1.install()
    wrapped = dict(vars(module.GPUModelRunner))
    assert runner_v1.install()  # loaded again
    assert dict(vars(module.GPUModelRunner)) == wrapped
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

    def test_a_prompt_gives_half_as_many_suggestions_at_its_last_positions(self, v1):
        draft = loaded_draft(num_top=2, prompt_positions=2)
        runner = v1(draft)
        runner.requests = {"a": request(1, 2, 3, 4), "b": request(30, num_computed_tokens=1, output=(31,))}
        read = {"b": [32], "a": [10, 12, 14, 16]}
        runner.step({"b": [32], "a": [16]}, one_hot_logits(32, 16), None, read)
        head = draft.head_now()
        assert active_ids(head, "a") == {1, 2, 3, 4, 12, 14, 16, 17}
        assert active_ids(head, "b") == {30, 31, 32, 33}

    def test_a_prompt_in_chunks_gives_what_it_gives_whole(self, v1):
        draft = loaded_draft(num_top=1, prompt_positions=3)
        runner = v1(draft)
        runner.requests = {"a": request(1, 2, 3, 4, 5)}
        runner.step({"a": [12]}, one_hot_logits(12), None, {"a": [10, 11, 12]})
        assert active_ids(draft.head_now(), "a") == {1, 2, 3, 4, 5, 11, 12}
        runner.requests["a"].num_computed_tokens = 3
        runner.step({"a": [14]}, one_hot_logits(14), None, {"a": [13, 14]})
        assert active_ids(draft.head_now(), "a") == {1, 2, 3, 4, 5, 11, 12, 13, 14}

    def test_what_a_preempted_request_had_generated_is_part_of_its_prompt(self, v1):
        draft = loaded_draft(num_top=1, prompt_positions=2)
        runner = v1(draft)
        runner.requests = {"a": request(1, 2, output=(3, 4))}
        runner.step({"a": [13]}, one_hot_logits(13), None, {"a": [10, 11, 12, 13]})
        assert active_ids(draft.head_now(), "a") == {1, 2, 3, 4, 11, 12, 13}

    @pytest.mark.parametrize("nothing", [{"prompt_positions": 0}, {"num_top": 0}])
    def test_where_prompts_are_to_give_nothing_they_are_not_scored(self, v1, nothing):
        draft = loaded_draft(**nothing)
        runner = v1(draft)
        runner.model, runner.requests = None, {"a": request(1, 2)}
        runner.step({"a": [11]}, None, None, {"a": [10, 11]})
        assert active_ids(draft.head_now(), "a") == {1, 2, 11}

    def test_a_runner_that_samples_in_its_own_way_gets_texts_only_and_is_told(self, v1, caplog):
        class OwnWay(v1):
            def sample_tokens(self, grammar_output):
                return self._sample(self.execute_model_state.logits, None)

        draft = loaded_draft(num_top=1)
        runner = OwnWay(draft)
        runner.requests = {"a": request(1, 2)}
        for _ in range(2):
            runner.step({"a": [11]}, one_hot_logits(11), None, {"a": [10, 11]})
        assert active_ids(draft.head_now(), "a") == {1, 2, 11}
        assert caplog.text.count("OwnWay keeps their hidden states elsewhere") == 1

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
        self.model, self.adaptive_verification = Target(), None
        self.speculator = SimpleNamespace(model=draft)
        self.req_states = SimpleNamespace(req_id_to_index={})
        self.sampler = SamplerV2()

    def add_requests(self, scheduler_output) -> None:
        for place, new in enumerate(scheduler_output.scheduled_new_reqs):
            self.req_states.req_id_to_index[new.req_id] = place

    def sample(self, hidden_states, input_batch, grammar_output):
        logits = self.model.compute_logits(hidden_states[input_batch.logits_indices])
        return self.sampler(logits, input_batch), input_batch.num_sampled, None


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


def batch_v2(
    batch: dict[str, list[int]], num_sampled: list[int], ends: list[int],
    num_read: list[int] | None = None, prefilled: list[tuple[int, int]] | None = None,
) -> SimpleNamespace:  # fmt: skip
    """num_read: tokens read of each request, None: those that are scored; prefilled: of each prompt, before, of all."""
    num_scored = torch.tensor([0, *ends]).diff()
    read = num_scored if num_read is None else torch.tensor(num_read)
    done, whole = zip(*(prefilled or [(0, 0)] * len(batch)), strict=True)
    scored = [
        row
        for end, number in zip(read.cumsum(0).tolist(), num_scored.tolist(), strict=True)
        for row in range(end - number, end)
    ]
    return SimpleNamespace(
        req_ids=list(batch), num_reqs=len(batch), to_sample=torch.tensor(list(batch.values())),
        num_sampled=torch.tensor(num_sampled), cu_num_logits=torch.tensor([0, *ends]),
        num_draft_tokens=ends[-1] - len(batch), num_draft_tokens_per_req=num_scored.numpy() - 1,
        num_scheduled_tokens=read.numpy(), cu_num_logits_np=np.array([0, *ends]), logits_indices=scored,
        has_prefill=done != whole, num_computed_prefill_tokens_np=np.array(done), prefill_len_np=np.array(whole),
    )  # fmt: skip


def states(*best: int) -> torch.Tensor:
    """Hidden states after which `Target` says so."""
    return torch.tensor(best)[:, None]


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
        runner.sample(states(5, 10), batch_v2({"a": [5], "b": [32]}, [1, 0], [1, 2]), None)
        head = draft.head_now()
        assert active_ids(head, "a") == {1, 2, 5, 6}
        assert active_ids(head, "b") == {30, 10, 11}  # of a prompt in chunks nothing was sampled
        batch = batch_v2({"b": [33, 99, 99], "a": [5, 7, 20]}, [1, 2], [1, 4])
        runner.sample(states(33, 5, 7, 20), batch, None)
        assert active_ids(head, "a") == {1, 2, 5, 6, 7, 8, 20, 21}
        assert active_ids(head, "b") == {30, 10, 11, 33, 34}

    def test_a_prompt_gives_the_targets_suggestions_at_its_last_positions(self, v2):
        draft = loaded_draft(num_top=1, prompt_positions=2)
        runner = self.added(v2, draft, a=[1, 2, 3, 4, 5], b=[30])
        batch = batch_v2({"b": [31], "a": [13]}, [1, 0], [1, 2], [1, 4], [(1, 1), (0, 5)])
        runner.sample(states(31, 10, 11, 12, 13), batch, None)
        head = draft.head_now()
        assert active_ids(head, "a") == {1, 2, 3, 4, 5, 12, 13}
        assert active_ids(head, "b") == {30, 31}

    def test_where_drafts_are_shared_out_on_the_device_prompts_are_not_scored(self, v2, caplog):
        draft = loaded_draft(num_top=1)
        runner = self.added(v2, draft, a=[1, 2])
        runner.adaptive_verification = object()
        runner.sample(states(10, 11), batch_v2({"a": [11]}, [1], [1], [2], [(0, 2)]), None)
        assert active_ids(draft.head_now(), "a") == {1, 2, 11}
        assert "adaptive verification lays out a batch on the device" in caplog.text

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
        runner.sample(states(5), batch_v2({"a": [5]}, [0], [1]), None)
        runner.speculator.propose(None)
        runner.sample(states(5), batch_v2({"a": [5]}, [1], [1]), None)
        runner.speculator.propose(None)
        assert runner.speculator.seen == [(True, True), (False, False)]

    def test_an_estimator_of_acceptance_keeps_its_logits(self, v2):
        runner = v2(loaded_draft())
        runner.speculator.acceptance_estimator = object()
        runner.speculator.propose(None)
        assert not runner.speculator.use_local_argmax_reduction
