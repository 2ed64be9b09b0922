"""Trains an EAGLE-1 drafter for a target by distillation, unrolled over its own outputs (see `unrolling`).

python -m nanospec.training.train_eagle --corpus train.jsonl.xz --target DIR --out runs/draft --minutes 25
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanospec.checkpoints.eagle import save_eagle_drafter
from nanospec.drafters.eagle import EagleDrafter, EagleShape
from nanospec.gathered_head import GatheredHead
from nanospec.target import Target
from nanospec.training.draft_run import draft_parser, read_inputs, run_training, settings_of
from nanospec.training.draft_trainer import DraftTrainer, DraftTrainingSettings, Lesson, Reading
from nanospec.training.unrolling import unroll

EMBEDDING_GAIN = 0.1  # at first the feature counts
FEATURE_WEIGHT = 0.1
UNROLL_STEPS = 3


class EagleStudent:
    """An EAGLE-1 drafter in training. noise: width of the uniform noise on the features of the first step."""

    feature_layers = None
    feature_weight = FEATURE_WEIGHT

    def __init__(self, drafter: EagleDrafter, noise: float) -> None:
        self.module, self.noise = drafter, noise

    def lesson(self, token_ids: Tensor, reading: Reading, generator: torch.Generator) -> Lesson:
        """Row t: from the feature of position t and token t + 1 the feature of position t + 1."""
        states = reading.features[:, :-1]
        noise = torch.rand(states.shape, generator=generator, dtype=torch.float32) - 0.5
        noise = (noise * self.noise).to(states.dtype)
        return Lesson(unroll(self.module, token_ids[:, 1:], states, UNROLL_STEPS, noise), reading.last_states[:, 1:])


def eagle_trainer(
    target: Target, counts: Tensor, settings: DraftTrainingSettings, noise: float = 0.1
) -> tuple[DraftTrainer, EagleDrafter]:
    """A trainer and the fresh drafter that it trains; raises as `DraftTrainer`."""
    torch.manual_seed(settings.seed)
    drafter = new_drafter(target)
    return DraftTrainer(target, EagleStudent(drafter, noise), counts, settings), drafter


def new_drafter(target: Target) -> EagleDrafter:
    """A fresh drafter that nearly starts as the identity on the feature: the layer adds nothing, fc a little noise."""
    width = target.head_weight.shape[1]
    drafter = EagleDrafter(
        eagle_shape(target), target.config, target.embed_tokens, GatheredHead(target.head_weight, None)
    )
    start_silent(drafter)
    with torch.no_grad():
        drafter.fc.weight[:, :width] *= EMBEDDING_GAIN
        drafter.fc.weight[:, width:] = torch.eye(width)
    return drafter


def eagle_shape(target: Target, **switches: Any) -> EagleShape:
    """One layer with the sizes of the target's; switches: further fields of the shape."""
    config = target.config
    return EagleShape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        num_layers=1,
        rms_norm_eps=config.rms_norm_eps,
        hidden_act="silu",
        fc_bias=False,
        qkv_bias=False,
        **switches,
    )


def start_silent(drafter: EagleDrafter) -> None:
    """Random projections of unit gain, and layers that add nothing yet."""
    with torch.no_grad():
        for module in drafter.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for name, parameter in drafter.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)


def published_config(drafter: EagleDrafter, target: Target) -> dict:
    """config.json with the fields of the published EAGLE-1/2 drafts."""
    shape, config = drafter.shape, target.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "num_hidden_layers": shape.num_layers,
        "hidden_act": shape.hidden_act,
        "rms_norm_eps": shape.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_parameters["rope_theta"],
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "tie_word_embeddings": False,
        "bias": shape.fc_bias,
        "torch_dtype": "bfloat16",
    }


def main() -> None:
    parser = draft_parser(__doc__, minutes=25)
    parser.add_argument("--noise", type=float, default=0.1, help="width of the uniform noise on the features")
    args = parser.parse_args()
    target, corpus = read_inputs(args)
    trainer, drafter = eagle_trainer(target, corpus.counts(target.vocab_size), settings_of(args), args.noise)
    run_training(trainer, corpus, args.out, args.minutes, args.tokens_per_step, args.max_steps)
    save_eagle_drafter(drafter, args.out / "draft", published_config(drafter, target))


if __name__ == "__main__":
    main()
