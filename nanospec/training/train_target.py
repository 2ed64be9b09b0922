"""Trains the demonstration target, a Llama-architecture model over the Tekken vocabulary, on a CPU or a GPU.

    python -m nanospec.training.train_target --corpus train.jsonl.xz --tokenizer tokenizer.json.xz --out runs/target --minutes 75

The vocabulary projection is trained with a sampled softmax, the matrices of the body with Muon, everything else with
Adam. The run stops after `--minutes` of training time, counted over restarts: it resumes from `--out/checkpoint.pt`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from nanospec.training.corpus import BOS_ID, EOS_ID, packed_batches, tokenize_corpus
from nanospec.training.row_adam import RowAdam
from nanospec.training.sampled_softmax import ClassSampler, sampled_cross_entropy
from nanospec.training.tokenizer_file import read_tokenizer

CHECKPOINT_EVERY_S = 300
LONG_SHARE = 0.1  # the last share of the run trains on long windows


def target_config(vocab_size: int, hidden_size: int, num_layers: int, intermediate_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 128,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=11,
        dtype="bfloat16",
    )


def learning_rate_factor(progress: float) -> float:
    """Warm-up over the first percent, constant, then linear to zero over the last half."""
    return min(1.0, progress / 0.01 + 0.01, (1.0 - progress) / 0.5)


class TargetTrainer:
    """Float32 master weights, bf16 compute, one optimizer step per batch of packed tokens."""

    def __init__(self, config: LlamaConfig, counts: Tensor, args: argparse.Namespace) -> None:
        self.args = args
        self.generator = torch.Generator().manual_seed(args.seed)
        torch.manual_seed(args.seed)
        body_config = LlamaConfig(**{**config.to_dict(), "vocab_size": 8, "pad_token_id": None})
        self.body = LlamaModel(body_config)  # inputs are embedded here: the model's own table stays unused
        for module in self.body.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for layer in self.body.layers:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)
        self.names = [name for name, _ in self.body.named_parameters() if "embed_tokens" not in name]
        live = dict(self.body.named_parameters())
        self.masters = {name: live[name].detach().clone().float() for name in self.names}
        self.body.to(torch.bfloat16)
        self.live = dict(self.body.named_parameters())
        matrices = [self.masters[name] for name in self.names if self.masters[name].ndim == 2]
        vectors = [self.masters[name] for name in self.names if self.masters[name].ndim == 1]
        self.muon = torch.optim.Muon(matrices, lr=args.matrix_lr, momentum=0.95, weight_decay=args.weight_decay)
        self.adam = torch.optim.Adam(vectors, lr=args.vector_lr, betas=(0.9, 0.95))
        scale = 0.02
        self.rows = RowAdam(torch.randn(config.vocab_size, config.hidden_size, generator=self.generator) * scale)
        self.sampler = ClassSampler(counts, args.num_drawn)
        self.local_pos = torch.zeros(config.vocab_size, dtype=torch.int64)
        self.elapsed, self.num_steps, self.num_tokens = 0.0, 0, 0
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
        self._apply(class_ids, rows.grad, lr_factor)
        self.num_steps += 1
        self.num_tokens += inputs.numel()
        return loss.item()

    @torch.no_grad()
    def _apply(self, class_ids: Tensor, row_grad: Tensor, lr_factor: float) -> None:
        for name in self.names:
            self.masters[name].grad = self.live[name].grad.float()
        nn.utils.clip_grad_norm_([self.masters[name] for name in self.names if self.masters[name].ndim == 1], 1.0)
        for group in self.muon.param_groups:
            group["lr"] = self.args.matrix_lr * lr_factor
        for group in self.adam.param_groups:
            group["lr"] = self.args.vector_lr * lr_factor
        self.muon.step()
        self.adam.step()
        self.rows.step(class_ids, row_grad, self.args.row_lr * lr_factor)
        for name in self.names:
            self.live[name].copy_(self.masters[name])
            self.live[name].grad = None

    def state(self) -> dict:
        return {
            "masters": self.masters, "muon": self.muon.state_dict(), "adam": self.adam.state_dict(),
            "rows": self.rows.state_dict(), "generator": self.generator.get_state(),
            "progress": (self.elapsed, self.num_steps, self.num_tokens),
        }  # fmt: skip

    def load_state(self, state: dict) -> None:
        for name, value in state["masters"].items():
            self.masters[name].copy_(value)
            self.live[name].data.copy_(value)
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.rows.load_state_dict(state["rows"])
        self.generator.set_state(state["generator"])
        self.elapsed, self.num_steps, self.num_tokens = state["progress"]


def save_checkpoint(trainer: TargetTrainer, config: LlamaConfig, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"trainer": trainer.state(), "config": config.to_dict()}, partial)
    partial.rename(path)


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
    parser.add_argument("--max-steps", type=int, default=None, help="stop earlier, for trying settings")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = read_tokenizer(args.tokenizer)
    corpus = tokenize_corpus(args.corpus, tokenizer, args.out.parent / "tokens")
    vocab_size = tokenizer.get_vocab_size()
    config = target_config(vocab_size, args.hidden_size, args.num_layers, args.intermediate_size)
    trainer = TargetTrainer(config, corpus.counts(vocab_size), args)
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load_state(torch.load(checkpoint, weights_only=True)["trainer"])
    batches = packed_batches(corpus, args.tokens_per_step, args.seed + trainer.num_steps)
    budget, smooth, last_save, last_log = args.minutes * 60, None, time.monotonic(), 0.0
    with (args.out / "log.jsonl").open("a") as log:
        while trainer.elapsed < budget and trainer.num_steps != args.max_steps:
            began, progress = time.monotonic(), trainer.elapsed / budget
            seq_len = args.long_seq_len if progress > 1 - LONG_SHARE else args.seq_len
            loss = trainer.step(next(batches), seq_len, learning_rate_factor(progress))
            trainer.elapsed += time.monotonic() - began
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            if time.monotonic() - last_log > 15:
                last_log = time.monotonic()
                rate = args.tokens_per_step / (last_log - began)
                log.write(json.dumps({
                    "step": trainer.num_steps, "tokens": trainer.num_tokens, "seconds": round(trainer.elapsed),
                    "loss": round(smooth, 4), "tokens_per_second": round(rate),
                }) + "\n")  # fmt: skip
                log.flush()
            if time.monotonic() - last_save > CHECKPOINT_EVERY_S:
                save_checkpoint(trainer, config, checkpoint)
                last_save = time.monotonic()
    save_checkpoint(trainer, config, checkpoint)


if __name__ == "__main__":
    main()
