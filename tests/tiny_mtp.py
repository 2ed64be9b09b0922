"""Random native MTP modules over tiny targets, built by transformers, and its own scores along a path below a text."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from nanospec.drafters.mtp import MTP_TARGETS, MtpDrafter
from nanospec.target import Target
from tests.tiny_families import family_model
from tests.tiny_pair import randomize

# Architecture and number of modules; Mellum may have one.
KINDS = [("glm4_moe", 1), ("glm4_moe", 3), ("deepseek_v3", 1), ("deepseek_v3", 2), ("mellum", 1)]
assert {name for name, _ in KINDS} == set(MTP_TARGETS)


def target_model(name: str, num_modules: int, seed: int = 3) -> PreTrainedModel:
    return family_model(name, seed, num_mtp_layers=num_modules)


def mtp_model(model: PreTrainedModel, seed: int = 2, std: float = 0.03) -> MtpModel:
    """In float64. The modules pass the embedding on, plus noise: right for some tokens, wrong for others."""
    mtp = MtpModel(model, model.config.num_mtp_layers).double().eval()
    randomize(mtp.layers, seed, std)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in mtp.layers:
            layer.eh_proj.weight[:, : model.config.hidden_size] += torch.eye(model.config.hidden_size)
            for buffer in layer.buffers():  # biases of the routers
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return mtp.requires_grad_(False)


def mtp_drafter(target: Target, mtp: MtpModel) -> MtpDrafter:
    drafter = MtpDrafter(target, len(mtp.layers)).to(target.dtype)
    drafter.layers.load_state_dict(mtp.layers.state_dict())
    return drafter.eval().requires_grad_(False)


def tiny_mtp(name: str, num_modules: int, std: float = 0.03) -> tuple[Target, MtpDrafter]:
    target = Target(target_model(name, num_modules))
    return target, mtp_drafter(target, mtp_model(target.model, std=std))


@torch.no_grad()
def path_logits(model: PreTrainedModel, mtp: MtpModel, text: list[int], path: list[int]) -> Tensor:
    """[len(path) + 1, V]: after the text, its last token being the root, and after every token of the path below it.

    One module after the other runs over the whole text, shifted by one more token each time; behind them the last one
    runs again, over one token at a time.
    """
    states = model(torch.tensor([text[:-1]]), output_hidden_states=True).hidden_states[-1]
    cache, last, logits = MtpCache(config=model.config.get_mtp_config()), len(mtp.layers) - 1, []
    for depth in range(len(path) + 1):
        count = len(text) - 1 if depth <= last else 1
        ids = [*text, *path[:depth]][-count:]
        positions = torch.arange(len(text) + depth - count, len(text) + depth)[None]
        states = mtp.forward_layer(
            min(depth, last), states[:, -count:], positions, cache, input_ids=torch.tensor([ids])
        )
        logits.append(model.lm_head(states[:, -1]))
    return torch.cat(logits)
