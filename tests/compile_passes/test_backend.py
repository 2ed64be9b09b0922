from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compile_passes.backend import nanospec
from nanospec import DraftVocabulary, LocalityTracker

V, D, K = 50, 8, 12
ACTIVE = [3, 7, 49]


@pytest.fixture(autouse=True)
def _start_afresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


class Model(nn.Module):
    """A layer and an output head, its own or another model's."""

    def __init__(self, lm_head: nn.Linear | None = None, vocab_size: int = V) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D)
        self.lm_head = nn.Linear(D, vocab_size, bias=False) if lm_head is None else lm_head
        self.requires_grad_(False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.lm_head(torch.tanh(self.layer(hidden)))


class Counted:
    """The backend and how often Dynamo has called it."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Callable:
        self.num_calls += 1
        return nanospec(*args, **kwargs)


def draft_vocabulary(ids: list[int] = ACTIVE, vocab_size: int = V) -> DraftVocabulary:
    vocabulary = DraftVocabulary(vocab_size, K)
    vocabulary.update(ids)
    return vocabulary


def restrict(model: Callable, vocabulary: object, inner: str = "eager", **options: object) -> Callable:
    options = {"vocabulary": vocabulary, "inner": inner, **options}
    return torch.compile(model, backend="nanospec", options=options)


def check_restricted(logits: Tensor, expected: Tensor, active: list[int]) -> None:
    inactive = [token for token in range(expected.shape[-1]) if token not in active]
    torch.testing.assert_close(logits[..., active], expected[..., active])
    assert logits[..., inactive].isneginf().all()


def run_python(code: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the code where no source tree is; only what is installed can be found."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, check=True)


def test_it_is_listed_by_name() -> None:
    assert "nanospec" in torch._dynamo.list_backends()
    assert "nanospec" in torch._dynamo.list_backends(exclude_tags=())
    assert torch._dynamo.lookup_backend("nanospec") is nanospec


def test_it_is_found_by_name_without_an_import(tmp_path: Path) -> None:
    code = f"""
import sys, torch
assert not any(name.split(".")[0] in ("nanospec", "compile_passes") for name in sys.modules)
head = torch.nn.Linear({D}, {V})
compiled = torch.compile(head, backend="nanospec", options={{"inner": "eager"}})
assert torch.equal(compiled(torch.ones(2, {D})), head(torch.ones(2, {D})))
assert "compile_passes" in sys.modules
"""
    assert "got no vocabulary" in run_python(code, tmp_path).stderr


def test_what_a_pass_declines_is_logged_with_its_reason(tmp_path: Path) -> None:
    code = f"""
import torch
from nanospec import DraftVocabulary
up, down = torch.nn.Linear({D}, {V}), torch.nn.Linear({V}, {D})
options = {{"vocabulary": DraftVocabulary({V}, {K}), "inner": "eager"}}
torch.compile(lambda hidden: down(up(hidden)), backend="nanospec", options=options)(torch.ones(2, {D}))
"""
    logged = run_python(code, tmp_path, TORCH_LOGS="+compile_passes").stderr
    assert "takes its result, so it may be no output head" in logged
    assert "no pass changed the graph" in logged
    assert "is left alone" not in run_python(code, tmp_path).stderr


def test_without_a_vocabulary_it_says_so_and_compiles() -> None:
    model, hidden = Model(), torch.randn(2, D)
    compiled = torch.compile(model, backend="nanospec", options={"inner": "eager"})
    with pytest.warns(UserWarning, match="got no vocabulary: no output head is restricted"):
        logits = compiled(hidden)
    assert torch.equal(logits, model(hidden))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"vocabularies": 1}, ValueError, "options must be vocabulary, head, .*options of Inductor, got vocabularies"),
        ({"inner": "tvm"}, ValueError, "inner must be one of inductor, aot_eager, eager, got 'tvm'"),
        ({"inner": None}, ValueError, "inner must be one of inductor, aot_eager, eager, got None"),
        (
            {"inner": "eager", "max_autotune": False},
            ValueError,
            "inner must be 'inductor' for max_autotune, got 'eager'",
        ),
        ({"cudagraphs": True}, ValueError, r"cudagraphs must be False without a CUDA device, got True .*\['cpu'\]"),
        ({"cudagraphs": "yes"}, TypeError, "cudagraphs must be True or False, got 'yes'"),
        ({"cudagraphs": True, "inner": "eager"}, ValueError, "cudagraphs needs inner 'inductor', got 'eager'"),
        ({"vocabulary": ACTIVE}, TypeError, "vocabulary must be a DraftVocabulary, .*got list"),
        ({"vocabulary": torch.tensor(ACTIVE)}, TypeError, "vocabulary must be a DraftVocabulary, .*got Tensor"),
        ({"head": nn.Linear(D, V)}, ValueError, "head .*got a head and no vocabulary"),
        ({"head": "lm_head"}, TypeError, r"head must be a module with a weight \[V, D\], got str"),
        ({"head": nn.LayerNorm(V)}, TypeError, r"head must be a module with a weight \[V, D\], got LayerNorm"),
        ({"vocabulary": LocalityTracker(V, K, 2)}, ValueError, "batch_size must be 1 for a compiled graph, got 2"),
        (
            {"vocabulary": draft_vocabulary(), "head": nn.Linear(D, V + 1)},
            ValueError,
            f"head must have vocab_size {V} rows, got {V + 1}",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as failed:
        torch.compile(Model(), backend="nanospec", options=options)(torch.randn(2, D))
    assert type(failed.value.inner_exception) is error
    assert re.search(text, str(failed.value.inner_exception))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, None),
        (
            {"options": {"max_autotune": False, "epilogue-fusion": True}},
            {"max_autotune": False, "epilogue_fusion": True},
        ),
        ({"options": {"triton.cudagraphs": False}}, {"triton.cudagraphs": False}),
        ({"options": {"cudagraphs": False}}, {"triton.cudagraphs": False}),
        ({"mode": "default"}, None),
        ({"mode": "reduce-overhead"}, {"triton.cudagraphs": True}),
        ({"mode": "max-autotune-no-cudagraphs"}, torch._inductor.list_mode_options("max-autotune-no-cudagraphs")),
    ],
)
@pytest.mark.filterwarnings("ignore:backend 'nanospec' got no vocabulary")
def test_options_and_modes_reach_inductor(
    arguments: dict[str, Any], expected: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def record(graph_module: torch.fx.GraphModule, inputs: list[Tensor], config_patches: dict | None) -> Callable:
        seen.append(config_patches)
        return graph_module.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", record)
    torch.compile(Model(), backend="nanospec", **arguments)(torch.randn(2, D))
    assert seen == [expected]


def test_an_option_of_inductor_and_a_vocabulary_go_together() -> None:
    model, hidden, vocabulary = Model(), torch.randn(2, D), draft_vocabulary()
    logits = restrict(model, vocabulary, "inductor", max_autotune=False, cudagraphs=False)(hidden)
    check_restricted(logits, model(hidden), ACTIVE)


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_updates_never_recompile(inner: str) -> None:
    model, hidden, vocabulary, backend = Model(), torch.randn(2, D), draft_vocabulary([]), Counted()
    compiled = torch.compile(model, backend=backend, options={"vocabulary": vocabulary, "inner": inner})
    for active in ([], [1], ACTIVE, list(range(K)), [V - 1], [], ACTIVE):
        vocabulary.update(active)
        check_restricted(compiled(hidden), model(hidden), active)
    assert backend.num_calls == 1


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize(("dynamic", "most"), [(None, 2), (True, 1)])
def test_a_dynamic_batch_compiles_at_most_twice(dynamic: bool | None, most: int, inner: str) -> None:
    model, vocabulary, backend = Model(), draft_vocabulary(), Counted()
    options = {"vocabulary": vocabulary, "inner": inner}
    compiled = torch.compile(model, backend=backend, options=options, dynamic=dynamic)
    for batch_size in (2, 3, 7, 5, K, V):
        hidden = torch.randn(batch_size, D)
        check_restricted(compiled(hidden), model(hidden), ACTIVE)
    assert backend.num_calls <= most


def test_two_vocabularies_of_one_model_stay_separate() -> None:
    model, hidden = Model(), torch.randn(2, D)
    first, second = draft_vocabulary([1, 2]), draft_vocabulary([2, 30])
    by_first, by_second = restrict(model, first), restrict(model, second)
    for _ in range(2):
        check_restricted(by_first(hidden), model(hidden), [1, 2])
        check_restricted(by_second(hidden), model(hidden), [2, 30])
    second.update([9])
    check_restricted(by_first(hidden), model(hidden), [1, 2])
    check_restricted(by_second(hidden), model(hidden), [9])


def test_what_a_tracker_observes_is_scored_without_recompiling() -> None:
    model, hidden, backend = Model(), torch.randn(2, D), Counted()
    tracker = LocalityTracker(V, K, pinned_ids=torch.tensor([8]))
    compiled = torch.compile(model, backend=backend, options={"vocabulary": tracker, "inner": "aot_eager"})
    check_restricted(compiled(hidden), model(hidden), [8])
    tracker.observe(torch.tensor([ACTIVE]))
    check_restricted(compiled(hidden), model(hidden), [8, *ACTIVE])
    tracker.observe(torch.arange(20, 20 + K)[None])
    check_restricted(compiled(hidden), model(hidden), [8, *range(21, 20 + K)])
    tracker.reset()
    check_restricted(compiled(hidden), model(hidden), [8])
    assert backend.num_calls == 1


def test_a_reset_then_a_new_vocabulary() -> None:
    model, hidden, old, new = Model(), torch.randn(2, D), draft_vocabulary([1, 2]), draft_vocabulary([5])
    by_old = restrict(model, old)
    check_restricted(by_old(hidden), model(hidden), [1, 2])
    torch._dynamo.reset()
    by_new = restrict(model, new)
    check_restricted(by_new(hidden), model(hidden), [5])
    old.update([4])
    check_restricted(by_old(hidden), model(hidden), [4])
    check_restricted(by_new(hidden), model(hidden), [5])


def test_two_threads_compile_at_once() -> None:
    both_ready, failures = threading.Barrier(2), []

    def compile_and_check(vocab_size: int, active: list[int], inner: str) -> None:
        try:
            model, hidden = Model(vocab_size=vocab_size), torch.randn(2, D)
            vocabulary = draft_vocabulary(active, vocab_size)
            compiled = restrict(model, vocabulary, inner)
            both_ready.wait()
            for ids in (active, [0], active[::-1]):
                vocabulary.update(ids)
                check_restricted(compiled(hidden), model(hidden), ids)
        except BaseException as failure:
            failures.append(failure)
            raise

    arguments = [(V, ACTIVE, "eager"), (V + 20, [1, 60], "aot_eager")]
    threads = [threading.Thread(target=compile_and_check, args=each) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_head_behind_a_graph_break_is_restricted() -> None:
    model, hidden = Model(), torch.randn(2, D)

    def broken(hidden: Tensor) -> Tensor:
        hidden = model.layer(hidden)
        torch._dynamo.graph_break()
        return model.lm_head(torch.tanh(hidden))

    check_restricted(restrict(broken, draft_vocabulary())(hidden), model(hidden), ACTIVE)


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_weights_written_in_place_after_compilation_are_seen(inner: str) -> None:
    model, other, hidden, vocabulary = Model(), Model(), torch.randn(2, D), draft_vocabulary()
    compiled = restrict(model, vocabulary, inner)
    check_restricted(compiled(hidden), model(hidden), ACTIVE)
    model.lm_head.weight.mul_(-2)
    check_restricted(compiled(hidden), model(hidden), ACTIVE)
    vocabulary.update([3, 8])
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        check_restricted(compiled(hidden), other(hidden), [3, 8])
    with torch.inference_mode():
        model.lm_head.weight.add_(1)
        check_restricted(compiled(hidden), model(hidden), [3, 8])


def test_a_weight_that_is_replaced_is_seen() -> None:
    model, other, hidden, vocabulary = Model(), Model(), torch.randn(2, D), draft_vocabulary()
    compiled = restrict(model, vocabulary)
    check_restricted(compiled(hidden), model(hidden), ACTIVE)
    model.lm_head.weight = nn.Parameter(torch.randn(V, D), requires_grad=False)
    check_restricted(compiled(hidden), model(hidden), ACTIVE)
    model.load_state_dict(other.state_dict(), assign=True)
    check_restricted(compiled(hidden), other(hidden), ACTIVE)
    vocabulary.update([1, 2])
    check_restricted(compiled(hidden), other(hidden), [1, 2])


def test_models_of_one_class_and_one_vocabulary_keep_their_own_weights() -> None:
    models, hidden, vocabulary = [Model(), Model(), Model()], torch.randn(2, D), draft_vocabulary()
    one_by_one = [restrict(model, vocabulary) for model in models]
    any_of_them = restrict(lambda model, hidden: model(hidden), vocabulary)
    for active in (ACTIVE, [1, 2]):
        vocabulary.update(active)
        for model, compiled in zip(models, one_by_one, strict=True):
            check_restricted(compiled(hidden), model(hidden), active)
            check_restricted(any_of_them(model, hidden), model(hidden), active)


def test_a_model_that_is_cast_is_seen_and_updates_go_on() -> None:
    model, hidden, vocabulary = Model(), torch.randn(2, D), draft_vocabulary()
    compiled = restrict(model, vocabulary)
    compiled(hidden)
    model.double()
    check_restricted(compiled(hidden.double()), model(hidden.double()), ACTIVE)
    vocabulary.update([1, 2])
    check_restricted(compiled(hidden.double()), model(hidden.double()), [1, 2])


TARGET_BACKENDS: list[dict[str, Any]] = [
    {"backend": "inductor"},
    {"backend": "eager"},
    {"backend": "nanospec", "options": {"inner": "eager"}},
]


@pytest.mark.parametrize("target_first", [True, False])
@pytest.mark.parametrize("arguments", TARGET_BACKENDS, ids=lambda arguments: arguments["backend"])
@pytest.mark.filterwarnings("ignore:backend 'nanospec' got no vocabulary")
def test_a_target_that_shares_its_head_with_the_draft_is_never_restricted(
    arguments: dict[str, Any], target_first: bool
) -> None:
    target, hidden = Model(), torch.randn(2, D)
    draft, vocabulary = Model(target.lm_head), draft_vocabulary()
    compiled = {"target": torch.compile(target, **arguments), "draft": restrict(draft, vocabulary)}
    for _ in range(2):
        for name in sorted(compiled, reverse=target_first):
            logits = compiled[name](hidden)
            if name == "target":
                torch.testing.assert_close(logits, target(hidden))
            else:
                check_restricted(logits, draft(hidden), ACTIVE)
        vocabulary.update(ACTIVE[::-1])


Step = Callable[[Tensor], tuple[Tensor, Tensor]]


def calls_a_draft_with_the_same_module(target: Model, layer: nn.Linear) -> Step:
    draft = Model(target.lm_head)
    draft.layer = layer
    return lambda hidden: (target(hidden), draft(hidden))


def calls_a_draft_with_the_same_weight(target: Model, layer: nn.Linear) -> Step:
    draft = Model()
    draft.layer, draft.lm_head.weight = layer, target.lm_head.weight
    return lambda hidden: (target(hidden), draft(hidden))


def calls_the_head_of_the_target(target: Model, layer: nn.Linear) -> Step:
    return lambda hidden: (target(hidden), target.lm_head(torch.tanh(layer(hidden))))


def multiplies_by_the_weight_of_the_target(target: Model, layer: nn.Linear) -> Step:
    return lambda hidden: (target(hidden), torch.tanh(layer(hidden)) @ target.lm_head.weight.T)


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize(
    "build_step",
    [
        calls_a_draft_with_the_same_module,
        calls_a_draft_with_the_same_weight,
        calls_the_head_of_the_target,
        multiplies_by_the_weight_of_the_target,
    ],
)
def test_a_graph_that_holds_target_and_draft_restricts_neither(
    build_step: Callable[[Model, nn.Linear], Step], is_named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    target, layer, hidden = Model(), nn.Linear(D, D).requires_grad_(False), torch.randn(2, D)
    step = build_step(target, layer)
    options = {"head": target.lm_head} if is_named else {}
    of_target, of_draft = restrict(step, draft_vocabulary(), **options)(hidden)
    torch.testing.assert_close(of_target, target(hidden))
    torch.testing.assert_close(of_draft, step(hidden)[1])
    assert "several modules of this graph use it" in caplog.text
