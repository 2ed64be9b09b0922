"""What the ranks run, together; each function returns what its rank saw, for a test to judge."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.distributed import DistributedConfig

from nanospec import DraftVocab, GatheredHead, InContextVocab, SpeculativeDecoder, Target, generate_with
from nanospec.head_shard import HeadShard
from nanospec.ranks import Ranks
from nanospec.result import GenerationResult
from nanospec.token_choice import NonFiniteLogitsError
from tests.tensor_parallel.decoding import (
    NUM_TOKENS,
    PROMPT,
    SAMPLING,
    SHARDED_FAMILIES,
    TREE,
    decode,
    decode_family,
    decode_other_drafts,
    decoder_of,
    eagle3_drafter,
    greedy,
    language_model_drafter,
    load_model,
)
from tests.tiny_pair import tiny_drafter

ROWS_PER_RANK = (5, 0, 12)  # of the head whose parts are plain tensors


def sharded() -> dict[str, DistributedConfig]:
    return {"distributed_config": DistributedConfig(tp_plan="auto")}


def message(call: Callable[[], object]) -> str:
    """Type and text of the error that `call` raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def shared_head(directory: Path) -> dict[str, Any]:
    """EAGLE-1, on the embedding and the head of the sharded target."""
    target = Target(load_model(directory / "model", **sharded()))
    return decode(target, tiny_drafter(target, 1), dist.get_world_size())


def own_head(directory: Path) -> Any:
    """EAGLE-3 with a head of its own, on features of the sharded target."""
    target = Target(load_model(directory / "deep", **sharded()))
    return greedy(decoder_of(target, eagle3_drafter(directory / "deep")))


def other_drafts(directory: Path) -> dict[str, Any]:
    return decode_other_drafts(Target(load_model(directory / "model", **sharded())))


def families(directory: Path) -> dict[str, Any]:
    return {name: decode_family(directory / name, **sharded()) for name in SHARDED_FAMILIES}


def ranks_that_differ(directory: Path) -> dict[str, Any]:
    """In whatever is not asked for: the drafter's weights, entropy, timings; then in what is."""
    rank, target = dist.get_rank(), Target(load_model(directory / "model", **sharded()))
    drafter = tiny_drafter(target, seed=rank)
    decoder = decoder_of(target, drafter)
    torch.manual_seed(rank)
    return {
        "greedy": greedy(decoder),
        "greedy by other models": greedy(decoder_of(target, language_model_drafter(target, 4 + rank))),
        "unseeded": decoder.generate(PROMPT, max_new_tokens=NUM_TOKENS, **SAMPLING).token_ids,
        "unseeded plain": decoder.generate_autoregressive(PROMPT, max_new_tokens=NUM_TOKENS, **SAMPLING).token_ids,
        "other prompts": message(lambda: decoder.generate(PROMPT[rank:], max_new_tokens=NUM_TOKENS)),
        "other seeds": message(lambda: decoder.generate(PROMPT, max_new_tokens=NUM_TOKENS, seed=rank, temperature=1.0)),
        "greedy again": greedy(decoder),
    }


def ranks_with_broken_logits(directory: Path) -> dict[str, Any]:
    """Logits that are not finite on one rank alone: rank 1's are nobody's business, rank 0's are everybody's."""
    target = Target(load_model(directory / "model", **sharded()))
    decoder, head = decoder_of(target, tiny_drafter(target, 1)), target.head
    seen: dict[str, Any] = {"whole": greedy(decoder)[0]}
    for broken_rank in range(2):
        for num_whole in (0, 2):  # passes before it: of the prompt, and a step
            for call in (decoder.generate, decoder.generate_autoregressive):
                breaks_after = num_whole if dist.get_rank() == broken_rank else 10**6
                target.head = broken_after(head, breaks_after)  # type: ignore[method-assign]
                seen[f"{call.__name__} {broken_rank} {num_whole}"] = tokens_or_message(call)
    return seen


def broken_after(head: Callable[[Tensor], Tensor], num_whole: int) -> Callable[[Tensor], Tensor]:
    """`head`, but NaN after so many calls."""
    calls = itertools.count()
    return lambda hidden: head(hidden) * (float("nan") if next(calls) >= num_whole else 1.0)


def tokens_or_message(call: Callable[..., GenerationResult]) -> list[int] | str:
    try:
        return call(PROMPT, max_new_tokens=NUM_TOKENS).token_ids
    except NonFiniteLogitsError as error:
        return str(error)


def agreement(directory: Path) -> dict[str, Any]:
    """`Ranks` alone: rank r holds r in every tensor."""
    rank, ranks = dist.get_rank(), Ranks(dist.group.WORLD, torch.device("cpu"))
    tensors = (torch.full((3, 2), rank), torch.tensor([rank == 1]), torch.full((0,), 0.5), torch.tensor(rank + 0.25))
    return {
        "tensors": ranks.agree(*tensors),
        "numbers": ranks.agree_on(TREE._replace(num_nodes=5 + rank)),
        "same": message(lambda: ranks.check_same("thing", lambda: ("a", 1))),
        "other": message(lambda: ranks.check_same("thing", lambda: ("a", rank))),
    }


def refusals(directory: Path) -> dict[str, str]:
    model = load_model(directory / "model", **sharded())
    target = Target(model)
    drafter, plain = tiny_drafter(target, 1), load_model(directory / "model")
    rows = torch.zeros(1, 4, target.head_weight.shape[1], dtype=torch.float64)
    packed = DraftVocab(torch.arange(4)[None], torch.tensor([4], dtype=torch.int32), rows)
    return {
        "compile": message(lambda: SpeculativeDecoder(target, drafter, compile="eager")),
        "cuda_graph": message(lambda: SpeculativeDecoder(target, drafter, cuda_graph=True)),
        "packed": message(lambda: InContextVocab(target.head_weight)),
        "rows": message(lambda: drafter.head(rows[:, :1], packed)),
        "draft": message(lambda: SpeculativeDecoder.from_pretrained(plain, model)),
        "generate": message(
            lambda: model.generate(torch.tensor([PROMPT]), custom_generate=generate_with(drafter), max_new_tokens=4)
        ),
        "sharded by columns": message(lambda: GatheredHead(model.model.layers[0].self_attn.o_proj.weight)),
    }


def uneven_heads(directory: Path) -> str:
    """Two key-value heads for three ranks."""
    return message(lambda: Target(load_model(directory / "two-heads", **sharded())).cache)


def head_parts(directory: Path) -> dict[str, Any]:
    """A head of plain parts, one of them empty, beside the whole head; everything from one seed."""
    whole, bias, hidden = head_case()
    start = sum(ROWS_PER_RANK[: dist.get_rank()])
    rows = whole[start : start + ROWS_PER_RANK[dist.get_rank()]]
    shard = HeadShard.of_rows(rows)
    head = GatheredHead(shard, bias)
    return {
        "shape": shard.shape,
        "logits": [head(hidden, vocab) for vocab in head_vocabularies()],
        "best": [head.best(hidden, vocab, 3, 0.5) for vocab in head_vocabularies()],
    }


def head_case() -> tuple[Tensor, Tensor, Tensor]:
    """weight [17, 6], bias [17], hidden [2, 4, 6]"""
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((17, 6), (17,)))
    return weight, bias, torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)


def head_vocabularies() -> list[DraftVocab]:
    """Shared and per sequence, part and all of it active, and none."""
    shared, several = torch.tensor([[16, 0, 4, 5, 9]]), torch.tensor([[3, 2, 1, 0, 4], [16, 15, 14, 5, 0]])
    counts = [torch.tensor(count, dtype=torch.int32) for count in ([5], [3], [2, 4], [0])]
    return [
        DraftVocab(shared, counts[0], None, all_active=True),
        DraftVocab(shared, counts[1], None),
        DraftVocab(several, counts[2], None),
        DraftVocab(shared, counts[3], None),
        DraftVocab(several, counts[0], None, head_pos=several.flip(-1)),
    ]


SCENARIOS: dict[int, tuple[Callable[[Path], Any], ...]] = {
    2: (shared_head, other_drafts, families, ranks_that_differ, ranks_with_broken_logits, agreement, refusals),
    3: (own_head, shared_head, uneven_heads, head_parts),
}
