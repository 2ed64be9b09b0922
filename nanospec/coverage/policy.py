"""One policy of a measurement: how it is written down, and the tree that it would draft after a context."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from nanospec.records import DraftTree, DraftVocab, Observation
from nanospec.row_cost import row_cost
from nanospec.tree_growers import TreeGrowers
from nanospec.vocab.adaptive import adaptive_part
from nanospec.vocab_selector import ADDED

if TYPE_CHECKING:
    from nanospec.decode import SpeculativeDecoder

FULL = "full"
EAGLE2_TEMPERATURE = 1.0  # of the drafter's logits in EAGLE-2's own tree
_OPTION = re.compile(r"(?P<rest>.+),(?P<name>num_top|capacity|temperature)=(?P<value>[^,]*)")


class Policy(NamedTuple):
    """A vocabulary by name and what it is run with; None: as the decoder has it.

    vocab        as `SpeculativeDecoder` takes it
    num_top      target suggestions per position
    capacity     most rows of an in-context vocabulary
    temperature  the drafter's logits are divided by it
    """

    vocab: str
    num_top: int | None = None
    capacity: int | None = None
    temperature: float | None = None

    @property
    def name(self) -> str:
        """As `nanospec compare` names its rows, "static-4096" for "static:4096", and the options behind it."""
        vocab, plus, router = self.vocab.partition(ADDED)
        joined = _short(vocab) + (_short(plus + router) if plus else "")
        options = [f",{name}={value}" for name, value in self._asdict().items() if name != "vocab" and value]
        return "".join((joined, *options))


def _short(vocab: str) -> str:
    """A file without its directory."""
    kind, _, detail = vocab.partition(":")
    return f"{kind}-{Path(detail).name}" if detail else kind


BASELINE = Policy(FULL, temperature=EAGLE2_TEMPERATURE)


def parse_policy(text: str) -> Policy:
    """Policy of "VOCAB[,num_top=N][,capacity=N][,temperature=X]", as in "in-context,num_top=3".

    Raises ValueError for an option that is given twice or whose value is not a number above 0.
    """
    vocab = text
    options: dict[str, Any] = {}
    while match := _OPTION.fullmatch(vocab):
        vocab, name, value = match.group("rest"), match.group("name"), match.group("value")
        kind = float if name == "temperature" else int
        try:
            number: float = kind(value)
        except ValueError:
            number = 0
        if name in options or not 0 < number < float("inf"):
            raise ValueError(f"vocab {text!r}: {name} must be given once, as a number above 0, got {value!r}")
        options[name] = number
    return Policy(vocab, **options)


def list_policies(texts: list[str] | tuple[str, ...]) -> list[Policy]:
    """The baseline first, then the others in their order. "full" without a temperature is the baseline itself.

    Raises ValueError as `parse_policy`, and for two policies with one name.
    """
    policies = [BASELINE]
    for text in texts:
        policy = parse_policy(text)
        if policy in (BASELINE, Policy(FULL)):
            continue
        if any(policy.name == other.name for other in policies):
            raise ValueError(f"vocab must be given once per name, got {text!r} a second time")
        policies.append(policy)
    return policies


def row_name(policy: Policy) -> str:
    """The policy's name; plain "full" for the baseline."""
    return FULL if policy == BASELINE else policy.name


class PolicyProbe:
    """A policy over the target and drafter of `decoder`, run for one draft at a time; the drafter is shared.

    default_temperature: where neither the policy nor the decoder has one. Raises as `SpeculativeDecoder`, and
    NotImplementedError for a drafter that scores no ids.
    """

    def __init__(self, decoder: SpeculativeDecoder, policy: Policy, default_temperature: float) -> None:
        row = decoder.with_vocab(policy.vocab, num_top=policy.num_top, capacity=policy.capacity)
        if row.vocab.name == "none":
            raise NotImplementedError(f"draft must score ids for a draft vocabulary to matter, got {row.drafter.name}")
        adaptive = adaptive_part(row.vocab)
        if adaptive is not None:
            adaptive.price_rows(row_cost(row.target, row.drafter, row.tree))
        self.policy, self.vocab, self.num_top = policy, row.vocab, row.num_top
        temperatures = (policy.temperature, row.draft_temperature, default_temperature)
        self.temperature = next(value for value in temperatures if value is not None)
        growers = TreeGrowers(row.drafter, row.vocab, None, row.static_tree, row.target.device)
        self._grower = growers.grower(row.tree, self.temperature)

    def begin(self, observation: Observation) -> None:
        """Forget the text before and see a new one, whose `top_ids` have at least `num_top` ids."""
        self.vocab.reset()
        self.learn(observation)

    def learn(self, observation: Observation) -> None:
        """What a decoding loop does after a target pass."""
        if self.vocab.observes:
            self.vocab.learn(observation._replace(top_ids=observation.top_ids[..., : self.num_top]))

    def num_rows(self) -> int:
        """Active ids; waits for the device."""
        return int(self.vocab.select(None).count.max())

    def draft(self, root_id: Tensor, state: Tensor, width: int) -> tuple[DraftTree, list[DraftVocab]]:
        """The tree after root_id int64 [1, 1] with the drafter's state [1, 1, D], grown over `width` columns, and the
        vocabularies that its levels were drafted from; one, where it is the same for all."""
        vocab, levels = self.vocab.select(width), []
        at_level = vocab.at_level
        if at_level is None:
            return self._grower.draft(root_id, state, vocab), [vocab]

        def recorded(states: Tensor, level: int) -> DraftVocab:
            levels.append(at_level(states, level))
            return levels[-1]

        changes: dict[str, Any] = {"at_level": recorded}
        return self._grower.draft(root_id, state, vocab._replace(**changes)), levels
