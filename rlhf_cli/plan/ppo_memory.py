"""The memory map of a PPO run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rlhf_cli.config.objectives import ValueInit
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.config.sections import ModelConfig
from rlhf_cli.config.zero_settings import with_weights_on_host
from rlhf_cli.plan.architecture import Architecture
from rlhf_cli.plan.engine_memory import EngineMemory
from rlhf_cli.plan.memory_map import Item, MemoryMap, Moment, Topology
from rlhf_cli.plan.phases import Lengths, RunMemory, items_of, reordered_weights
from rlhf_cli.plan.trace_memory import Held, Texts, decoding, scoring, training


class PPOMemory(RunMemory):
    """All models of a PPO run in load, rollout, score, update and save."""

    def __init__(self, config: TrainPPOConfig, topology: Topology, lengths: Lengths) -> None:
        super().__init__(config, topology, lengths)
        self.config = config
        trained, frozen = self.sharding(config.deepspeed), self.sharding(config.deepspeed_of_frozen)
        policy = Architecture.of(config.model, "model", scores=False)
        self.policy = EngineMemory("policy", policy, trained, config.optim, ema=config.ppo.ema_decay is not None)
        self.reference = EngineMemory("reference", policy, frozen)

        def scorer(role: str, model: ModelConfig, key: str) -> EngineMemory:
            return EngineMemory(role, Architecture.of(model, key, scores=True), frozen)

        reward, gold = config.reward_model, config.gold_reward_model  # a run may have none
        self.reward_model = [scorer("reward_model", reward, "reward_model")] if config.has_reward_model else []
        self.gold = [scorer("gold_reward_model", gold, "gold_reward_model")] if config.has_gold else []
        from_reward = config.has_reward_model and config.value_model.init is ValueInit.reward_model
        start, key = (reward, "reward_model") if from_reward else (config.model, "model")
        recomputes = config.model.gradient_checkpointing or start.gradient_checkpointing
        value_model = scorer("value_model", replace(start, gradient_checkpointing=recomputes), key)
        self.value_model = replace(value_model, sharding=trained, optim=config.value_optim)
        self.sources: list[tuple[EngineMemory, int]] = []  # with models of their own, and their batch sizes
        for index, source in enumerate(config.reward):
            model = source.own_model(f"reward[{index}]")
            if model is not None:
                engine = scorer(f"reward {source.name}", model, f"reward[{index}].model")
                offloaded = self.sharding(with_weights_on_host(config.deepspeed))
                engine = replace(engine, sharding=offloaded) if source.offload else engine
                self.sources.append((engine, source.batch_size))
        others = (*(engine for engine, _ in self.sources), *self.gold)
        self.engines = (*self.reward_model, self.policy, self.value_model, self.reference, *others)

    def memory_map(self) -> MemoryMap:
        """Return the memory map of the run."""
        moments = [
            *self.loading(num_together=2 + len(self.reward_model)),
            *self._rollout(),
            *self._score(),
            *self._update(),
            *self.saving(),
        ]
        return self.build(moments, self.config.checkpoint.most_kept(self.config.ppo.num_steps))

    def _micro_batches(self, rows: int, size: int, tokens: int | None) -> list[Texts]:
        """Return micro-batches that may be the fullest: with a budget, also one of short texts."""
        new, longest = self.config.rollout.max_new_tokens, self.lengths.longest_prompt
        if tokens is None:
            return [Texts(min(size, rows), longest, new)]
        prompts = dict.fromkeys((longest, self.lengths.shortest_prompt))
        return [Texts(min(rows, max(1, tokens // (prompt + new))), prompt, new) for prompt in prompts]

    def _rollout(self) -> Iterator[Moment]:
        rollout, policy = self.config.rollout, self.policy
        rows, held_out = (
            self.rows_per_rank(size) for size in (self.config.ppo.batch_size, self.config.eval.num_prompts)
        )
        candidates = self._micro_batches(max(rows, held_out), rollout.micro_batch_size, rollout.micro_batch_tokens)
        held = {texts: decoding(policy.architecture, texts, rollout.top_p) for texts in candidates}
        texts = max(held, key=lambda texts: held[texts].total())
        copied = [] if self.topology.on_gpu or not rollout.gather else reordered_weights(policy)
        items = (*policy.gathered(rollout.gather), *copied, *items_of(policy, held[texts]))
        yield self.moment("rollout", f"generating {texts.rows} responses", *items)
        if held_out:
            texts = Texts(min(rollout.micro_batch_size, held_out), self.lengths.longest_prompt, rollout.max_new_tokens)
            for engine in (*self.reward_model, *self.gold):
                yield self._scoring("rollout", engine, [texts], name=f"{engine.role} on held-out prompts")
            for engine, size in self.sources:
                yield self._scoring("rollout", engine, [self._source_texts(engine, min(size, held_out))])

    def _score(self) -> Iterator[Moment]:
        ppo, policy = self.config.ppo, self.policy
        rows = self.rows_per_rank(ppo.batch_size)
        texts = self._micro_batches(rows, ppo.micro_batch_size, ppo.micro_batch_tokens)
        kept: list[Item] = []
        if self._reuses_forward(rows):
            held = max((training(policy.architecture, one).kept for one in texts), key=Held.total)
            gathered = policy.gathered(True)
            yield self.moment("score", "policy, graph kept", *gathered, *items_of(policy, held))
            kept = [*gathered, *items_of(policy, held, " kept for the update")]
        else:
            yield self._scoring("score", policy, texts)
        for engine in (self.reference, self.value_model, *self.reward_model):
            yield self._scoring("score", engine, texts, kept)
        for engine, size in self.sources:
            yield self._scoring("score", engine, [self._source_texts(engine, min(size, rows))], kept)

    def _reuses_forward(self, rows: int) -> bool:
        """Whether the update starts from scoring's forward pass of the policy."""
        ppo = self.config.ppo
        if ppo.micro_batch_tokens is None:
            is_one_pass = rows <= ppo.micro_batch_size
        else:
            shortest = self.lengths.shortest_prompt + self.config.rollout.max_new_tokens
            is_one_pass = rows * shortest <= ppo.micro_batch_tokens
        return is_one_pass and ppo.may_reuse_forward(weights_are_whole=not self.policy.sharding.uses_zero)

    def _source_texts(self, engine: EngineMemory, rows: int) -> Texts:
        """Return a micro-batch for a model with its own tokenizer, cut to its positions."""
        prompt, new = self.lengths.longest_prompt, self.config.rollout.max_new_tokens
        most = getattr(engine.architecture.config, "max_position_embeddings", None) or prompt + new
        return Texts(rows, max(1, min(prompt, most - new)), min(new, most - 1))

    def _scoring(
        self, phase: str, engine: EngineMemory, candidates: list[Texts], kept: list[Item] | None = None, name: str = ""
    ) -> Moment:
        held = max((scoring(engine.architecture, texts) for texts in candidates), key=Held.total)
        gathered = engine.gathered(self.config.rollout.gather)
        return self.moment(phase, name or engine.role, *(kept or ()), *gathered, *items_of(engine, held))

    def _update(self) -> Iterator[Moment]:
        ppo, pretrain = self.config.ppo, self.config.pretrain
        rows = self.rows_per_rank(ppo.minibatch_size)
        texts = self._micro_batches(rows, ppo.micro_batch_size, ppo.micro_batch_tokens)
        num_passes = max(-(-rows // one.rows) for one in texts)
        policy = [training(self.policy.architecture, one) for one in texts]
        num_blocks = 0
        if pretrain.path is not None:
            size = self.rows_per_rank(pretrain.batch_size)
            block = Texts(min(pretrain.micro_batch_size, size), 1, self.lengths.longest_text - 1)
            policy.append(training(replace(self.policy.architecture, packing=False), block))
            num_blocks = -(-size // block.rows)
        yield from self.updating(self.policy, policy, ppo.gather, num_passes + num_blocks)
        value = [training(self.value_model.architecture, one) for one in texts]
        yield from self.updating(self.value_model, value, ppo.gather, num_passes)
