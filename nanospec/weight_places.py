"""Where the weights of models lie and which adapters act on them: what a pass that was captured goes on reading."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# What a layer of peft keeps beside its weights, and branches on in Python: a capture holds one branch for ever.
ADAPTER_STATE = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")


def weight_places(*models: object) -> tuple[Hashable, ...]:
    """Equal as long as passes of the `models` read the same memory in the same way: where all parameters and buffers
    lie, of what shape and dtype, and which adapters of peft are active, disabled or merged, and how they are scaled.

    Numbers written into a weight in place change nothing here. What is no module has no weights.
    """
    return tuple(_places(model) for model in models if isinstance(model, nn.Module))


def weight_state(*models: object) -> tuple[Hashable, ...]:
    """As `weight_places`, and equal only as long as nothing was written into a weight in place.

    That is as far as torch counts: not what goes through `.data`, nor what becomes of tensors made in inference mode.
    Buffers that no checkpoint holds are left out: longrope makes its frequencies anew in every pass.
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
        transient = module._non_persistent_buffers_set
        buffers = (buffer for name, buffer in module._buffers.items() if name not in transient)
        for tensor in (*module._parameters.values(), *buffers):
            if tensor is not None:
                state += [*_tensor_places(tensor), 0 if tensor.is_inference() else tensor._version]
        state += _adapter_state(module)
    return tuple(state)


def _adapter_state(module: nn.Module) -> list[Hashable]:
    return [f"{name}={vars(module)[name]!r}" for name in ADAPTER_STATE if name in vars(module)]


def _tensor_places(tensor: Tensor) -> Iterator[Hashable]:
    """Of what it is made of, for a tensor that is a shell around others: quantised or distributed ones."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _tensor_places(getattr(tensor, name))
    else:
        yield tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
