"""Runs of one prompt set through several decoders in turn, so that a drift of the machine meets all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nanospec.result import GenerationResult

AUTOREGRESSIVE = "autoregressive"
WARM_UP_TOKENS = 16
PROBE_PROMPTS = 3

Runner = Callable[..., "GenerationResult"]
Advance = Callable[[], None]


class Difference(NamedTuple):
    """Where a row's tokens leave autoregressive decoding's.

    vocab, prompt, position  row name, prompt number from 0, generated token from 0
    margin                   in autoregressive's own logits there, the top one less that of the token that the row has;
                             None where the row has no token or one that is not among the best candidates
    bound                    below it the margin is a near-tie; 0 where the dtype allows no difference
    near_tie                 rounding explains it; taken for granted of tokens sampled in 16 bits, where any shift of a
                             probability may pick another with the same random number
    """

    vocab: str
    prompt: int
    position: int
    margin: float | None
    bound: float
    near_tie: bool


def num_runs(num_rows: int, num_prompts: int) -> int:
    """How often `timed_runs` and `headless_ratios` advance together; autoregressive is one of the rows."""
    return num_rows * (1 + num_prompts) + (num_rows - 1) * min(PROBE_PROMPTS, num_prompts)


def timed_runs(
    runners: Mapping[str, Runner], prompts: Sequence[Tensor], max_new_tokens: int, advance: Advance
) -> dict[str, list[GenerationResult]]:
    """Results by row name, one per prompt [1, P], after one short run of each row.

    The order of the rows rotates from prompt to prompt, so that no row always follows the same neighbour.
    """
    names = list(runners)
    for name in names:
        runners[name](prompts[0], max_new_tokens=min(WARM_UP_TOKENS, max_new_tokens))
        advance()
    results: dict[str, list[GenerationResult]] = {name: [] for name in names}
    for index, input_ids in enumerate(prompts):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(runners[name](input_ids, max_new_tokens=max_new_tokens))
            advance()
    return results


def headless_ratios(
    runners: Mapping[str, Runner], prompts: Sequence[Tensor], max_new_tokens: int, advance: Advance
) -> dict[str, float | None]:
    """Draft time over the time of the same draft without a head, by row name, None where nothing was drafted.

    The probe runs every draft twice and would disturb timed runs: these are runs of their own on the first prompts.
    """
    draft = dict.fromkeys(runners, 0.0)
    headless = dict.fromkeys(runners, 0.0)
    for input_ids in prompts[:PROBE_PROMPTS]:
        for name, generate in runners.items():
            stats = generate(input_ids, max_new_tokens=max_new_tokens, probe_headless=True).stats
            draft[name] += stats.seconds["draft"]
            headless[name] += stats.headless_draft_seconds
            advance()
    return {name: draft[name] / headless[name] if headless[name] > 0 else None for name in runners}


def find_differences(
    results: Mapping[str, Sequence[GenerationResult]],
    rerun: Callable[[int], GenerationResult],
    dtype: torch.dtype,
    is_sampled: bool = False,
) -> list[Difference]:
    """First difference of every row from autoregressive decoding, prompt by prompt.

    `rerun(prompt)` decodes a prompt autoregressively once more, with candidates; it is called for prompts with a
    difference only, and not for tokens that were sampled in 16 bits.
    """
    from nanospec.near_tie import EXACT_DTYPES, first_difference  # loads torch, which --help can do without

    is_rounded = is_sampled and dtype not in EXACT_DTYPES
    differences = []
    for prompt, reference in enumerate(results[AUTOREGRESSIVE]):
        outputs = {name: runs[prompt].token_ids for name, runs in results.items()}
        parted = {name: first_difference(tokens, reference.token_ids) for name, tokens in outputs.items()}
        has_parted = any(position is not None for position in parted.values())
        witness = rerun(prompt) if has_parted and not is_rounded else None
        for name, position in parted.items():
            if position is not None and is_rounded:
                differences.append(Difference(name, prompt, position, None, float("inf"), near_tie=True))
            elif position is not None and witness is not None:
                differences.append(_judge(name, prompt, position, outputs[name], witness, dtype))
    return differences


def _judge(
    name: str, prompt: int, position: int, tokens: list[int], witness: GenerationResult, dtype: torch.dtype
) -> Difference:
    from nanospec.near_tie import is_near_tie, margin_below_top, near_tie_bound

    same_context = witness.token_ids[:position] == tokens[:position]
    judged = (witness.candidates or [])[: len(tokens)]  # an output that ends too early has no token to judge
    if not same_context or position >= len(judged):
        return Difference(name, prompt, position, None, 0.0, near_tie=False)
    margin, top_logit = margin_below_top(tokens[position], judged[position]), judged[position].logits[0]
    near_tie = margin is not None and is_near_tie(margin, top_logit, dtype)
    return Difference(name, prompt, position, margin, near_tie_bound(dtype, top_logit), near_tie)
