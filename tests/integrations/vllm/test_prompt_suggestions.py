"""Which of a pass's rows are scored for their suggestions: each position of a prompt's end once, however it is read."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec.integrations.vllm.prompt_suggestions import ReadRows, best_ids_of_rows, block_size, rows_to_score

VOCAB_SIZE, HIDDEN = 600, 5
HEAD = torch.randn(VOCAB_SIZE, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def test_the_rows_before_the_last_known_token_are_chosen():
    pass_rows = [ReadRows("a", 5, 1, 0, 5), ReadRows("b", 3, 3, 17, 20)]
    assert rows_to_score(pass_rows, 3) == {"a": slice(1, 4)}
    assert rows_to_score(pass_rows, 9) == {"a": slice(0, 4)}
    assert rows_to_score(pass_rows, 0) == {}


def test_what_a_prefix_cache_held_was_not_read():
    assert rows_to_score([ReadRows("a", 4, 1, 16, 20)], 8) == {"a": slice(0, 3)}
    assert rows_to_score([ReadRows("a", 1, 1, 19, 20)], 8) == {}


@settings(max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 12), st.integers(0, 40), st.integers(0, 5))
def test_chunks_score_the_last_positions_once_save_the_one_of_each_chunk_that_vllm_scores(
    chunks, num_cached, num_positions, num_before
):
    length, position = num_cached + sum(chunks), num_cached
    chosen: list[int] = []
    for num_read in chunks:
        others = ReadRows("before", num_before, num_before, 100, 100 + num_before)
        rows = rows_to_score([others, ReadRows("a", num_read, 1, position, length)], num_positions)
        part = rows.get("a", slice(0, 0))
        chosen += [position + row - num_before for row in range(part.start, part.stop)]
        position += num_read
    ends = {num_cached + sum(chunks[: place + 1]) - 1 for place in range(len(chunks))}
    wanted = [p for p in range(num_cached, length - 1) if p not in ends and p >= length - 1 - num_positions]
    assert chosen == wanted


@settings(max_examples=20)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 20))
def test_the_best_ids_are_those_of_the_target_in_whatever_blocks(lengths, num_at_once, num_top):
    hidden = torch.randn(40, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(lengths)))
    rows, first = {}, 2
    for place, length in enumerate(lengths):
        rows[str(place)] = slice(first, first + length)
        first += length + 1
    widths = []

    def compute_logits(block):
        widths.append(block.shape[0])
        return block @ HEAD.T

    best = best_ids_of_rows(hidden, rows, compute_logits, num_top, num_at_once)
    assert list(best) == list(rows)
    for name, part in rows.items():
        assert best[name].tolist() == (hidden[part] @ HEAD.T).topk(num_top).indices.tolist()
    assert max(widths) <= num_at_once
    assert sum(widths) == sum(lengths)


def test_a_process_that_gets_no_logits_still_takes_part_in_every_product():
    num_calls = 0

    def compute_logits(block):
        nonlocal num_calls
        num_calls += 1

    assert best_ids_of_rows(torch.ones(8, HIDDEN), {"a": slice(0, 8)}, compute_logits, 3, 3) == {}
    assert num_calls == 3


def test_blocks_are_of_as_many_rows_as_there_may_be_requests():
    assert [block_size(most) for most in (1, 16, 40, 64, 1024)] == [16, 16, 40, 64, 64]
