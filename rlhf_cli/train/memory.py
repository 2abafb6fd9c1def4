"""What to change where memory runs out, and about how much that saves; the formulas stand in docs/reliability.md."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig

_STATE_BYTES = 12  # float32 weights and AdamW's two means, a weight
# Activations of a layer in numbers a token and unit of width: arXiv:2205.05198, sec. 4.1, with fused attention (34
# bytes in 16 bits); under gradient checkpointing the layer's input alone is kept.
_LAYER_NUMBERS = 17
_KEPT_NUMBERS = 1
_LIVE_WEIGHTS = 1_000_000_000  # that ZeRO-3 keeps gathered at most when it fetches by layers (DeepSpeed's default)


@dataclass(frozen=True)
class Trained:
    """The size of what is trained; 0 where it is not known yet."""

    weights: int = 0  # of all trained models
    layers: int = 0  # of the policy, or of the reward model in training, as all that follow
    width: int = 0
    kv_width: int = 0  # of the keys of one layer
    number_bytes: int = 0  # of a number in its dtype

    @staticmethod
    def of(weights: int, model: PretrainedConfig, dtype: torch.dtype) -> Trained:
        """Read the size from a model's config."""
        heads, width = model.num_attention_heads, model.hidden_size
        kv_heads = getattr(model, "num_key_value_heads", None) or heads  # GPT-2 and NeoX have none of their own
        return Trained(weights, model.num_hidden_layers, width, width // heads * kv_heads, dtype.itemsize)


def out_of_memory_advice(config: TrainRMConfig | TrainPPOConfig, trained: Trained, num_ranks: int) -> str:
    """Return the settings that help most, one a line, with the GiB a GPU that each would save about."""
    per_token = trained.layers * trained.width * trained.number_bytes
    checkpointing = config.model.gradient_checkpointing
    kept = _KEPT_NUMBERS if checkpointing else _LAYER_NUMBERS
    if isinstance(config, TrainPPOConfig):
        section, gather, num_models = "ppo", config.ppo.gather, 2
        key, rows = "ppo.micro_batch_size", config.ppo.micro_batch_size
        tokens = config.data.max_prompt_tokens + config.rollout.max_new_tokens  # of a row
        last = _smaller_rollout(config, trained, tokens)
    else:
        section, gather, num_models = "train", config.train.gather, 1
        key, rows = "train.micro_batch_size", config.train.micro_batch_size
        tokens = 2 * config.data.max_tokens  # two answers
        half = config.data.max_tokens // 2
        note = f"now {config.data.max_tokens}; longer rows are dropped"
        last = (f"data.max_tokens={half}", rows * half * 2 * per_token * kept, note)
    fewer = max(1, rows // 2)
    recomputed = 0 if checkpointing else rows * tokens * per_token * (_LAYER_NUMBERS - _KEPT_NUMBERS)
    settings = [
        (f"{key}={fewer}", (rows - fewer) * tokens * per_token * kept, f"now {rows}"),
        ("model.gradient_checkpointing=true", recomputed, f"now {checkpointing}; a third more time"),
        ("deepspeed=zero3_offload", _STATE_BYTES * trained.weights // num_ranks, "AdamW's state to the host; slower"),
        last,
    ]
    whole = (trained.weights // num_models - _LIVE_WEIGHTS) * trained.number_bytes
    if gather and num_ranks > 1 and whole > 0:
        settings.append((f"{section}.gather=false", whole, "updates fetch layer by layer; slower"))
    lines = [f"  {option:36} saves about {saved / 2**30:.2f} GiB a GPU ({note})" for option, saved, note in settings]
    return "\n".join(["any of these makes room; the run then goes on with run.resume=true:", *lines])


def _smaller_rollout(config: TrainPPOConfig, trained: Trained, tokens: int) -> tuple[str, int, str]:
    rows = config.rollout.micro_batch_size
    fewer = max(1, rows // 2)
    cache = 2 * trained.layers * trained.kv_width * trained.number_bytes  # keys and values of a token
    return f"rollout.micro_batch_size={fewer}", (rows - fewer) * tokens * cache, f"now {rows}"
