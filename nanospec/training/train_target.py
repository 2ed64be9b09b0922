"""Trains the demonstration target, a Llama-architecture model over the Tekken vocabulary, on a CPU or a GPU.

    python -m nanospec.training.train_target --corpus train.jsonl.xz --tokenizer tokenizer.json.xz \\
        --out runs/target --minutes 75

The vocabulary projection is trained with a sampled softmax, the matrices of the body with Muon, everything else with
Adam. The run stops after `--minutes` of training time, counted over restarts: it resumes from `--out/checkpoint.pt`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from nanospec.checkpoints.tokenizer import read_tokenizer
from nanospec.training.corpus import BOS_ID, EOS_ID, packed_batches, tokenize_corpus
from nanospec.training.master_weights import MasterWeights
from nanospec.training.row_adam import RowAdam
from nanospec.training.run_log import TimedRun, learning_rate_factor
from nanospec.training.sampled_softmax import ClassSampler, sampled_cross_entropy

TABLE_STD = 0.02
LONG_SHARE = 0.1  # the last share of the run trains on long windows


def target_config(vocab_size: int, hidden_size: int, num_layers: int, intermediate_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 128,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=11,
        dtype="bfloat16",
    )


class TargetTrainer:
    """Float32 master weights, bf16 compute, one optimizer step per batch of packed tokens."""

    def __init__(self, config: LlamaConfig, counts: Tensor, args: argparse.Namespace) -> None:
        self.args, self.config = args, config
        self.generator = torch.Generator().manual_seed(args.seed)
        torch.manual_seed(args.seed)
        self.body = build_body(config)
        live = {name: value for name, value in self.body.named_parameters() if "embed_tokens" not in name}
        self.weights = MasterWeights(live, args.matrix_lr, args.vector_lr, args.weight_decay)
        inverse_frequencies = self.body.rotary_emb.inv_freq.clone()
        self.body.to(torch.bfloat16)
        self.body.rotary_emb.inv_freq = inverse_frequencies  # angles stay float32, as in a loaded model
        table = torch.randn(config.vocab_size, config.hidden_size, generator=self.generator) * TABLE_STD
        self.rows = RowAdam(table)
        self.sampler = ClassSampler(counts, args.num_drawn)
        self.local_pos = torch.zeros(config.vocab_size, dtype=torch.int64)
        self.forward = torch.compile(self._hidden, dynamic=False) if args.compile else self._hidden

    def _hidden(self, embedded: Tensor) -> Tensor:
        return self.body(inputs_embeds=embedded, use_cache=False).last_hidden_state

    def step(self, tokens: Tensor, seq_len: int, lr_factor: float) -> float:
        """One update on tokens int64 [n + 1]; returns the sampled loss in nats."""
        inputs, targets = tokens[:-1], tokens[1:]
        class_ids, log_weight = self.sampler.draw(tokens, self.generator)
        self.local_pos[class_ids] = torch.arange(class_ids.numel())
        rows = self.rows.table[class_ids].to(torch.bfloat16).requires_grad_()
        embedded = nn.functional.embedding(self.local_pos[inputs].view(-1, seq_len), rows)
        hidden = self.forward(embedded).reshape(inputs.numel(), -1)
        loss = sampled_cross_entropy(hidden, rows, log_weight, self.local_pos[targets])
        loss.backward()
        self.weights.step(lr_factor)
        assert rows.grad is not None
        self.rows.step(class_ids, rows.grad, self.args.row_lr * lr_factor)
        return loss.item()

    def state(self) -> dict:
        return {
            "config": self.config.to_dict(), "weights": self.weights.state_dict(), "rows": self.rows.state_dict(),
            "generator": self.generator.get_state(),
        }  # fmt: skip

    def load_state(self, state: dict) -> None:
        self.weights.load_state_dict(state["weights"])
        self.rows.load_state_dict(state["rows"])
        self.generator.set_state(state["generator"])


def build_body(config: LlamaConfig) -> LlamaModel:
    """The decoder layers and final norm, float32; embeddings are looked up outside, so its own table is a stub."""
    body = LlamaModel(LlamaConfig(**{**config.to_dict(), "vocab_size": 8, "pad_token_id": None}))
    for module in body.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    for layer in body.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    return body


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--num-layers", type=int, default=8)
    parser.add_argument("--intermediate-size", type=int, default=1024)
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--long-seq-len", type=int, default=2048)
    parser.add_argument("--num-drawn", type=int, default=4096, help="expected number of classes beside the batch's own")
    parser.add_argument("--matrix-lr", type=float, default=0.02)
    parser.add_argument("--vector-lr", type=float, default=0.003)
    parser.add_argument("--row-lr", type=float, default=0.004)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--max-steps", type=int, default=None, help="the run ends there if that comes earlier")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    tokenizer = read_tokenizer(args.tokenizer)
    corpus = tokenize_corpus(args.corpus, tokenizer, args.out.parent / "tokens")
    vocab_size = tokenizer.get_vocab_size()
    config = target_config(vocab_size, args.hidden_size, args.num_layers, args.intermediate_size)
    trainer = TargetTrainer(config, corpus.counts(vocab_size), args)
    run = TimedRun(args.out, args.minutes, trainer.state, trainer.load_state)
    batches = packed_batches(corpus, args.tokens_per_step, args.seed + run.num_steps)

    def step(progress: float) -> tuple[float, int]:
        seq_len = args.long_seq_len if progress > 1 - LONG_SHARE else args.seq_len
        return trainer.step(next(batches), seq_len, learning_rate_factor(progress)), args.tokens_per_step

    run.run(step, args.max_steps)


if __name__ == "__main__":
    main()
