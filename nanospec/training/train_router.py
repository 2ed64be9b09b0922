"""Trains the router of a draft vocabulary: which clusters of head rows hold what the target will say next.

DynaSpec (Zhang et al. 2025, arXiv:2510.13847), section 4: cluster the rows of the head by direction, then train a small
classifier with one binary cross-entropy per cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanospec.training.balanced_clusters import balanced_clusters
from nanospec.training.router_examples import RouterExamples
from nanospec.vocab.router import Router, sample_rows

ROWS_PER_CLUSTER = 64
BATCH_SIZE = 512
LEARNING_RATE = 2e-3
WARM_UP_STEPS = 50
LEAST_RATE = 0.001  # of a cluster's label, where a bias begins that no example has


class RouterSettings(NamedTuple):
    """num_clusters M, None for V / 64; hidden_size H, the classifier's width; num_epochs passes over the examples;
    looks_ahead: a second classifier as well, of what the drafter's layer reads."""

    num_clusters: int | None = None
    hidden_size: int = 128
    num_epochs: int = 3
    seed: int = 0
    looks_ahead: bool = False

    def validated(self, vocab_size: int) -> RouterSettings:
        """Self, or ValueError naming the number that is below 1, or above the rows of the head."""
        for name in ("num_clusters", "hidden_size", "num_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.num_clusters is not None and self.num_clusters > vocab_size:
            raise ValueError(f"num_clusters must be in [1, {vocab_size}], got {self.num_clusters}")
        return self


DEFAULTS = RouterSettings()


def num_training_steps(examples: RouterExamples, settings: RouterSettings) -> int:
    """Updates that `train_router` makes."""
    counts = [examples.next_pos.numel()]
    if settings.looks_ahead:
        counts.append(int((examples.next_pos[:, :-1] >= 0).sum()))
    return sum(settings.num_epochs * -(-count // BATCH_SIZE) for count in counts)


def train_router(
    head_weight: Tensor,
    examples: RouterExamples,
    settings: RouterSettings = DEFAULTS,
    on_step: Callable[[], None] = lambda: None,
) -> Router:
    """A router over head_weight [V, D], float32 on the CPU; `on_step` is called after every update.

    The label of a cluster is 1 where it holds one of the target's best ids or the token that follows. States count with
    mean and deviation taken out; both end up in the weights. Raises ValueError for settings out of range, and for
    examples of one level where the router is to look ahead of the next.
    """
    settings = settings.validated(head_weight.shape[0])
    weight = head_weight.detach().cpu()
    router, cluster_of = _new_router(weight, examples, settings)
    labels = _label_clusters(examples, cluster_of)  # [N, L, k + 1], M: none
    _fit((router.hidden, router.score), examples.states.flatten(0, 1).float(), labels.flatten(0, 1), settings, on_step)
    if router.ahead is not None:
        if labels.shape[1] < 2:
            raise ValueError("examples must be of two levels or more to look ahead of the second, got one")
        inputs, is_there = inputs_ahead(weight, examples)
        layers = router.ahead[0], router.ahead[2]
        _fit(layers, inputs[is_there], labels[:, 1:][is_there], settings, on_step)  # type: ignore[arg-type]
    return router.requires_grad_(False)


def inputs_ahead(weight: Tensor, examples: RouterExamples) -> tuple[Tensor, Tensor]:
    """What a router that looks ahead sees of every level but the first: head rows of tokens and states before them,
    float32 [N, L - 1, 2 D]; bool [N, L - 1], False where the head has no such row, so nothing is drafted there."""
    token_pos = examples.next_pos[:, :-1]
    return torch.cat((weight[token_pos.clamp(min=0)], examples.states[:, :-1]), -1).float(), token_pos >= 0


def _fit(
    layers: tuple[nn.Linear, nn.Linear],
    states: Tensor,
    labels: Tensor,
    settings: RouterSettings,
    on_step: Callable[[], None],
) -> None:
    """Trains the classifier of two layers on states float32 [n, D'] whose wanted clusters are labels [n, k + 1]."""
    hidden, score = layers
    mean, deviation = states.mean(0), states.std(0).clamp(min=1e-6)
    generator = torch.Generator().manual_seed(settings.seed)
    _start(layers, labels, generator)
    optimizer = torch.optim.AdamW(nn.ModuleList(layers).parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    num_steps = settings.num_epochs * -(-states.shape[0] // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, num_steps))
    for _ in range(settings.num_epochs):
        for batch in torch.randperm(states.shape[0], generator=generator).split(BATCH_SIZE):
            scores = score(F.silu(hidden((states[batch] - mean) / deviation)))
            wanted = F.pad(torch.zeros_like(scores), (0, 1)).scatter_(1, labels[batch], 1.0)[:, :-1]
            loss = F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum") / batch.shape[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            on_step()
    _fold(hidden, mean, deviation)


def wanted_counts(examples: RouterExamples, vocab_size: int) -> Tensor:
    """int64 [V]: how often each row was the target's first choice or followed."""
    wanted = torch.cat((examples.top_pos[..., 0].flatten(), examples.next_pos.flatten()))
    return wanted[wanted >= 0].bincount(minlength=vocab_size)


def _new_router(weight: Tensor, examples: RouterExamples, settings: RouterSettings) -> tuple[Router, Tensor]:
    """An untrained router over clusters in the order of `Router`, and the cluster of every row, int64 [V]."""
    vocab_size = weight.shape[0]
    num_clusters = settings.num_clusters or max(vocab_size // ROWS_PER_CLUSTER, 1)
    clusters = balanced_clusters(weight, num_clusters, settings.seed)
    counts = wanted_counts(examples, vocab_size)
    clusters = [cluster[counts[cluster].argsort(descending=True, stable=True)] for cluster in clusters]
    totals = torch.stack([counts[cluster].sum() for cluster in clusters])
    clusters = [clusters[index] for index in totals.argsort(descending=True, stable=True).tolist()]
    token_ids, sizes = torch.cat(clusters), torch.tensor([cluster.shape[0] for cluster in clusters])
    router = Router(token_ids, sizes, sample_rows(weight), settings.hidden_size, settings.looks_ahead)
    cluster_of = torch.empty_like(token_ids)
    return router, cluster_of.scatter_(0, token_ids, torch.repeat_interleave(torch.arange(num_clusters), sizes))


def _label_clusters(examples: RouterExamples, cluster_of: Tensor) -> Tensor:
    """int64 [N, L, k + 1]: clusters wanted after every state, which may repeat; the number of clusters for none."""
    wanted = torch.cat((examples.top_pos, examples.next_pos[..., None]), -1)
    return torch.where(wanted < 0, int(cluster_of.max()) + 1, cluster_of[wanted.clamp(min=0)])


def _start(layers: tuple[nn.Linear, nn.Linear], labels: Tensor, generator: torch.Generator) -> None:
    """Before the first update a cluster's score is how often it is wanted."""
    hidden, score = layers
    num_clusters = score.out_features
    rate = labels.flatten().bincount(minlength=num_clusters + 1)[:-1] / labels.shape[0]
    with torch.no_grad():
        score.bias.copy_(torch.logit(rate.clamp(LEAST_RATE / num_clusters, 1 - LEAST_RATE)))
        hidden.bias.zero_()
        for layer in layers:
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)


def _rate(step: int, num_steps: int) -> float:
    """Warm-up, constant, then linear to zero over the last two thirds."""
    return min(1.0, (step + 1) / WARM_UP_STEPS, 1.5 * (num_steps - step) / num_steps)


def _fold(layer: nn.Linear, mean: Tensor, deviation: Tensor) -> None:
    """layer((x - mean) / deviation) becomes layer(x)."""
    with torch.no_grad():
        layer.weight.div_(deviation)
        layer.bias.sub_(layer.weight @ mean)
