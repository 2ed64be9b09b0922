"""Training a router: clusters, examples, and recall above the rows that are wanted most often."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.drafters.prompt_lookup import PromptLookupDrafter
from nanospec.training.balanced_clusters import balanced_clusters
from nanospec.training.router_examples import Document, ExampleReader, RouterExamples, head_of, sample_records
from nanospec.training.router_recall import recall_ahead, recall_report, wanted_columns
from nanospec.training.train_router import RouterSettings, inputs_ahead, num_training_steps, train_router, wanted_counts
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_eagle3_drafter, tiny_eagle3_target, tiny_target
from tests.tiny_router import tiny_router

LEVELS = 3
# float64 states of order 1 through one layer, by passes of other lengths: the same sums in another order.
ATOL = 1e-10
SETTINGS = RouterSettings(num_clusters=20, hidden_size=32, num_epochs=100)


def texts(count: int, length: int = 40, seed: int = 0) -> list[Document]:
    generator = torch.Generator().manual_seed(seed)
    return [Document(torch.randint(VOCAB_SIZE, (length,), generator=generator), 6) for _ in range(count)]


@settings(max_examples=20)
@given(num_rows=st.integers(1, 60), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_clusters_hold_every_row_once_and_are_alike_in_size(num_rows, share, seed):
    num_clusters = max(1, round(share * num_rows))
    rows = torch.randn(num_rows, 5, generator=torch.Generator().manual_seed(seed))
    rows[: num_rows // 3] = 0.0  # rows without a direction
    clusters = balanced_clusters(rows, num_clusters, seed)
    assert len(clusters) == num_clusters
    assert sorted(torch.cat(clusters).tolist()) == list(range(num_rows))
    sizes = [cluster.shape[0] for cluster in clusters]
    assert max(sizes) - min(sizes) <= 1


def test_rows_of_one_direction_are_together_whatever_their_length():
    directions = torch.eye(4).repeat_interleave(8, 0) * torch.arange(1.0, 33.0)[:, None]
    clusters = balanced_clusters(directions + 1e-3, 4)
    assert sorted(sorted(cluster.tolist()) for cluster in clusters) == [
        list(range(first, first + 8)) for first in range(0, 32, 8)
    ]


def test_examples_are_what_drafting_along_the_text_sees():
    target = tiny_target(3)
    drafter, [text] = tiny_drafter(target, 2), texts(1)
    examples = ExampleReader(target, drafter, LEVELS, num_top=2, num_draft=2).read([text], num_chains=3)
    assert examples.states.shape == (3, LEVELS, 24)
    tokens, logits = text.token_ids, target.model(text.token_ids[None]).logits[0]
    for chain, root in enumerate((5, 13, 21)):  # the last token of the prompt, and every eighth from there
        assert examples.next_pos[chain].tolist() == tokens[root + 1 : root + LEVELS + 1].tolist()
        assert torch.equal(examples.top_pos[chain], logits[root : root + LEVELS].topk(2).indices)
        target.reset(60)
        drafter.reset(60)
        features = target.prefill(tokens[None]).features
        state = drafter.extend(tokens[None, 1 : root + 1], features[:, :root])
        for level in range(LEVELS):
            torch.testing.assert_close(examples.states[chain, level], state[0, 0], rtol=0, atol=ATOL)
            best = torch.nn.functional.linear(state[0, 0], target.head_weight).topk(2).indices
            assert torch.equal(examples.draft_pos[chain, level], best)
            visible = torch.ones(1, 1, level + 1, dtype=torch.bool)
            state = drafter.advance(tokens[None, root + level + 1, None], state, level + 1, visible)


def test_ids_that_the_draft_cannot_say_are_no_labels():
    target = tiny_eagle3_target(3)
    target = type(target)(target.model, feature_layers=tiny_eagle3_drafter(target, 2).feature_layers)
    drafter = tiny_eagle3_drafter(target, 2, num_rows=30)
    examples = ExampleReader(target, drafter, LEVELS, num_top=4).read(texts(2), num_chains=5)
    said = examples.top_pos[examples.top_pos >= 0]
    assert int(said.max()) < 30
    assert (examples.top_pos < 0).any()
    router = train_router(drafter.head.weight, examples, RouterSettings(num_clusters=4, num_epochs=1))
    assert router.vocab_size == 30


def test_training_raises_recall_above_the_rows_wanted_most_often():
    target = tiny_target(3)
    drafter = tiny_drafter(target, 2, std=0.02)
    reader = ExampleReader(target, drafter, LEVELS, num_top=2, num_draft=3)
    examples, tested = reader.read(texts(60), 200), reader.read(texts(15, seed=1), 50)
    steps: list[int] = []
    ahead = SETTINGS._replace(looks_ahead=True, num_epochs=300)
    router = train_router(target.head_weight, examples, ahead, lambda: steps.append(1))
    # 600 states, 400 of them behind another one of their chain, in batches of 512: three updates per pass.
    assert len(steps) == num_training_steps(examples, ahead) == 3 * ahead.num_epochs
    report = recall_report(router, wanted_counts(examples, VOCAB_SIZE), tested)
    untrained = recall_report(tiny_router(target.head_weight, 0, 20), wanted_counts(examples, VOCAB_SIZE), tested)
    for kind in ("target", "draft"):
        assert report[kind]["all"][0] > report[f"{kind}_frequent"]["all"][0] + 0.1
        assert report[kind]["all"][0] > untrained[kind]["all"][0] + 0.1
    looking_ahead = recall_ahead(router, target.head_weight, tested, report["rows"])
    for kind in ("target", "draft"):
        assert looking_ahead[f"{kind}_ahead"]["all"][0] > report[f"{kind}_frequent"]["all"][0] + 0.1
    assert report["rows"] == [VOCAB_SIZE // 4]
    assert len(report["target"]["by_level"][0]) == LEVELS


def test_the_same_seed_makes_the_same_router_and_progress_is_told():
    weight = torch.randn(VOCAB_SIZE, 8, generator=torch.Generator().manual_seed(0))
    examples = RouterExamples(
        torch.randn(700, 1, 8, generator=torch.Generator().manual_seed(1)),
        torch.randint(VOCAB_SIZE, (700, 1, 2)),
        torch.randint(-1, VOCAB_SIZE, (700, 1)),
        torch.empty(700, 1, 0, dtype=torch.int64),
    )
    calls = []
    routers = [train_router(weight, examples, RouterSettings(4, 6, 2), lambda: calls.append(1)) for _ in range(2)]
    first, second = (router.state_dict() for router in routers)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(calls) == 2 * 2 * 2  # routers, epochs, batches of 512
    counts = wanted_counts(examples, VOCAB_SIZE)[routers[0].token_ids]
    for cluster in counts.split(routers[0].sizes.tolist()):
        assert cluster.tolist() == sorted(cluster.tolist(), reverse=True)


def test_what_is_seen_ahead_of_a_level_is_the_token_and_the_state_before_it():
    weight, states = torch.arange(10.0).view(5, 2), torch.arange(-12.0, 0.0).view(2, 3, 2)
    next_pos = torch.tensor([[4, 0, 1], [-1, 2, 3]])
    empty = torch.empty(2, 3, 0, dtype=torch.int64)
    inputs, is_there = inputs_ahead(weight, RouterExamples(states, empty, next_pos, empty))
    assert is_there.tolist() == [[True, True], [False, True]]
    assert inputs[is_there].tolist() == [[8, 9, -12, -11], [0, 1, -10, -9], [4, 5, -4, -3]]


def test_the_other_classifier_is_the_same_whether_the_router_looks_ahead_or_not():
    weight = torch.randn(VOCAB_SIZE, 8, generator=torch.Generator().manual_seed(0))
    states = torch.randn(200, 2, 8, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(VOCAB_SIZE, (200, 2, 2), generator=torch.Generator().manual_seed(2))
    examples = RouterExamples(states, ids, ids[..., 0], torch.empty(200, 2, 0, dtype=torch.int64))
    plain, ahead = (train_router(weight, examples, RouterSettings(4, 6, 2, looks_ahead=x)) for x in (False, True))
    assert all(torch.equal(value, ahead.state_dict()[name]) for name, value in plain.state_dict().items())
    one_level = RouterExamples(*(part[:, :1] for part in examples))
    with pytest.raises(ValueError, match="examples must be of two levels or more to look ahead"):
        train_router(weight, one_level, RouterSettings(4, 6, 2, looks_ahead=True))


def test_columns_are_places_in_the_list_of_clusters_by_score():
    weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    router = tiny_router(weight, 1, 4)
    states = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(2))
    columns = wanted_columns(router, states, torch.arange(12).expand(5, 2, -1))
    for state, places in zip(states.flatten(0, 1), columns.flatten(0, 1), strict=True):
        clusters = router.token_ids.split(router.sizes.tolist())
        listed = torch.cat([clusters[index] for index in router(state).argsort(descending=True)])
        assert listed[places].tolist() == list(range(12))


def test_records_are_sampled_without_holding_all(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(f'{{"prompt": "p", "response": "{number}"}}\n' for number in range(50)))
    kept = [record["response"] for record in sample_records(path, 20, seed=3)]
    assert len(set(kept)) == 20
    assert kept == [record["response"] for record in sample_records(path, 20, seed=3)]
    assert kept != [record["response"] for record in sample_records(path, 20, seed=4)]
    assert len(sample_records(path, 99, seed=0)) == 50
    path.write_text("")
    with pytest.raises(ValueError, match="corpus must hold records, got none"):
        sample_records(path, 5, 0)
    with pytest.raises(FileNotFoundError, match="corpus must be a file"):
        sample_records(tmp_path / "none", 5, 0)


def test_what_cannot_be_trained_on_is_named():
    target = tiny_target(3)
    with pytest.raises(TypeError, match="draft must score ids with a head, got prompt-lookup"):
        head_of(PromptLookupDrafter(target.device), target)
    with pytest.raises(ValueError, match="corpus must hold responses of more than 3 tokens"):
        ExampleReader(target, tiny_drafter(target, 2), LEVELS, 1).read(texts(3, length=8), 5)
    with pytest.raises(ValueError, match=r"num_clusters must be in \[1, 3\], got 4"):
        balanced_clusters(torch.ones(3, 2), 4)
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        RouterSettings(hidden_size=0).validated(9)
