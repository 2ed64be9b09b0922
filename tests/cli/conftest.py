"""A decoder that answers from a script, in place of the real one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import nanospec
from nanospec.result import Candidates, GenerationResult
from nanospec.stats import GenerationStats
from nanospec.tree_shape import TreeShape

for name in nanospec.__all__:  # every module holds the real decoder before another takes its place
    getattr(nanospec, name)

AUTOREGRESSIVE = "autoregressive"
TOKENS = list(range(10, 19))
MARGIN, TOP_LOGIT = 0.25, 16.0
RUNNER_UP = 99  # its logit lies MARGIN below the top one at every position
CONTEXT_WINDOW = 20


def seconds(draft: float, verify: float, vocabulary: float, other: float) -> dict[str, float]:
    return {"prefill": 0.5, "draft": draft, "verify": verify, "vocabulary": vocabulary, "other": other, "step": 0.0}


# Per generation: seconds, target passes after prefill, tokens that they yielded, rows that the drafter scored in all.
FIGURES = {
    AUTOREGRESSIVE: (seconds(0.0, 4.0, 0.0, 0.0), 8, 8, 0),
    "full": (seconds(1.0, 0.5, 0.0, 0.5), 4, 8, 4000),
    "static:4096": (seconds(0.5, 0.5, 0.0, 0.6), 4, 8, 400),
    "static:32768": (seconds(0.6, 0.5, 0.0, 0.6), 4, 8, 800),
    "in-context": (seconds(0.25, 0.5, 0.05, 0.2), 4, 10, 200),
    "hybrid:1024+prior": (seconds(0.25, 0.5, 0.05, 0.2), 4, 10, 1200),
}
HEADLESS_SECONDS = 0.2


@dataclass
class Script:
    """What the fake decoder says, and what it was asked."""

    dtype: torch.dtype = torch.float32
    tokens: dict[str, list[int]] = field(default_factory=dict)  # by vocabulary, TOKENS where there is none
    error: Exception | None = None
    num_frequent_ids: int = 131072
    loaded: list[tuple[Any, ...]] = field(default_factory=list)
    calls: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # vocabulary, prompt, settings
    warm_ups: int = 0
    lossless: bool = True


class FakeDecoder:
    script: Script
    drafter = SimpleNamespace(name="eagle")
    tokenizer: object | None = "a tokenizer"
    last_stats: GenerationStats | None = None

    def __init__(self, vocab: str, tree: TreeShape | None) -> None:
        self.vocab = SimpleNamespace(name=vocab)
        self.tree = tree if isinstance(tree, TreeShape) else TreeShape(5, 8, 32)
        self.target = SimpleNamespace(
            dtype=self.script.dtype, device=torch.device("cpu"), vocab_size=1 << 17, context_window=CONTEXT_WINDOW
        )

    @classmethod
    def from_demo(cls, draft: str = "eagle", **options: Any) -> FakeDecoder:
        return cls._load("demo" if draft == "eagle" else f"demo {draft}", options)

    @classmethod
    def from_pretrained(cls, target: str, draft: str, **options: Any) -> FakeDecoder:
        return cls._load((target, draft), options)

    @classmethod
    def _load(cls, pair: Any, options: dict[str, Any]) -> FakeDecoder:
        cls.script.loaded.append((pair, options))
        if cls.script.error is not None:
            raise cls.script.error
        return cls(options["vocab"], options["tree"])

    def with_vocab(self, vocab: str) -> FakeDecoder:
        if vocab.startswith("static:") and int(vocab.partition(":")[2]) > self.script.num_frequent_ids:
            raise ValueError(f"vocab {vocab!r} needs as many frequent ids")
        if vocab not in FIGURES:
            raise ValueError(f"vocab must be one of {list(FIGURES)}, got {vocab!r}")
        return type(self)(vocab, self.tree)

    def warm_up(self) -> None:
        self.script.warm_ups += 1

    def encode(self, text: str) -> Tensor:
        return torch.tensor([[ord(character) for character in text]])

    def generate(self, input_ids: Tensor, **settings: Any) -> GenerationResult:
        return self._answer(self.vocab.name, input_ids, settings)

    def generate_autoregressive(self, input_ids: Tensor, **settings: Any) -> GenerationResult:
        return self._answer(AUTOREGRESSIVE, input_ids, settings)

    def stream(self, input_ids: Tensor, **settings: Any) -> Iterator[SimpleNamespace]:
        self.last_stats = self._answer(self.vocab.name, input_ids, settings).stats
        yield SimpleNamespace(text="two ", token_ids=TOKENS[:4])
        yield SimpleNamespace(text="words", token_ids=TOKENS[4:])

    def _answer(self, vocab: str, input_ids: Tensor, settings: dict[str, Any]) -> GenerationResult:
        self.script.calls.append((vocab, "".join(map(chr, input_ids[0].tolist())), settings))
        spent, steps, step_tokens, active_rows = FIGURES[vocab]
        tokens = self.script.tokens.get(vocab, TOKENS)
        stats = GenerationStats(
            vocab=vocab,
            drafter=None if vocab == AUTOREGRESSIVE else "eagle",
            device="cpu",
            dtype="float32",
            tree=None if vocab == AUTOREGRESSIVE else self.tree,
            new_tokens=len(tokens),
            target_passes=steps + 1,
            steps=steps,
            step_tokens=step_tokens,
            active_rows=active_rows,
            headless_draft_seconds=HEADLESS_SECONDS if settings.get("probe_headless") else 0.0,
            lossless=self.script.lossless,
            seconds=dict(spent),
        )
        candidates = None
        if settings.get("return_candidates"):
            candidates = [Candidates([token, RUNNER_UP], [TOP_LOGIT, TOP_LOGIT - MARGIN]) for token in tokens]
        return GenerationResult(list(tokens), "two words", "length", stats, candidates)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Installs the fake decoder; the test writes its answers and reads its calls here."""
    module = ModuleType("nanospec.decode")
    module.SpeculativeDecoder = type("Fake", (FakeDecoder,), {"script": Script()})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nanospec.decode", module)
    monkeypatch.delenv("NANOSPEC_DEBUG", raising=False)
    return module.SpeculativeDecoder.script
