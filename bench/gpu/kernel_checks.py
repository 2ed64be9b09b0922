"""Every kernel against float64 or plain Python, on the device and in the dtype that are about to be timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.gpu.random_pair import random_head
from bench.gpu.run_context import BenchRun
from nanospec.acceptance import accept_greedy
from nanospec.locality_tracker import LocalityTracker
from nanospec.ops.blocked_topk import blocked_topk
from nanospec.ops.blocked_topk_reference import blocked_topk_reference
from nanospec.ops.gathered_linear import gathered_linear
from nanospec.ops.gathered_linear_reference import gathered_linear_reference
from nanospec.ops.gathered_topk_logprob import gathered_topk_logprob
from nanospec.ops.vocabulary_update_reference import LruVocabulary
from nanospec.records import DraftTree
from nanospec.tree_layout import tree_layout

# Logits of order 1, summed in float32 and rounded once to the dtype; a log-probability of order 10 carries the rounding
# of its logit and, composed of single ops, that of the others.
TOLERANCES = {torch.bfloat16: 2**-5, torch.float16: 2**-8, torch.float32: 1e-4}
NUM_TREES = 16
NUM_UPDATES = 12


class WrongResultError(Exception):
    """A kernel or a decoding gave another result than its reference: nothing may be timed."""


@torch.inference_mode()
def check_gathered_linear(run: BenchRun) -> None:
    """Per-sequence ids, partial counts, one to all nodes of a tree, at every hidden size."""
    for x, weight, draft_ids, count in _products(run):
        logits = gathered_linear(x, weight, draft_ids, None, count)
        expected = gathered_linear_reference(x.double(), weight.double(), draft_ids, None, count)
        _require_close("gathered_linear", logits, expected, TOLERANCES[run.dtype])


@torch.inference_mode()
def check_gathered_topk_logprob(run: BenchRun) -> None:
    """Log-probabilities by rank; ids by the log-probability that float64 gives to them, since near-ties may swap."""
    k, tolerance = run.sizes.tree.branching, TOLERANCES[run.dtype]
    for x, weight, draft_ids, count in _products(run):
        ids, log_prob = gathered_topk_logprob(x, weight, draft_ids, k, None, count)
        logits = gathered_linear_reference(x.double(), weight.double(), draft_ids, None, count)
        exact = logits.log_softmax(-1)
        _require_close("gathered_topk_logprob", log_prob, exact.topk(k).values, tolerance)
        by_id = exact.new_full((*exact.shape[:2], weight.shape[0]), float("-inf"))
        by_id.scatter_(2, draft_ids[:, None].expand_as(exact), exact)
        _require_close("ids of gathered_topk_logprob", by_id.gather(2, ids), exact.topk(k).values, tolerance)


@torch.inference_mode()
def check_vocabulary_update(run: BenchRun) -> None:
    """Against a least-recently-used set in plain Python, with repeats, strangers and more ids than slots."""
    vocab_size, capacity = run.sizes.pairs[0].vocab_size, run.sizes.draft_size
    tracker = LocalityTracker(vocab_size, capacity, device=run.device)
    python = LruVocabulary(vocab_size, capacity)
    num_ids = run.sizes.tree.num_nodes * (1 + run.sizes.num_top)
    for update in range(NUM_UPDATES):
        ids = (torch.rand(1, num_ids).square() * (vocab_size + 1)).long() - 1
        if update == NUM_UPDATES // 2:
            ids = torch.randint(vocab_size, (1, capacity + num_ids))
        tracker.observe(ids.to(run.device))
        python.observe(ids[0].tolist())
        held = tracker.draft_ids[0, : int(tracker.count[0])].tolist()
        if len(held) != len(set(held)) or set(held) != python.active_ids():
            raise WrongResultError("vocabulary_update holds other ids than a least-recently-used set")


@torch.inference_mode()
def check_tree_layout(run: BenchRun) -> None:
    """Masks and depths of random trees against a walk from every node to the root."""
    for tree, parents in _random_trees(run):
        for node, row in enumerate(tree.ancestor_mask[0].tolist()):
            path = _path_to_root(parents, node)
            if {column for column, is_set in enumerate(row) if is_set} != set(path):
                raise WrongResultError(f"tree layout: other ancestors of node {node} than {path}, parents {parents}")
            if int(tree.depth[0, node]) != len(path) - 1:
                raise WrongResultError(f"tree layout: depth of node {node} must be {len(path) - 1}, parents {parents}")


@torch.inference_mode()
def check_accept_greedy(run: BenchRun) -> None:
    """Against a walk from the root to the child that the target names, as long as there is one."""
    for tree, parents in _random_trees(run):
        token_ids = tree.token_ids[0].tolist()
        best = torch.randint(4, (1, len(parents)))
        verdict = accept_greedy(tree, best.to(run.device), len(parents) - 1)
        node, path = 0, [0]
        while True:
            children = [c for c in range(1, len(parents)) if parents[c] == node and token_ids[c] == int(best[0, node])]
            if not children:
                break
            node = children[0]
            path.append(node)
        found = verdict.accepted_pos[0, : int(verdict.num_accepted[0])].tolist()
        if found != path or int(verdict.next_id[0]) != int(best[0, node]):
            raise WrongResultError(f"accept_greedy must accept {path}, accepted {found}")


@torch.inference_mode()
def check_blocked_topk(run: BenchRun) -> None:
    logits = torch.randn(run.sizes.tree.num_nodes, run.sizes.pairs[0].vocab_size, device=run.device).to(run.dtype)
    values, ids = blocked_topk(logits, run.sizes.num_top)
    expected_values, expected_ids = blocked_topk_reference(logits, run.sizes.num_top)
    gathered = logits.gather(1, ids)
    if not (torch.equal(values, expected_values) and torch.equal(gathered, values)):
        raise WrongResultError("blocked_topk gives other values than a stable sort")
    if not torch.equal(ids[:, 0], expected_ids[:, 0]):
        raise WrongResultError("blocked_topk must give the first maximum first")


KERNEL_CHECKS: dict[str, Callable[[BenchRun], None]] = {
    "gathered_linear": check_gathered_linear,
    "gathered_topk_logprob": check_gathered_topk_logprob,
    "vocabulary_update": check_vocabulary_update,
    "tree_layout": check_tree_layout,
    "accept_greedy": check_accept_greedy,
    "blocked_topk": check_blocked_topk,
}


def _products(run: BenchRun) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """x, weight, draft_ids, count of one product per hidden size and number of tokens."""
    torch.manual_seed(0)
    draft_size, shape = run.sizes.draft_size, run.sizes.tree
    for hidden_size in {size.hidden_size for size in run.sizes.pairs}:
        weight = random_head(2 * draft_size, hidden_size, run.device, run.dtype)
        for batch_size, num_tokens in ((1, 1), (1, shape.branching), (1, shape.num_nodes), (3, shape.branching)):
            x = torch.randn(batch_size, num_tokens, hidden_size, device=run.device, dtype=run.dtype)
            draft_ids = torch.stack([torch.randperm(2 * draft_size)[:draft_size] for _ in range(batch_size)])
            count = torch.randint(shape.branching, draft_size + 1, (batch_size,), dtype=torch.int32)
            yield x, weight, draft_ids.to(run.device), count.to(run.device)


def _random_trees(run: BenchRun) -> Iterator[tuple[DraftTree, list[int]]]:
    """Trees with a chain, a star and random parents, siblings distinct, and their parents as a list."""
    generator = torch.Generator().manual_seed(0)
    num_nodes = run.sizes.tree.num_nodes
    for turn in range(NUM_TREES):
        reach = {0: 1, 1: num_nodes}.get(turn, 4)  # how far back a parent may lie
        parents = [0]
        for node in range(1, num_nodes):
            low = 0 if turn == 1 else max(0, node - reach)
            parents.append(0 if turn == 1 else int(torch.randint(low, node, (1,), generator=generator)))
        ids = [0]
        for node in range(1, num_nodes):
            ids.append(sum(parents[other] == parents[node] for other in range(1, node)))
        yield _tree(parents, ids, run.device), parents


def _tree(parents: list[int], ids: list[int], device: torch.device) -> DraftTree:
    parent_pos = torch.tensor([parents], device=device)
    ancestors, depth = tree_layout(parent_pos, len(parents) - 1)
    score = torch.zeros(parent_pos.shape, device=device)
    return DraftTree(torch.tensor([ids], device=device), parent_pos, depth, score, ancestors)


def _path_to_root(parents: list[int], node: int) -> list[int]:
    path = [node]
    while path[-1] != 0:
        path.append(parents[path[-1]])
    return path


def _require_close(name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    found, expected = found.double(), expected.double()
    both_infinite = found.isneginf() & expected.isneginf()
    error = (found - expected).abs().masked_fill(both_infinite, 0.0)
    worst = float(error.max())
    if not worst <= tolerance:  # a NaN is not
        raise WrongResultError(f"{name}: largest error {worst:.3g} is above {tolerance:.3g}")
