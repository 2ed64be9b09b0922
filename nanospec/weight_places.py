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


def _places(model: nn.Module) -> tuple[Hashable, ...]:
    places: list[Hashable] = []
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            places += [] if tensor is None else _tensor_places(tensor)
        places += [f"{name}={vars(module)[name]!r}" for name in ADAPTER_STATE if name in vars(module)]
    return tuple(places)


def _tensor_places(tensor: Tensor) -> Iterator[Hashable]:
    """Of what it is made of, for a tensor that is a shell around others: quantised or distributed ones."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _tensor_places(getattr(tensor, name))
    else:
        yield tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
