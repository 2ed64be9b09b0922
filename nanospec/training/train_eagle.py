"""Trains an EAGLE-1 drafter for a target by distillation, unrolled over its own outputs.

    python -m nanospec.training.train_eagle --corpus train.jsonl.xz --target DIR --out runs/draft --minutes 25

Step s of the unrolling feeds the features that step s - 1 predicted, as drafting does (HASS, Zhang et al. 2024;
EAGLE-3's training-time test): position t attends to true features up to t - s + 1 and to predicted ones after that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from nanospec.checkpoints.eagle import save_eagle_drafter
from nanospec.checkpoints.target import load_target
from nanospec.checkpoints.tokenizer import read_tokenizer
from nanospec.drafters.eagle import EagleDrafter, EagleShape
from nanospec.gathered_head import GatheredHead
from nanospec.target import Target
from nanospec.training.corpus import packed_batches, tokenize_corpus
from nanospec.training.distillation import distillation_losses
from nanospec.training.master_weights import MasterWeights
from nanospec.training.run_log import TimedRun, learning_rate_factor
from nanospec.training.sampled_softmax import ClassSampler

EMBEDDING_GAIN = 0.1  # at first the feature counts
FEATURE_LOSS_WEIGHT = 0.1
UNROLL_WEIGHTS = (1.0, 0.8, 0.64)


class UnrolledAttention:
    """Causal attention of one unrolling step over the keys of the first step and, diagonally, of later ones."""

    def __init__(self, length: int, num_groups: int) -> None:
        self.num_groups = num_groups
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.distance = torch.arange(length)[:, None] - torch.arange(length)[None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [B, H, n, d]; key, value [B, KV, n, d] of this step -> [B, H, n, d]."""
        self.keys.append(key.repeat_interleave(self.num_groups, 1))
        self.values.append(value.repeat_interleave(self.num_groups, 1))
        step = len(self.keys)  # 1 for the first
        if step == 1:
            return nn.functional.scaled_dot_product_attention(query, self.keys[0], self.values[0], is_causal=True)
        query = query * query.shape[-1] ** -0.5
        # Position t sees first-step keys at s <= t - (step - 1); the first positions keep their own, to see something.
        hidden = (self.distance < step - 1) & ~((self.distance == 0) & (torch.arange(len(self.distance)) < step - 1))
        scores = [(query @ self.keys[0].mT).masked_fill(hidden, torch.finfo(query.dtype).min)]
        shifts = [step - 1 - later for later in range(1, step)]  # step j < this one predicted t - (step - j)
        for later, shift in enumerate(shifts, start=1):
            scores.append((query * _shifted(self.keys[later], shift)).sum(-1, keepdim=True))
        weights = torch.cat(scores, -1).softmax(-1)
        mixed = weights[..., : -len(shifts)] @ self.values[0]
        for later, shift in enumerate(shifts, start=1):
            column = weights.shape[-1] - len(shifts) + later - 1
            mixed = mixed + weights[..., column, None] * _shifted(self.values[later], shift)
        return mixed


def _shifted(rows: Tensor, shift: int) -> Tensor:
    """rows [B, H, n, d] -> row t holds row t - shift; the first ones stay."""
    return rows if shift == 0 else torch.cat((rows[:, :, :shift], rows[:, :, :-shift]), 2)


class EagleTrainer:
    """Distils the target's next-token distribution and features into one decoder layer.

    Raises NotImplementedError for a target that caps its logits.
    """

    def __init__(self, target: Target, counts: Tensor, args: argparse.Namespace) -> None:
        if target.logit_soft_cap is not None:
            raise NotImplementedError(f"target must not cap its logits to be distilled, got {target.logit_soft_cap}")
        self.target, self.args = target, args
        self.generator = torch.Generator().manual_seed(args.seed)
        torch.manual_seed(args.seed)
        self.drafter = new_drafter(target)
        self.weights = MasterWeights(
            dict(self.drafter.named_parameters()), args.matrix_lr, args.vector_lr, weight_decay=0.01
        )
        self.drafter.to(torch.bfloat16)
        self.sampler = ClassSampler(counts, args.num_drawn)
        self.rotation = self.drafter.rotation(args.seq_len - 1)
        self.target_features = (
            torch.compile(self._target_features, dynamic=False) if args.compile else self._target_features
        )

    @torch.no_grad()
    def _target_features(self, token_ids: Tensor) -> Tensor:
        return self.target.model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state

    def step(self, tokens: Tensor, lr_factor: float) -> float:
        """One update on int64 [n + 1] packed tokens; returns the first step's distillation loss in nats."""
        token_ids = tokens[:-1].view(-1, self.args.seq_len)
        features = self.target_features(token_ids)
        class_ids, log_weight = self.sampler.draw(tokens, self.generator)
        rows = self.target.head_weight.detach()[class_ids]
        predicted = self.unroll(token_ids, features)
        goal = features[:, 1:]
        teacher = goal.flatten(0, 1).contiguous()
        losses = distillation_losses(teacher, rows, log_weight, [p.flatten(0, 1) for p in predicted])
        total = torch.zeros(())
        for weight, loss, prediction in zip(UNROLL_WEIGHTS, losses, predicted, strict=True):
            distance = nn.functional.smooth_l1_loss(prediction, goal)
            total = total + weight * (loss + FEATURE_LOSS_WEIGHT * distance.float())
        total.backward()
        self.weights.step(lr_factor)
        return float(losses[0].detach())

    def unroll(self, token_ids: Tensor, features: Tensor) -> list[Tensor]:
        """Predictions [B, L - 1, D] of the next feature, one per unrolling step."""
        drafter = self.drafter
        embedded = self.target.embed_tokens(token_ids[:, 1:]).detach()
        inputs, predictions = features[:, :-1], []
        noise = torch.rand(inputs.shape, generator=self.generator, dtype=torch.float32) - 0.5
        inputs = inputs + (noise * self.args.noise).to(inputs.dtype)
        attend = UnrolledAttention(inputs.shape[1], drafter.shape.num_heads // drafter.shape.num_kv_heads)
        for _ in UNROLL_WEIGHTS:
            hidden = drafter.fc(torch.cat((embedded, inputs), -1))
            predictions.append(drafter.layers[0](hidden, self.rotation, attend))
            inputs = torch.cat((features[:, :1], predictions[-1][:, :-1]), 1)
        return predictions

    def state(self) -> dict:
        return {"weights": self.weights.state_dict(), "generator": self.generator.get_state()}

    def load_state(self, state: dict) -> None:
        self.weights.load_state_dict(state["weights"])
        self.generator.set_state(state["generator"])


def new_drafter(target: Target) -> EagleDrafter:
    """A fresh drafter that nearly starts as the identity on the feature: the layer adds nothing, fc a little noise."""
    config = target.config
    shape = EagleShape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        num_layers=1,
        rms_norm_eps=config.rms_norm_eps,
        hidden_act="silu",
        fc_bias=False,
        qkv_bias=False,
    )
    drafter = EagleDrafter(shape, config, target.embed_tokens, GatheredHead(target.head_weight, None))
    with torch.no_grad():
        for module in drafter.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        drafter.fc.weight[:, : config.hidden_size] *= EMBEDDING_GAIN
        drafter.fc.weight[:, config.hidden_size :] = torch.eye(config.hidden_size)
        for name, parameter in drafter.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)
    return drafter


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


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True, help="directory of the target, its tokenizer included")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--num-drawn", type=int, default=2048, help="expected number of classes beside the batch's own")
    parser.add_argument("--matrix-lr", type=float, default=0.01)
    parser.add_argument("--vector-lr", type=float, default=0.003)
    parser.add_argument("--noise", type=float, default=0.1, help="width of the uniform noise on the features")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--max-steps", type=int, default=None, help="stop earlier, for trying settings")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    target, _ = load_target(args.target, dtype="bfloat16", device="cpu")
    target.requires_grad_(False)
    tokenizer = read_tokenizer(args.target / "tokenizer.json.xz")
    corpus = tokenize_corpus(args.corpus, tokenizer, args.out.parent / "tokens")
    trainer = EagleTrainer(target, corpus.counts(target.vocab_size), args)
    run = TimedRun(args.out, args.minutes, trainer.state, trainer.load_state)
    batches = packed_batches(corpus, args.tokens_per_step, args.seed + 1000 + run.num_steps)

    def step(progress: float) -> tuple[float, int]:
        return trainer.step(next(batches), learning_rate_factor(progress)), args.tokens_per_step

    run.run(step, args.max_steps)
    save_eagle_drafter(trainer.drafter, args.out / "draft", published_config(trainer.drafter, target))


if __name__ == "__main__":
    main()
