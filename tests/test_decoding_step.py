"""Steps of fixed shapes: the tokens of the plain loop at every width, and nothing that waits for the device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import nanospec.step_graphs as step_graphs
from nanospec import SpeculativeDecoder, TreeShape
from nanospec.decoder_options import experts_can_be_captured
from nanospec.decoding_step import DecodingStep
from nanospec.drafters.joined_drafter import join_prompt_lookup
from nanospec.gathered_head import GatheredHead
from nanospec.kv_cache import CachePlace
from nanospec.request import Request
from nanospec.sampling import SamplingParams
from nanospec.speculation import SpeculativeLoop
from nanospec.step_graphs import FixedSteps, StepGraphs, bucketed_width
from nanospec.token_choice import NonFiniteLogitsError
from nanospec.tree_drafter import TreeDrafter
from nanospec.tree_growers import model_of
from tests.test_tree_drafter import TableDrafter
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_target

FREQUENT = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
# What makes the host wait for a device, or gives a shape that depends on data.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero")


def pair(policy: str = "in-context", **options) -> SpeculativeDecoder:
    target = tiny_target(seed=4)
    options = {"tree": TreeShape(3, 3, 10), "capacity": 30, "frequent_ids": FREQUENT, **options}
    return SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), policy, **options)


def fixed_loop(decoder: SpeculativeDecoder, prompt: list[int], max_new_tokens: int, **sampling) -> SpeculativeLoop:
    request = Request(torch.tensor([prompt]), max_new_tokens, SamplingParams(**sampling))
    loop, _ = decoder._speculate(request, decoder.tree)
    loop.fixed_steps = FixedSteps(loop.decoding_step())
    return loop


def tokens(loop: SpeculativeLoop) -> list[int]:
    return [token for step in loop.steps() for token in step]


SAMPLING = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.5]),
        "top_p": st.sampled_from([1.0, 0.8]),
        "repetition_penalty": st.sampled_from([1.0, 1.4]),
        "seed": st.integers(0, 99),
    }
)


@settings(max_examples=40)
@given(
    policy=st.sampled_from(("full", "in-context", "static:7", "hybrid:5+prior")),
    shape=st.sampled_from((TreeShape(1, 1, 2), TreeShape(1, 4, 5), TreeShape(3, 3, 10), TreeShape(5, 2, 16))),
    std=st.sampled_from((0.02, 0.25)),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12),
    max_new_tokens=st.integers(1, 50),
    sampling=SAMPLING,
)
def test_output_is_autoregressive_output_in_as_many_steps(policy, shape, std, prompt, max_new_tokens, sampling):
    target = tiny_target(seed=3)
    drafter = tiny_drafter(target, 2, std=std)
    decoder = SpeculativeDecoder(target, drafter, policy, shape, capacity=30, frequent_ids=FREQUENT)
    with pytest.MonkeyPatch.context() as patch:  # so that a request passes several widths
        patch.setattr(step_graphs, "MIN_WIDTH", 16)
        steps = list(fixed_loop(decoder, prompt, max_new_tokens, **sampling).steps())
    plain = decoder.generate_autoregressive(prompt, max_new_tokens=max_new_tokens, **sampling)
    assert [token for step in steps for token in step][:max_new_tokens] == plain.token_ids
    assert len(steps) == decoder.generate(prompt, max_new_tokens=max_new_tokens, **sampling).stats.target_passes


@pytest.mark.parametrize("policy", ["full", "in-context", "static:7"])
def test_compiled_steps_give_the_same_tokens(policy, monkeypatch):
    monkeypatch.setattr(step_graphs, "MIN_WIDTH", 16)
    decoder = pair(policy, compile="eager")
    for sampling in ({}, {"temperature": 0.9, "repetition_penalty": 1.2, "seed": 3}):
        expected = decoder.generate_autoregressive([1, 2, 3], max_new_tokens=30, **sampling).token_ids
        assert tokens(fixed_loop(decoder, [1, 2, 3], 30, **sampling))[:30] == expected


def test_steps_are_reused_by_the_next_request():
    decoder = pair()
    loop = fixed_loop(decoder, [1, 2, 3], 20, temperature=0.8, repetition_penalty=1.3, seed=1)
    first, steps = tokens(loop), loop.fixed_steps
    tokens(fixed_loop(decoder, [9] * 30, 40))
    again = fixed_loop(decoder, [1, 2, 3], 20, temperature=0.8, repetition_penalty=1.3, seed=1)
    again.fixed_steps = steps
    assert tokens(again) == first


def test_what_earlier_requests_left_in_the_caches_does_not_matter():
    decoder = pair()
    expected = tokens(fixed_loop(decoder, [1, 2, 3], 30))
    with torch.inference_mode():
        decoder.target.cache.buffer.fill_(torch.nan)
        decoder.drafter.cache.buffer.fill_(torch.nan)
    assert tokens(fixed_loop(decoder, [1, 2, 3], 30)) == expected


class Waits(TorchDispatchMode):
    """Collects operations after which the host must wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in WAITING:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2}])
@pytest.mark.parametrize("policy", ["full+prior", "in-context", "static:7", "hybrid:5+prior"])
@torch.inference_mode()
def test_nothing_inside_a_step_waits_for_the_device(policy, sampling, monkeypatch):
    decoder = pair(policy)
    loop = fixed_loop(decoder, [1, 2, 3], 20, **sampling)
    next(steps := loop.steps())
    next(steps)
    # Reads that only a CPU does, where they cost nothing: the walk's early end and the search of the nucleus.
    monkeypatch.setattr("nanospec.sampling.HOST_DEVICE", "none")
    with Waits() as waits:
        loop.fixed_steps._step.run(256)
    assert waits.found == []
    with Waits() as waits:
        bool(torch.ones(1))
    assert waits.found, "the check itself finds something"


def test_bad_logits_end_the_request_with_their_position_and_commit_nothing():
    decoder = pair()
    loop = fixed_loop(decoder, [1, 2, 3], 20)
    steps = loop.steps()
    num_certain = 3 + len(next(steps)) + len(next(steps)) - 1
    weight = decoder.target.model.lm_head.weight
    with torch.no_grad():
        weight[0] = torch.nan
    with pytest.raises(NonFiniteLogitsError) as error:
        next(steps)
    assert error.value.position == num_certain
    assert decoder.target.cache.length == num_certain


@given(st.integers(1, 200_000))
def test_widths_are_few_and_hold_what_is_asked(num_rows):
    width = bucketed_width(num_rows)
    assert num_rows <= width <= max(256, num_rows * 5 / 4)
    assert bucketed_width(width) == width
    assert len({bucketed_width(n) for n in range(1, 4097)}) <= step_graphs.MAX_GRAPHS


@given(st.integers(0, 6), st.integers(1, 5), st.integers(0, 4), st.data())
def test_a_place_sees_certain_rows_and_the_nodes_behind_them(length, num_nodes, num_unused, data):
    nodes = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=num_nodes, max_size=num_nodes), min_size=1, max_size=3))
    )[None]
    place = CachePlace(torch.tensor([length]), length + num_nodes + num_unused)
    certain, unused = nodes.new_ones(1, nodes.shape[1], length), nodes.new_zeros(1, nodes.shape[1], num_unused)
    assert torch.equal(place.visible(nodes), torch.cat((certain, nodes, unused), 2))


def test_a_drafter_without_fixed_shapes_is_refused_by_name():
    target = tiny_target(0)
    drafter = TreeDrafter(TableDrafter(torch.zeros(VOCAB_SIZE, VOCAB_SIZE)), TreeShape(1, 1, 2))
    with pytest.raises(TypeError, match="drafter must have passes of fixed shape for this, got TableDrafter"):
        DecodingStep(target, drafter, pair().vocab, 1, SamplingParams())


def test_graphs_off_cuda_are_refused_by_name():
    with pytest.raises(ValueError, match="cuda_graph=True needs a target on a CUDA device, got cpu"):
        pair(cuda_graph=True)
    with pytest.raises(TypeError, match="cuda_graph must be True, False or None, got 1"):
        pair(cuda_graph=1)
    assert pair().cuda_graph is False


class Experts:
    """As much of a target as says how its experts are computed."""

    device = torch.device("cuda")

    def __init__(self, kind: str, implementation: str, dtype: torch.dtype) -> None:
        self.model, self.dtype = self, dtype
        self.config = SimpleNamespace(model_type=kind, _experts_implementation=implementation)


@pytest.mark.parametrize(
    ("kind", "implementation", "dtype", "capability", "expected"),
    [
        ("llama", "eager", torch.float16, (7, 0), True),
        ("mixtral", "eager", torch.bfloat16, (9, 0), False),
        ("mixtral", "batched_mm", torch.float32, (7, 0), True),
        ("qwen3_moe", "grouped_mm", torch.bfloat16, (9, 0), True),
        ("qwen3_moe", "grouped_mm", torch.float16, (9, 0), False),
        ("qwen3_moe", "grouped_mm", torch.bfloat16, (7, 5), False),
    ],
)
def test_experts_that_read_their_loads_back_are_not_captured(
    kind, implementation, dtype, capability, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert experts_can_be_captured(Experts(kind, implementation, dtype)) is expected


def test_graphs_are_forgotten_with_the_buffers_they_were_captured_over():
    """Also where another buffer comes to lie at the same address."""
    decoder = pair()
    loop = fixed_loop(decoder, [1, 2, 3], 4)
    tokens(loop)
    graphs = StepGraphs.__new__(StepGraphs)  # no stream, no capture: the book-keeping alone
    graphs._step, graphs._graphs, graphs._captured_over = loop.fixed_steps._step, {}, ()
    graphs._forget_other_buffers()
    graphs._graphs[256] = None
    graphs._forget_other_buffers()
    assert 256 in graphs._graphs
    cache = decoder.target.cache
    cache.buffer = cache.buffer[:, :, :, :, :100]
    graphs._forget_other_buffers()
    assert not graphs._graphs


@pytest.mark.parametrize("changed", ["target", "drafter", "joined"])
def test_graphs_are_forgotten_with_the_weights_they_were_captured_over(changed):
    decoder = pair()
    if changed == "joined":
        lookup = join_prompt_lookup(decoder.drafter, decoder.target.device)
        decoder = SpeculativeDecoder(decoder.target, lookup, "in-context", tree=decoder.tree)
    loop = fixed_loop(decoder, [1, 2, 3], 4)
    tokens(loop)
    step = loop.fixed_steps._step
    graphs = StepGraphs.__new__(StepGraphs)  # no stream, no capture: the book-keeping alone
    graphs._step, graphs._graphs, graphs._weights = step, {}, ()
    request = step.root_id, step.state, step.uniforms, step.seen
    graphs.begin(*request)
    graphs._graphs[256] = None
    graphs.begin(*request)
    assert 256 in graphs._graphs
    layers = decoder.target.model.model.layers if changed == "target" else model_of(decoder.drafter).layers
    down = layers[0].get_submodule("mlp.down_proj" if changed == "target" else "down_proj")
    down.weight = torch.nn.Parameter(down.weight + 1, requires_grad=False)
    graphs.begin(*request)
    assert not graphs._graphs


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: captures and replays CUDA graphs")
def test_a_request_after_a_change_of_weights_replays_no_graph_of_before(monkeypatch):
    monkeypatch.setattr(step_graphs, "MIN_WIDTH", 32)
    target = tiny_target(4, dtype=torch.float32).cuda()
    decoder = SpeculativeDecoder(target, tiny_drafter(target, 2, std=0.02), tree=TreeShape(3, 3, 10), capacity=30)
    before = decoder.generate([1, 2, 3], max_new_tokens=60).token_ids
    down = target.model.model.layers[0].mlp.down_proj
    down.weight = torch.nn.Parameter(torch.randn_like(down.weight), requires_grad=False)
    expected = decoder.generate_autoregressive([1, 2, 3], max_new_tokens=60).token_ids
    assert decoder.generate([1, 2, 3], max_new_tokens=60).token_ids == expected != before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: captures and replays CUDA graphs")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 5}])
def test_captured_steps_give_the_tokens_of_plain_ones(compile, sampling, monkeypatch):
    monkeypatch.setattr(step_graphs, "MIN_WIDTH", 32)
    target = tiny_target(4, dtype=torch.float32).cuda()
    drafter = tiny_drafter(target, 2, std=0.02)
    for policy in ("full", "in-context", "static:7"):
        options = {"tree": TreeShape(3, 3, 10), "capacity": 30, "frequent_ids": FREQUENT, "compile": compile}
        captured = SpeculativeDecoder(target, drafter, policy, **options)
        plain = SpeculativeDecoder(target, drafter, policy, cuda_graph=False, **options)
        assert captured.cuda_graph
        for prompt in ([1, 2, 3], [7] * 20, [1, 2, 3]):
            expected = plain.generate(prompt, max_new_tokens=60, **sampling)
            assert captured.generate(prompt, max_new_tokens=60, **sampling).token_ids == expected.token_ids
            request = Request(torch.tensor([prompt], device="cuda"), 60, SamplingParams(**sampling))
            loop, stats = captured._speculate(request, captured.tree)
            steps = loop.steps()
            ids = next(steps)
            torch.cuda.set_sync_debug_mode("error")  # whatever waits between two readbacks raises
            try:
                ids += [token for step in steps for token in step]
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert ids[:60] == expected.token_ids
            assert stats.target_passes == expected.stats.target_passes


def test_the_head_with_a_kernel_grows_the_same_trees(monkeypatch):
    decoder = pair()
    expected = decoder.generate([1, 2, 3], max_new_tokens=30)
    monkeypatch.setattr(GatheredHead, "has_kernel", lambda *_: True)
    monkeypatch.setattr(GatheredHead, "forward", None)  # and with it no other head is called
    result = decoder.generate([1, 2, 3], max_new_tokens=30)
    assert result.token_ids == expected.token_ids
    assert result.stats.mean_accept_length == expected.stats.mean_accept_length


@given(st.lists(st.integers(0, 6), min_size=2, max_size=3), st.integers(1, 4), st.data())
def test_a_place_of_several_sequences_is_the_place_of_each(lengths, num_nodes, data):
    cells = st.lists(st.booleans(), min_size=2 * num_nodes, max_size=2 * num_nodes)
    nodes = torch.tensor([data.draw(cells) for _ in lengths]).view(len(lengths), 2, num_nodes)
    buffer = torch.zeros(1, 2, len(lengths) + 1, 1, 12, 1)
    place = CachePlace(torch.tensor(lengths), 12)
    rows = place.rows(buffer, 2, behind=1)
    assert rows.buffer.shape[2] == len(lengths)
    for row, length in enumerate(lengths):
        alone = CachePlace(torch.tensor([length]), 12)
        assert torch.equal(place.visible(nodes)[row : row + 1], alone.visible(nodes[row : row + 1]))
        assert torch.equal(rows.row_ids[row], alone.rows(buffer[:, :, :1], 2, behind=1).row_ids)
