"""The accept rules in plain Python, as they are written in the papers: the oracle for `acceptance`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def sibling_outcomes(p: Sequence[Fraction], children: Sequence[int]) -> tuple[list[Fraction], list[Fraction]]:
    """The classic rule at one node: siblings in order, accept x with p(x), else remove it and renormalise.

    p: the target's probabilities [V], of sum 1; children: distinct ids in the order in which they are tried. Returns
    the probability that each child is accepted, and for every id that all are refused and the residual says it.
    Source: SpecInfer, arXiv:2305.09781, algorithm 2, for children that are deterministic given the context.
    Raises ValueError if children repeat an id.
    Example: p [5/10, 3/10, 2/10] and children [1, 0] give [3/10, 5/10] and [0, 0, 2/10].
    """
    if len(set(children)) != len(children):
        raise ValueError(f"children must be distinct ids, got {list(children)}")
    residual = list(p)
    reached = Fraction(1)  # the probability that the next child is tried at all
    accepted = []
    for child in children:
        accepted.append(reached * residual[child])
        reached *= 1 - residual[child]
        residual[child] = Fraction(0)
        mass = sum(residual)
        if mass > 0:  # else nothing is left to accept or to say
            residual = [x / mass for x in residual]
    return accepted, [reached * x for x in residual]


def sequence_probabilities(
    token_ids: Sequence[int], parent_pos: Sequence[int], p: Sequence[Sequence[Fraction]]
) -> dict[tuple[int, ...], Fraction]:
    """The classic rule over a whole tree: {tokens of one step, the last one being the bonus token: probability}.

    token_ids, parent_pos [T] as in DraftTree; p[i]: the target's probabilities [V] after node i. Siblings are tried in
    the order of their positions. Sequences that cannot occur are left out.
    """
    outcomes: dict[tuple[int, ...], Fraction] = {}

    def visit(node: int, said: tuple[int, ...], reached: Fraction) -> None:
        children = _children(token_ids, parent_pos, node)
        accepted, residual = sibling_outcomes(p[node], [token_ids[i] for i in children])
        for child, accept in zip(children, accepted, strict=True):
            if accept > 0:
                visit(child, (*said, token_ids[child]), reached * accept)
        outcomes.update({(*said, x): reached * chance for x, chance in enumerate(residual) if chance > 0})

    visit(0, (), Fraction(1))
    return outcomes


def greedy_walk(token_ids: Sequence[int], parent_pos: Sequence[int], best_id: Sequence[int]) -> tuple[list[int], int]:
    """Positions of the accepted path, root first, and the target's next id; best_id[i] is its argmax after node i."""
    path = [0]
    while True:
        own_id = best_id[path[-1]]
        matching = [i for i in _children(token_ids, parent_pos, path[-1]) if token_ids[i] == own_id]
        if not matching:
            return path, own_id
        path.append(matching[0])


def typical_walk(
    token_ids: Sequence[int], parent_pos: Sequence[int], p: Sequence[Sequence[float]], epsilon: float, delta: float
) -> list[int]:
    """Positions of the path that typical acceptance keeps, root first; p[i]: the target's probabilities after node i.

    Source: Medusa, section 2.3.1: a token is kept if p(x) > min(epsilon, delta * exp(-H(p))), the longest path wins,
    of equally long ones the likeliest.
    """
    best, best_likelihood = [0], 1.0

    def visit(node: int, likelihood: float, path: list[int]) -> None:
        nonlocal best, best_likelihood
        if (len(path), likelihood) > (len(best), best_likelihood):
            best, best_likelihood = path, likelihood
        entropy = -sum(x * math.log(x) for x in p[node] if x > 0)
        threshold = min(epsilon, delta * math.exp(-entropy))
        for child in _children(token_ids, parent_pos, node):
            if p[node][token_ids[child]] > threshold:
                visit(child, likelihood * p[node][token_ids[child]], [*path, child])

    visit(0, 1.0, [0])
    return best


def _children(token_ids: Sequence[int], parent_pos: Sequence[int], node: int) -> list[int]:
    return [i for i in range(1, len(token_ids)) if parent_pos[i] == node and token_ids[i] >= 0]
