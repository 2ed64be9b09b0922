"""Counting texts: interrupted and resumed is one run, whatever the batches, and generated text is counted as the
target says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import SpeculativeDecoder, TreeShape
from nanospec.calibration import counting
from nanospec.calibration.counting import count_ids, generated_by, tokenized_by
from nanospec.drafters.prompt_lookup import PromptLookupDrafter
from tests.byte_tokenizer import NUM_IDS, byte_tokenizer, ids_of
from tests.tiny_pair import VOCAB_SIZE, tiny_drafter, tiny_target

SETTINGS = {"field": "x"}


class Interrupted(Exception):
    """As by control-C."""


def interrupted_after(num_texts: int, ids_of_texts: counting.IdsOf) -> counting.IdsOf:
    def ids(texts: Sequence[str], first: int) -> Sequence[Sequence[int]]:
        if first >= num_texts:
            raise Interrupted
        return ids_of_texts(texts, first)

    return ids


@settings(max_examples=30)
@given(
    texts=st.lists(st.text("ab\u00e9 ", max_size=5), max_size=12),
    batch_texts=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    stops=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    save_every_s=st.sampled_from([0.0, 1e9]),
)
def test_interrupted_and_resumed_is_one_run(texts, batch_texts, stops, save_every_s) -> None:
    encode = tokenized_by(byte_tokenizer())
    with TemporaryDirectory() as directory:
        state = Path(directory) / "state"
        common = {"vocab_size": NUM_IDS, "state_path": state, "settings": SETTINGS, "save_every_s": save_every_s}
        for size, stop in zip(batch_texts[:2], stops, strict=True):
            with suppress(Interrupted):
                count_ids(iter(texts), interrupted_after(stop, encode), batch_texts=size, **common)
        counted = count_ids(iter(texts), encode, batch_texts=batch_texts[2], **common)
    expected = Counter(token_id for text in texts for token_id in ids_of(text))
    assert {token_id: count for token_id, count in enumerate(counted.counts.tolist()) if count} == expected
    assert counted.num_texts == len(texts)


def test_a_text_is_not_counted_again(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def ids(texts: Sequence[str], first: int) -> list[list[int]]:
        asked.append(list(texts))
        return [[0]] * len(texts)

    with pytest.raises(Interrupted):
        count_ids(["a", "b", "c"], interrupted_after(2, ids), 1, tmp_path / "state", SETTINGS, batch_texts=1)
    count_ids(["a", "b", "c", "d"], ids, 1, tmp_path / "state", SETTINGS, batch_texts=4)
    assert asked == [["a"], ["b"], ["c", "d"]]


def test_batches_are_bounded_by_characters_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "BATCH_CHARACTERS", 4)
    done: list[int] = []
    count_ids(
        ["aaa", "b", "cc", "dddd", "e"],
        lambda texts, first: [[]] * len(texts),
        1,
        tmp_path / "state",
        SETTINGS,
        advance=done.append,
    )
    assert done == [0, 2, 4, 5]


def test_nothing_is_added_cut_off_or_filled_up() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert [list(ids) for ids in tokenized_by(tokenizer)(["abc", ""], 0)] == [ids_of("abc"), []]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}], ids=["greedy", "sampled"])
def test_generated_ids_are_the_targets_own_in_one_run_or_several(tmp_path: Path, sampling: dict[str, float]) -> None:
    target, tree = tiny_target(4), TreeShape(3, 3, 10)
    prompts = [torch.tensor([[1, 2, 3]]), torch.tensor([[7]]), torch.tensor([[5, 5]])]
    names = ["a", "b", "c"]
    drafted = SpeculativeDecoder(target, tiny_drafter(target, 2), "in-context", tree, capacity=20)
    looked_up = SpeculativeDecoder(target, PromptLookupDrafter(target.device), tree=tree)
    expected: Counter[int] = Counter()
    for number, prompt in enumerate(prompts):
        plain = drafted.generate_autoregressive(prompt, max_new_tokens=12, seed=number, **sampling)
        expected.update(plain.token_ids)
    common = {"vocab_size": VOCAB_SIZE, "state_path": tmp_path / "state", "settings": SETTINGS, "batch_texts": 1}
    first = generated_by(drafted, prompts, max_new_tokens=12, **sampling)
    with pytest.raises(Interrupted):
        count_ids(names, interrupted_after(1, first), **common)  # type: ignore[arg-type]
    again = generated_by(looked_up, prompts, max_new_tokens=12, **sampling)
    counted = count_ids(names, again, **common)  # type: ignore[arg-type]
    assert {token_id: count for token_id, count in enumerate(counted.counts.tolist()) if count} == expected
