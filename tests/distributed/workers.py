"""Functions that the ranks of a distributed test run: `python -m tests.distributed.workers FOLDER NAME ...`."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from deepspeed.utils import get_z3_leaf_modules
from torch.testing import assert_close

from rlhf_cli.algo.logprobs import token_logprobs
from rlhf_cli.config.errors import NonFiniteError
from rlhf_cli.config.sections import DType, OptimConfig, RolloutConfig, Schedule
from rlhf_cli.data.token_batches import EndTokens, TokenBatch, TokenSequence, collate
from rlhf_cli.engine import distributed
from rlhf_cli.engine.plain import PlainFrozen
from rlhf_cli.engine.zero3 import ZeroFrozen, ZeroTrain
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.heads import ResponseLM, TokenScorer
from rlhf_cli.models.load_models import load_causal_lm, load_sequence_classifier
from rlhf_cli.report.library_logs import quieten_libraries
from rlhf_cli.rollout.embedded import EmbeddedSampler
from rlhf_cli.system.signals import exit_now
from tests.oracle.cases import (
    PPO_CASES,
    RM_CASES,
    Record,
    check_ppo_case,
    check_rm_case,
    ppo_config,
    ppo_models,
    ppo_trainer,
)
from tests.unit.models.tiny import tiny_config

ZERO3 = {"zero_optimization": {"stage": 3, "overlap_comm": False, "stage3_param_persistence_threshold": 0}}
OFFLOAD = {
    "zero_optimization": {
        **ZERO3["zero_optimization"],
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    },
}
OPTIM = OptimConfig(
    learning_rate=0.01,
    weight_decay=0.1,
    eps=1e-4,  # Adam divides a gradient by its own size: a large eps keeps rounding of the smallest ones small
    schedule=Schedule.linear,
    warmup_ratio=0.0,
    max_grad_norm=0.5,
)
NUM_UPDATES = 3
RATES = (0.01, 0.0055, 0.001)  # in a straight line to a tenth
TOKENIZER = byte_tokenizer()
ENDS = EndTokens(frozenset({TOKENIZER.eos_token_id}), 0)
CPU = torch.device("cpu")
LINEAR = torch.nn.functional.linear  # as it is before DeepSpeed puts its own in its place
SEQUENCES = [
    TokenSequence(tuple(range(3, 3 + 2 * n)), tuple(range(40, 41 + 3 * n))) for n in range(1, 9)
]  # uneven lengths


def policy(architecture: str = "llama", **extra: object) -> ResponseLM:
    return ResponseLM(load_causal_lm(tiny_config(architecture, **extra), "model", TOKENIZER, seed=0))


def token_loss(model: object, sequences: list[TokenSequence]) -> torch.Tensor:
    batch = collate(sequences, 0, CPU)
    return -token_logprobs(logits_of(model, batch), batch.real_response_ids(), 1.0).sum()


def logits_of(model: object, batch: TokenBatch) -> torch.Tensor:
    logits: torch.Tensor = model(batch.input_ids, **batch.before_response_tokens(), packing=batch.packing)  # type: ignore[operator]
    return logits


def plain_updates() -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same updates in one process, plain torch, one sequence at a time."""
    model = policy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.1)
    num_tokens = sum(len(sequence.response_ids) for sequence in SEQUENCES)
    norms = []
    for update in range(NUM_UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = RATES[update]
        optimizer.zero_grad()
        for sequence in SEQUENCES:
            (token_loss(model, [sequence]) / num_tokens).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        optimizer.step()
    return model.state_dict(), norms


def updates(_: Path, deepspeed: dict[str, object] = ZERO3) -> None:
    """ZeRO-3 over the ranks, with uneven micro-batches, makes the same updates as plain torch, weights held or not."""
    for hold in (False, True):
        check_updates(ZeroTrain(policy(), torch.float32, OPTIM, NUM_UPDATES, deepspeed), hold)


def check_updates(engine: ZeroTrain, hold: bool) -> None:
    share = SEQUENCES[distributed.rank() :: distributed.world_size()]
    num_tokens = sum(len(sequence.response_ids) for sequence in SEQUENCES)
    expected, expected_norms = plain_updates()
    for update in range(NUM_UPDATES):
        before = put_in_place(engine)
        with engine.gathered(hold):
            for part in (share[:1], share[1:]):
                engine.backward(token_loss(engine, part) / num_tokens)
                assert (held_elements(engine) > 0) is hold
        assert held_elements(engine) == 0
        assert put_in_place(engine) == before
        result = engine.step(update)
        assert_close(result.grad_norm, expected_norms[update], rtol=1e-5, atol=0)
        assert_close(result.learning_rate, RATES[update])
    state = engine.full_state_dict()
    assert bool(state) == (distributed.rank() == 0)
    for name, tensor in state.items():
        assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


def offloaded_updates(folder: Path) -> None:
    """The same with parameters and optimizer states in host memory."""
    updates(folder, OFFLOAD)


def shards(engine: ZeroTrain | ZeroFrozen) -> str:
    digest = hashlib.sha256()
    for parameter in engine.module.parameters():
        digest.update(parameter.ds_tensor.detach().float().numpy().tobytes())  # type: ignore[attr-defined]
    return digest.hexdigest()


def held_elements(engine: ZeroTrain) -> int:
    return sum(parameter.numel() for parameter in engine.module.parameters())


def generation(_: Path) -> None:
    """Gathered generation: unequal counts and lengths do not hang, shards stay, memory and hooks come back."""
    engine = ZeroTrain(policy(), torch.float32, OPTIM, NUM_UPDATES, ZERO3)
    sampler = EmbeddedSampler(engine, RolloutConfig(max_new_tokens=12, micro_batch_size=2), ENDS, CPU)
    before = shards(engine)
    prompts = [sequence.prompt_ids for sequence in SEQUENCES[: 3 + 2 * distributed.rank()]]
    first = sampler.sample(prompts, [f"key {index}" for index in range(len(prompts))])
    again = sampler.sample(prompts[:1], ["key 0"])
    other = sampler.sample(prompts[:1], ["key 1"])
    assert first[0] == again[0] != other[0]  # a draw depends on its key, not on its batch
    assert shards(engine) == before
    assert held_elements(engine) == 0
    engine.backward(token_loss(engine, SEQUENCES[:2]) / 10)
    assert held_elements(engine) == 0  # without its hooks a layer would keep what it gathered
    engine.step(0)
    assert shards(engine) != before
    print(distributed.gather_all(first[:3]) == [first[:3]] * 2)


def put_in_place(engine: ZeroTrain | ZeroFrozen) -> tuple[object, ...]:
    """What DeepSpeed has hung on a model: hooks, in layers and in its own lists, and its linear function."""
    optimizer = engine._engine.optimizer
    offload = getattr(optimizer, "parameter_offload", optimizer)
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    of_layers = {kind: sum(len(getattr(part, kind)) for part in engine.module.modules()) for kind in kinds}
    listed = len(offload.forward_hooks), len(offload.backward_hooks)
    return *of_layers.values(), *listed, torch.nn.functional.linear


def gathering(_: Path) -> None:
    """Whole weights give the bits that layers give, in any number of passes; all comes back, after a failure too."""
    model = load_sequence_classifier(tiny_config("llama"), "model", TOKENIZER, 0, new_head=True)
    train = ZeroTrain(policy(), torch.float32, OPTIM, NUM_UPDATES, ZERO3)
    scorer = ZeroFrozen(TokenScorer(model), torch.float32, ZERO3)
    batch = collate(SEQUENCES[distributed.rank() :][:3], 0, CPU)
    with torch.no_grad():
        check_gathering(train, lambda: logits_of(train, batch))
        check_gathering(scorer, lambda: scorer(batch.input_ids, packing=batch.packing)[0])
    train.backward(token_loss(train, SEQUENCES[:2]) / 10)
    assert held_elements(train) == 0
    train.step(0)


def check_gathering(engine: ZeroTrain | ZeroFrozen, read: Callable[[], torch.Tensor]) -> None:
    num_weights = sum(int(parameter.ds_numel) for parameter in engine.module.parameters())  # type: ignore[attr-defined]
    sharded = read()
    before = put_in_place(engine), shards(engine), engine.fingerprint()
    assert before[0][4] > 0
    assert before[0][6] is not LINEAR
    for fails in (False, True):
        try:
            with engine.gathered() as module:
                assert module is engine.module
                assert held_elements(engine) == num_weights
                assert put_in_place(engine)[4:] == (0, 0, LINEAR), put_in_place(engine)
                assert put_in_place(engine)[:4] < before[0][:4]
                for _ in range(1 + 2 * distributed.rank()):
                    assert torch.equal(read(), sharded)
                if fails:
                    raise KeyError("inside")
        except KeyError:
            assert fails
        assert held_elements(engine) == 0
        assert (put_in_place(engine), shards(engine), engine.fingerprint()) == before
        assert torch.equal(read(), sharded)
    with engine.gathered(enabled=False):
        assert held_elements(engine) == 0
        assert torch.equal(read(), sharded)
    assert (put_in_place(engine), shards(engine), engine.fingerprint()) == before


def layers(_: Path) -> None:
    """ZeRO-3 fetches a transformer layer with one hook and one gather, whatever the architecture."""
    for architecture, name in (
        *(("llama", "LlamaDecoderLayer"), ("qwen2", "Qwen2DecoderLayer")),
        *(("gpt2", "GPT2Block"), ("gpt_neox", "GPTNeoXLayer")),
    ):
        engine = ZeroTrain(policy(architecture), torch.float32, OPTIM, NUM_UPDATES, ZERO3)
        assert [type(layer).__name__ for layer in get_z3_leaf_modules(engine.module)] == [name] * 2


def layerwise(_: Path) -> None:
    """Sampling with layers fetched one by one gives what whole weights give, though ranks end at different steps."""
    engine = ZeroTrain(policy(), torch.float32, OPTIM, NUM_UPDATES, ZERO3)
    before = shards(engine)
    prompts = [sequence.prompt_ids for sequence in SEQUENCES[: 5 - 3 * distributed.rank()]]  # 5 and 2
    keys = [f"key {distributed.rank()} {index}" for index in range(len(prompts))]
    ends = EndTokens(frozenset(range(0, 259, 7)), 0)
    found = []
    for gather in (True, False):
        config = RolloutConfig(max_new_tokens=12, micro_batch_size=2, gather=gather)
        found.append(EmbeddedSampler(engine, config, ends, CPU).sample(prompts, keys))
        assert held_elements(engine) == 0
    assert found[0] == found[1]
    longest = distributed.gather_all(max(len(sequence.response_ids) for sequence in found[0]))
    assert longest[0] != longest[1], longest
    assert shards(engine) == before


def frozen(_: Path) -> None:
    """A frozen engine gives the plain model's scores, for all ranks, and has nothing to train."""
    plain = TokenScorer(load_sequence_classifier(tiny_config("gpt2"), "model", TOKENIZER, 0, new_head=True)).eval()
    again = TokenScorer(load_sequence_classifier(tiny_config("gpt2"), "model", TOKENIZER, 0, new_head=True))
    engine = ZeroFrozen(again, torch.float32, ZERO3)
    batch = collate(SEQUENCES[: 2 + distributed.rank()], 0, CPU)
    with torch.no_grad():
        expected = plain(batch.input_ids)[0]
    scores = engine(batch.input_ids, packing=batch.packing)[0]
    assert_close(
        batch.before_each_response_token(scores), batch.before_each_response_token(expected), atol=1e-6, rtol=0
    )
    assert not scores.requires_grad
    own, once = int(engine.fingerprint()), int(PlainFrozen(plain).fingerprint()) // distributed.world_size()
    assert own == once  # each rank has summed the whole plain model


def checkpointing(_: Path) -> None:
    """Gradient checkpointing changes no gradient, and generation keeps its cache under it."""
    norms = []
    for on in (False, True):
        module = policy("qwen2")
        if on:
            module.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        engine = ZeroTrain(module, torch.float32, OPTIM, NUM_UPDATES, ZERO3)
        for hold in (True, False):
            with engine.gathered(hold):
                engine.backward(token_loss(engine, SEQUENCES[:3]) / 10)
            norms.append(engine.step(int(not hold)).grad_norm)
        sampler = EmbeddedSampler(engine, RolloutConfig(max_new_tokens=4), ENDS, CPU)
        assert len(sampler.sample([(5, 6)], ["a"])) == 1
    assert_close(norms[:2], norms[2:], rtol=1e-6, atol=0)


def bfloat16(_: Path) -> None:
    """bfloat16 keeps float32 masters: a hundred updates too small for bfloat16 add up."""
    module = policy().to(torch.bfloat16)
    before = module.state_dict()["model.lm_head.weight"].float().clone()
    optim = OptimConfig(learning_rate=1e-5, schedule=Schedule.constant, warmup_ratio=0.0)
    engine = ZeroTrain(module, torch.bfloat16, optim, 100, ZERO3)
    for _step in range(100):
        engine.backward(token_loss(engine, SEQUENCES[:2]) / 10)
        engine.step(0)
    state = engine.full_state_dict()
    if distributed.rank() == 0:
        assert state["model.lm_head.weight"].dtype is torch.bfloat16
        moved = (state["model.lm_head.weight"].float() - before).abs().mean().item()
        assert 2e-4 < moved < 2e-3, moved  # 100 steps of 1e-5 are 1e-3 where the gradient keeps its sign


def bfloat16_states(folder: Path) -> None:
    """Weights and moments in bfloat16 are held, saved and read back as such, bit for bit; the average is float32."""
    optim = replace(OPTIM, state_dtype=DType.bfloat16)
    first, second = (ZeroTrain(policy().to(torch.bfloat16), torch.bfloat16, optim, 5, ZERO3, 0.7) for _ in range(2))
    for update in range(2):
        first.backward(token_loss(first, SEQUENCES[:2]) / 10)
        first.step(update)
    some = next(first.module.parameters())
    assert {first._master(some).dtype, first._moment(some, "exp_avg").dtype} == {torch.bfloat16}
    first.save(folder)
    distributed.barrier()
    second.load(folder, 0)
    for engine in (first, second):
        for update in range(2, 4):
            engine.backward(token_loss(engine, SEQUENCES[:2]) / 10)
            assert engine.step(update).grad_norm > 0
    assert shards(first) == shards(second)
    averages = [engine.full_ema(engine.full_state_dict()) for engine in (first, second)]
    assert all(torch.equal(tensor, averages[1][name]) for name, tensor in averages[0].items())
    assert first._ema["model.lm_head.weight"].dtype is torch.float32


def small_groups(folder: Path) -> None:
    """AdamW counts updates once a group of weights, of which there are many here; so it does when it goes on."""
    deepspeed = {"zero_optimization": {**ZERO3["zero_optimization"], "sub_group_size": 1000}}
    first, second = (ZeroTrain(policy(), torch.float32, OPTIM, 5, deepspeed) for _ in range(2))
    assert len(first._engine.optimizer.fp32_partitioned_groups_flat) > 3
    for update in range(4):
        if update == 2:
            first.save(folder)
            distributed.barrier()
            second.load(folder, 0)
        for engine in (first, second) if update >= 2 else (first,):
            engine.backward(token_loss(engine, SEQUENCES[:2]) / 10)
            engine.step(update)
            assert {state["step"].item() for state in engine._optimizer()[0].state.values()} == {update + 1}
    assert shards(first) == shards(second)


def skipping(_: Path) -> None:
    """A gradient that is not finite on one rank skips the update on all; three in a row stop the run."""
    for dtype in (torch.float32, torch.bfloat16):
        optim = replace(OPTIM, max_skipped_updates=3)
        engine = ZeroTrain(policy().to(dtype), dtype, optim, 9, ZERO3)
        broken = float("nan") if distributed.rank() == 0 else 1.0
        before = shards(engine)
        for update in range(2):
            engine.backward(token_loss(engine, SEQUENCES[:2]) * broken)
            assert engine.step(update).skipped
        assert shards(engine) == before
        engine.backward(token_loss(engine, SEQUENCES[:2]) / 10)
        assert not engine.step(2).skipped
        after = shards(engine)
        assert after != before
        for update in range(3, 6):
            engine.backward(token_loss(engine, SEQUENCES[:2]) * broken)
            if update < 5:
                assert engine.step(update).skipped
        with pytest.raises(NonFiniteError, match=r"^3 consecutive updates had gradients that are not finite"):
            engine.step(5)
        assert shards(engine) == after


def frozen_through_training(_: Path) -> None:
    """Reference and reward model are bit-identical before and after a run; what generation gathers is given back."""
    config, record = ppo_config("base"), Record()
    trainer = ppo_trainer(config, ppo_models(), "zero", record)
    engines = (trainer.models.reference, trainer.models.rewards.reward_model.engine)
    before, learnt = [shards(engine) for engine in engines], shards(trainer.models.policy)
    trainer.fit()
    assert [shards(engine) for engine in engines] == before
    assert shards(trainer.models.policy) != learnt


def oracle(_: Path) -> None:
    """The trainers, with DeepSpeed's engines, against the reference in float64, for every set of options."""
    for name in RM_CASES:
        print(name, file=sys.stderr)
        check_rm_case(name, "zero")
    alone = distributed.world_size() == 1  # of which an offload may be had: a few sets will do
    for name in [name for place, name in enumerate(PPO_CASES) if place % 4 == 0 or not alone]:
        print(name, file=sys.stderr)
        check_ppo_case(name, "zero")
    check_ppo_case("base", "zero", architecture="llama")
    check_ppo_case("base", "zero", gather=False)
    check_ppo_case("in-one-pass", "zero", gather=False)


def main() -> None:
    """Run workers one after another; write what this rank prints in each to FOLDER/NAME/rank.txt."""
    folder, *names = sys.argv[1:]
    torch.set_num_threads(1)
    quieten_libraries()
    distributed.initialise(timeout_s=60)
    for name in names:
        own = Path(folder, name)
        own.mkdir(exist_ok=True)
        with redirect_stdout(io.StringIO()) as output:
            globals()[name](own)
        (own / f"{distributed.rank()}.txt").write_text(output.getvalue())
    distributed.shut_down()
    exit_now(0)


if __name__ == "__main__":
    main()
