"""Where the weights of models lie and which adapters act on them: what a pass that was captured goes on reading."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import count

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.weak import WeakIdKeyDictionary

# What a layer of peft keeps beside its weights, and branches on in Python: a capture holds one branch for ever.
ADAPTER_STATE = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")
_serials, _next_serial = WeakIdKeyDictionary(), count()


def weight_places(*models: object) -> tuple[Hashable, ...]:
    """Equal as long as passes of the `models` read the same memory in the same way: where all parameters and buffers
    lie, of what shape and dtype, and which adapters of peft are active, disabled or merged, and how they are scaled.

    Numbers written into a weight in place change nothing here. What is no module has no weights.
    """
    return tuple(_places(model) for model in models if isinstance(model, nn.Module))


def weight_state(*models: object) -> tuple[Hashable, ...]:
    """As `weight_places`, and equal only as long as nothing was written into a weight in place.

    That is as far as torch counts: not numbers written through `.data`, nor what becomes of tensors made in inference
    mode. Frequencies of longrope, which every pass makes anew, are left out, but not the module that makes them.
    """
    return tuple(_state(model) for model in models if isinstance(model, nn.Module))


def _places(model: nn.Module) -> tuple[Hashable, ...]:
    places: list[Hashable] = []
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            places += [] if tensor is None else _tensor_places(tensor)
        places += _adapter_state(module)
    return tuple(places)


def _state(model: nn.Module) -> tuple[Hashable, ...]:
    state: list[Hashable] = []
    for module in model.modules():
        rewritten: set[str] = set()
        if "longrope" in str(vars(module).get("rope_type")):  # of all layers, or by their type
            rewritten = module._non_persistent_buffers_set
            state.append(_serial(module))
        buffers = (buffer for name, buffer in module._buffers.items() if name not in rewritten)
        for tensor in (*module._parameters.values(), *buffers):
            state += [] if tensor is None else _tensor_state(tensor)
        state += _adapter_state(module)
    return tuple(state)


def _tensor_state(tensor: Tensor) -> Iterator[Hashable]:
    yield from _tensor_places(tensor)
    yield 0 if tensor.is_inference() else tensor._version
    yield _serial(tensor)
    for part in _plain_parts(tensor):
        yield _serial(part.untyped_storage())  # another one where `.data` or a cast puts new memory under a tensor


def _serial(thing: object) -> int:
    """A number that no other object ever has: an address has a new owner soon after the old one is gone."""
    return _serials.setdefault(thing, next(_next_serial))


def _adapter_state(module: nn.Module) -> list[Hashable]:
    return [f"{name}={vars(module)[name]!r}" for name in ADAPTER_STATE if name in vars(module)]


def _tensor_places(tensor: Tensor) -> Iterator[Hashable]:
    for part in _plain_parts(tensor):
        yield part.data_ptr(), part.dtype, tuple(part.shape), part.stride()


def _plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """What it is made of, for a tensor that is a shell around others: quantised or distributed ones."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            part = getattr(tensor, name)
            if isinstance(part, Tensor):  # a distributed one names its mesh as well
                yield from _plain_parts(part)
    else:
        yield tensor
