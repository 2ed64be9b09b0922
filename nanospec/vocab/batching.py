"""Draft vocabularies for the sequences of a batch: each with a memory of its own, unless the policy has none."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class ServesBatches(Protocol):
    """What a policy that observes needs beyond `VocabSelector`, so that sequences can come and go."""

    def for_batch(self, batch_size: int) -> Any:
        """The same policy, empty, for so many sequences."""

    def sequences(self, start: int, stop: int) -> Any:
        """The policy over these sequences alone, in the same memory."""

    def copy_sequence(self, source: int, destination: int) -> None:
        """Sequence `destination` becomes what `source` is."""


@runtime_checkable
class _IsCopied(Protocol):
    """A policy that observes nothing and still has state, such as where the ids of the last level stand."""

    def for_batch(self, batch_size: int) -> Any: ...


class _Observing(Protocol):
    observes: bool


Policy = TypeVar("Policy", bound=_Observing)


def for_batch(policy: Policy, batch_size: int) -> Policy:
    """The same policy, empty, for so many sequences; itself if it observes nothing, and so has nothing to tell apart,
    unless it says otherwise by a `for_batch` of its own.

    Raises TypeError for a policy that observes and serves no batches, NotImplementedError as the policy does.
    """
    if not policy.observes:
        return policy.for_batch(batch_size) if isinstance(policy, _IsCopied) else policy
    if not isinstance(policy, ServesBatches):
        raise TypeError(
            f"vocab must have for_batch, sequences and copy_sequence in a batch, got {type(policy).__name__}"
        )
    return policy.for_batch(batch_size)


def sequences(policy: Policy, start: int, stop: int) -> Policy:
    """The policy over these sequences of a batch alone, in the same memory."""
    return policy.sequences(start, stop) if isinstance(policy, ServesBatches) and policy.observes else policy


def copy_sequence(policy: Policy, source: int, destination: int) -> None:
    """Sequence `destination` of a batch becomes what `source` is."""
    if isinstance(policy, ServesBatches) and policy.observes:
        policy.copy_sequence(source, destination)
