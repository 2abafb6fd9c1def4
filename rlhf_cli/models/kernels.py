"""Select how a model computes: attention, packing, Liger, torch.compile, and kernels for CPUs.

No other module imports models/cpu. Its kernels are selected only for models on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_liger_kernel_available

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import ModelConfig
from rlhf_cli.models.cpu.attention import use_cpu_attention
from rlhf_cli.models.cpu.decoding import cpu_decoding
from rlhf_cli.models.cpu.linear import supports_reordering
from rlhf_cli.models.packed_forward import use_packing


def select_kernels(model: PreTrainedModel, config: ModelConfig, key: str) -> None:
    """Set up a newly loaded model as its options say; raise InputError for kernels that cannot run."""
    if config.attn_implementation is None and not torch.cuda.is_available():
        use_cpu_attention(model)
    if config.packing:
        use_packing(model)
    if config.liger_kernel:
        _use_liger(model, key)
    if config.compile:
        _compile_layers(model)


@contextmanager
def decoding_kernels(model: PreTrainedModel, num_rows: int) -> Iterator[None]:
    """Generate with the fastest kernels for one token per row. Weights must not change meanwhile.

    num_rows: rows of most steps. Compiled layers are not used: each new shape would recompile them.
    """
    with uncompiled(model), cpu_decoding(model, num_rows) if model.device.type == "cpu" else nullcontext():
        yield


def decoding_copies_weights(dtype: torch.dtype) -> bool:
    """Return whether decoding on this machine's CPU keeps a second copy of weights of this type."""
    return supports_reordering(dtype)


def uncompiled(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Run a model without its compiled layers."""
    if any(layer._compiled_call_impl is not None for layer in model.modules()):
        return cast(AbstractContextManager[None], torch.compiler.set_stance("force_eager"))
    return nullcontext()


def _compile_layers(model: PreTrainedModel) -> None:
    """Compile each layer for any number of tokens, except for attention, which has its own kernels."""
    name = model.config._attn_implementation
    if name in ALL_ATTENTION_FUNCTIONS:
        own = torch.compiler.disable(ALL_ATTENTION_FUNCTIONS[name])  # type: ignore[no-untyped-call]
        AttentionInterface.register(name, own)
    kinds = set(model._no_split_modules or ())
    for layer in model.modules():
        if type(layer).__name__ in kinds:
            layer.compile(dynamic=True)


def _use_liger(model: PreTrainedModel, key: str) -> None:
    if not torch.cuda.is_available():
        raise InputError(f"{key}.liger_kernel must be false without an NVIDIA GPU, got true")
    if not is_liger_kernel_available():
        raise InputError(f"{key}.liger_kernel=true needs the package liger-kernel: pip install 'rlhf[liger]'")
    apply_liger_kernel(model, None)
