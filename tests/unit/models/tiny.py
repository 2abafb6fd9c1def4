"""Tiny random models of the tested architectures."""

from rlhf_cli.config.sections import DType, ModelConfig

_LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
ARCHITECTURES = {
    "llama": {**_LLAMA_LIKE, "num_key_value_heads": 2},
    "qwen2": {**_LLAMA_LIKE, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": dict(_LLAMA_LIKE),
}
OTHERS = {"mistral": {**_LLAMA_LIKE, "num_key_value_heads": 2}}  # with sliding windows


def tiny_config(architecture: str, **extra: object) -> ModelConfig:
    """A float32 ModelConfig with random weights; `extra` goes into the transformers config."""
    keys = {"model_type": architecture, **{**ARCHITECTURES, **OTHERS}[architecture], **extra}
    return ModelConfig(from_config=keys, tokenizer="bytes", dtype=DType.float32)
