"""Trains a small language model as drafter: the target's first layers, its embedding and head, distilled.

    python -m nanospec.training.train_causal_lm --corpus train.jsonl.xz --target DIR --out runs/lm --minutes 25

It reads no feature of the target and is saved as a complete Hugging Face directory, tokenizer included.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nanospec.target import Target
from nanospec.training.draft_run import draft_parser, read_inputs, run_training, settings_of
from nanospec.training.draft_trainer import DraftTrainer, DraftTrainingSettings, Lesson, Reading

NUM_LAYERS = 2
TOKENIZER_FILES = ("tokenizer.json.xz", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")


class CausalLMStudent:
    """A language model in training whose embedding and head stay the target's."""

    feature_layers = None
    feature_weight = 0.0

    def __init__(self, model: PreTrainedModel) -> None:
        self.module = model

    def lesson(self, token_ids: Tensor, reading: Reading, generator: torch.Generator) -> Lesson:
        """Row t: from the tokens up to t what the target's head reads at position t."""
        hidden = self.module.get_decoder()(input_ids=token_ids, use_cache=False).last_hidden_state
        return Lesson([hidden], reading.last_states)


def causal_lm_trainer(
    target: Target, counts: Tensor, settings: DraftTrainingSettings, num_layers: int = NUM_LAYERS
) -> tuple[DraftTrainer, PreTrainedModel]:
    """A trainer and the model that it trains; raises as `DraftTrainer` and `first_layers`."""
    model = first_layers(target.model, num_layers)
    return DraftTrainer(target, CausalLMStudent(model), counts, settings), model


def first_layers(model: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """A model of the same kind made of the first layers, in the same dtype; embedding and head are frozen.

    Raises ValueError unless 1 <= num_layers < the layers of `model`.
    """
    config = copy.deepcopy(model.config)
    if not 1 <= num_layers < config.num_hidden_layers:
        raise ValueError(f"num_layers must be in [1, {config.num_hidden_layers - 1}], got {num_layers}")
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    config.num_hidden_layers = num_layers
    smaller = copy.deepcopy(model)
    smaller.config = smaller.get_decoder().config = config
    del smaller.get_decoder().layers[num_layers:]
    smaller.requires_grad_(True)
    for frozen in (smaller.get_input_embeddings(), smaller.get_output_embeddings()):
        frozen.requires_grad_(False)
    return smaller


def save_causal_lm(model: PreTrainedModel, directory: Path, target_directory: Path) -> None:
    """The model and the target's tokenizer, as `load_drafter` and transformers read them."""
    model.save_pretrained(directory)
    for name in TOKENIZER_FILES:
        if (target_directory / name).exists():
            shutil.copy(target_directory / name, directory / name)


def main() -> None:
    parser = draft_parser(__doc__, minutes=25)
    parser.add_argument("--num-layers", type=int, default=NUM_LAYERS, help="of the target's, counted from the first")
    args = parser.parse_args()
    target, corpus = read_inputs(args)
    trainer, model = causal_lm_trainer(target, corpus.counts(target.vocab_size), settings_of(args), args.num_layers)
    run_training(trainer, corpus, args.out, args.minutes, args.tokens_per_step, args.max_steps)
    save_causal_lm(model, args.out / "draft", args.target)


if __name__ == "__main__":
    main()
