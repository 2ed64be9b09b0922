"""Draft levels through torch.compile: plain Inductor, the backend "nanospec", and the floor: no head at all.

A level is an EAGLE layer over 512 cached tokens and the frontier, then head, log-softmax and ten best ids. Eight are
timed at once, as a draft runs them: one after the other, with warm caches.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.shapes import DTYPE, Shape
from nanospec import DraftVocabulary
from nanospec.drafters.eagle import EagleLayer, EagleShape

NUM_ROWS, NUM_CACHED, BRANCHING, NUM_LEVELS = 10, 512, 10, 8
NUM_ACTIVE = 725  # ids that the in-context vocabulary of the embedded pair holds on average
# bf16 log-probabilities of order 10, rounded once to 8 significant bits before a float32 softmax.
TOLERANCE = 2**-4


class DraftLevel(nn.Module):
    """ids int64 [1, n] and states [1, n, D] of their parents -> states, log-probabilities and ids of their children."""

    def __init__(self, shape: Shape, head_weight: Tensor) -> None:
        super().__init__()
        heads = shape.num_heads, shape.num_kv_heads, shape.head_dim
        eagle = EagleShape(shape.hidden_size, shape.intermediate_size, *heads, 1, 1e-5, "silu", False, False)
        self.embed_tokens = nn.Embedding.from_pretrained(head_weight)
        self.fc = nn.Linear(2 * shape.hidden_size, shape.hidden_size, bias=False)
        self.layer = EagleLayer(eagle, input_norm=False)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        self.lm_head.weight = nn.Parameter(head_weight, requires_grad=False)
        self.keys = nn.Buffer(torch.randn(1, shape.num_kv_heads, NUM_CACHED, shape.head_dim))
        self.values = nn.Buffer(torch.randn(1, shape.num_kv_heads, NUM_CACHED, shape.head_dim))

    def states(self, ids: Tensor, states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = torch.cat((self.keys, key), 2), torch.cat((self.values, value), 2)
            return F.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=True)

        hidden = self.fc(torch.cat((self.embed_tokens(ids), states), -1))
        return self.layer(hidden, (cos, sin), attend)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states = self.states(*inputs)
        best = self.lm_head(states).log_softmax(-1, dtype=torch.float32).topk(BRANCHING)
        return states, best.values, best.indices

    def without_head(self, logits: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best = logits.log_softmax(-1, dtype=torch.float32).topk(BRANCHING)
        return self.states(*inputs), best.values, best.indices


@pytest.fixture(scope="module")
def level(shape: Shape, head_weight: Tensor, device: torch.device) -> DraftLevel:
    torch.manual_seed(0)
    return DraftLevel(shape, head_weight).to(device, DTYPE).eval()


@torch.inference_mode()
def test_time_of_compiled_draft_levels(shape: Shape, level: DraftLevel, device: torch.device, compare) -> None:
    torch.compiler.reset()  # a function is compiled at most eight times, and then runs as it is written
    inputs = _inputs(shape, device)
    vocabulary = DraftVocabulary(shape.vocab_size, shape.draft_size, device)
    vocabulary.update(torch.randperm(shape.vocab_size)[: shape.draft_size])
    logits = torch.randn(1, NUM_ROWS, shape.draft_size, dtype=DTYPE, device=device)

    plain = torch.compile(level, backend="inductor")
    gathered = torch.compile(level, backend="nanospec", options={"vocabulary": vocabulary})
    sparse = DraftVocabulary(shape.vocab_size, shape.draft_size, device)
    sparse.update(vocabulary.draft_ids[:NUM_ACTIVE])
    gathered_few = torch.compile(level, backend="nanospec", options={"vocabulary": sparse})
    headless = torch.compile(level.without_head, backend="inductor")
    headless(logits, *inputs)

    for outputs, active in ((gathered(*inputs), vocabulary), (gathered_few(*inputs), sparse)):
        _check_best(level, outputs, plain(*inputs), active)
    compare(
        f"{NUM_LEVELS} draft levels, V = {shape.vocab_size}, D = {shape.hidden_size}, K = {shape.draft_size}",
        {
            "plain Inductor": lambda: [plain(*inputs) for _ in range(NUM_LEVELS)],
            "nanospec": lambda: [gathered(*inputs) for _ in range(NUM_LEVELS)],
            f"nanospec, {NUM_ACTIVE} active": lambda: [gathered_few(*inputs) for _ in range(NUM_LEVELS)],
            "head deleted": lambda: [headless(logits, *inputs) for _ in range(NUM_LEVELS)],
        },
    )


def _inputs(shape: Shape, device: torch.device) -> tuple[Tensor, ...]:
    ids = torch.randint(shape.vocab_size, (1, NUM_ROWS), device=device)
    states = torch.randn(1, NUM_ROWS, shape.hidden_size, dtype=DTYPE, device=device)
    angles = torch.rand(NUM_ROWS, shape.head_dim, device=device)
    mask = torch.zeros(1, 1, NUM_ROWS, NUM_CACHED + NUM_ROWS, dtype=DTYPE, device=device)
    mask[..., NUM_CACHED:] = torch.eye(NUM_ROWS, device=device).log()
    return ids, states, angles.cos().to(DTYPE), angles.sin().to(DTYPE), mask


def _check_best(level: DraftLevel, gathered: tuple, plain: tuple, vocabulary: DraftVocabulary) -> None:
    """The gathered ids carry the best of the log-probabilities that the whole head gives, taken over the vocabulary."""
    torch.testing.assert_close(gathered[0], plain[0], rtol=TOLERANCE, atol=TOLERANCE)
    active_ids = vocabulary.draft_ids[: int(vocabulary.count)]
    logits = level.lm_head(gathered[0])[..., active_ids]
    expected = logits.log_softmax(-1, dtype=torch.float32).topk(BRANCHING).values
    torch.testing.assert_close(gathered[1], expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert torch.isin(gathered[2], active_ids).all(), "an id outside of the draft vocabulary was chosen"
