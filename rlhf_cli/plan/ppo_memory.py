"""The moments of a PPO run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rlhf_cli.config.objectives import ValueInit
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.config.zero_settings import ZeroSettings, with_weights_on_host
from rlhf_cli.plan.engine_memory import Engine, Sharding
from rlhf_cli.plan.memory_map import Item, MemoryMap, Moment, Place
from rlhf_cli.plan.phases import (
    Lengths,
    Run,
    items_of,
    laid_out,
    largest_of,
    largest_parameter,
    shape_of,
    training_moments,
)
from rlhf_cli.plan.trace_memory import Texts, decoding, scoring, training


class PPORun(Run):
    """The four models in load, rollout, score, update and save."""

    def __init__(self, config: TrainPPOConfig, place: Place, lengths: Lengths) -> None:
        super().__init__(config, place, lengths)
        self.config = config
        model, reward = config.model, config.reward_model
        shape = shape_of(model, "model")
        from_reward = config.value_model.init is ValueInit.reward_model
        policy = self.engine("policy", model, shape, scores=False)
        checkpointing = model.gradient_checkpointing
        frozen = replace(self.sharding, zero=ZeroSettings.of(config.deepspeed_of_frozen))
        self.reference = replace(policy, role="reference", sharding=frozen)
        self.policy = replace(
            policy,
            architecture=replace(policy.architecture, checkpointing=checkpointing),
            optim=config.optim,
            ema=config.ppo.ema_decay is not None,
        )
        self.reward_model: list[Engine] = []  # one at most
        value = self.engine("value_model", model, shape, scores=True)
        if config.has_reward_model:
            scorer = self.engine("reward_model", reward, shape_of(reward, "reward_model"), scores=True)
            self.reward_model = [replace(scorer, sharding=frozen)]
            value = scorer if from_reward else value
        recomputes = checkpointing or (from_reward and reward.gradient_checkpointing)
        self.value_model = replace(
            value,
            role="value_model",
            architecture=replace(value.architecture, checkpointing=recomputes),
            optim=config.value_optim,
        )
        self.own = {engine.role: (engine, source.batch_size) for engine, source in self._own(frozen)}
        self.gold: list[Engine] = []  # one at most
        if config.has_gold:
            gold = config.gold_reward_model
            judge = self.engine("gold_reward_model", gold, shape_of(gold, "gold_reward_model"), scores=True)
            self.gold = [replace(judge, sharding=frozen)]
        own = [engine for engine, _ in self.own.values()]
        engines = (self.policy, self.reference, *self.reward_model, self.value_model, *own, *self.gold)
        self.base = [item for engine in engines for item in engine.resident()]
        self.host = [item for engine in engines for item in engine.on_host()]

    def _own(self, frozen: Sharding) -> Iterator[tuple[Engine, RewardSourceConfig]]:
        """Engines of models with tokenizers of their own; encoders read no packed texts."""
        for place, source in enumerate(self.config.reward):
            key = f"reward[{place}]"
            model = source.own_model(key)
            if model is not None:
                own = self.engine(f"reward {source.name}", model, shape_of(model, f"{key}.model"), scores=True)
                offloaded = replace(frozen, zero=ZeroSettings.of(with_weights_on_host(self.config.deepspeed)))
                yield replace(own, sharding=offloaded if source.offload else frozen), source

    def map(self) -> MemoryMap:
        """Return all moments."""
        order = [(one, False) for one in self.reward_model]
        order += [(self.policy, True), (self.value_model, True), (self.reference, False)]
        order += [(judge, False) for judge in (*(engine for engine, _ in self.own.values()), *self.gold)]
        moments = [
            *self.loading(order, together=2 + len(self.reward_model)),
            *self._rollout(),
            *self._score(),
            *self._update(),
            *self._save(),
        ]
        kept = self.config.checkpoint.most_kept(self.config.ppo.num_steps)
        return self.mapped(moments, (self.policy, self.value_model), kept)

    def _moment(self, phase: str, name: str, *items: Item, host: list[Item] | None = None) -> Moment:
        return Moment(phase, name, (*self.base, *items), (*self.host, *(host or ())))

    def _rollout(self) -> Iterator[Moment]:
        rollout, lengths = self.config.rollout, self.lengths
        own = self.config.ppo.batch_size // self.place.num_ranks
        asked = -(-self.config.eval.num_prompts // self.place.num_ranks)
        prompts = {lengths.longest_prompt: rollout.micro_batch_size}
        if rollout.micro_batch_tokens is not None:
            both = (lengths.longest_prompt, lengths.shortest_prompt)
            prompts = {one: max(1, rollout.micro_batch_tokens // (one + rollout.max_new_tokens)) for one in both}
        groups = [Texts(min(most, max(own, asked)), one, rollout.max_new_tokens) for one, most in prompts.items()]
        texts = max(groups, key=lambda one: decoding(self.policy.architecture, one, rollout.top_p).total)
        held = self.policy.gathered(rollout.gather)
        copied = [] if self.place.on_gpu or not rollout.gather else laid_out(self.policy)
        drawn = items_of("policy", decoding(self.policy.architecture, texts, rollout.top_p))
        yield self._moment("rollout", f"{texts.rows} prompts answered", *held, *copied, *drawn)
        if asked:
            texts = Texts(min(rollout.micro_batch_size, asked), lengths.longest_prompt, rollout.max_new_tokens)
            for judge in (*self.reward_model, *self.gold):
                read = items_of(judge.role, scoring(judge.architecture, texts))
                held = judge.gathered(rollout.gather)
                yield self._moment("rollout", f"held-out answers scored by {judge.role}", *held, *read)
            for judge, size in self.own.values():
                yield self._asked(judge, min(size, asked), "rollout", [])

    def _texts(self, rows_a_rank: int) -> list[Texts]:
        """The micro-batches that may hold most: of the longest texts and, by a budget of tokens, of the shortest."""
        ppo, new = self.config.ppo, self.config.rollout.max_new_tokens
        longest, shortest = self.lengths.longest_prompt, self.lengths.shortest_prompt
        if ppo.micro_batch_tokens is None:
            return [Texts(min(ppo.micro_batch_size, rows_a_rank), longest, new)]
        rows = {prompt: max(1, ppo.micro_batch_tokens // (prompt + new)) for prompt in (longest, shortest)}
        return [Texts(min(rows_a_rank, most), prompt, new) for prompt, most in rows.items()]

    @property
    def reuses(self) -> bool:
        """Whether the update goes on from scoring's pass of the policy."""
        ppo, own = self.config.ppo, self.config.ppo.batch_size // self.place.num_ranks
        if not ppo.may_reuse_forward(weights_are_whole=not self.sharding.uses_zero):
            return False
        if ppo.micro_batch_tokens is None:
            return own <= ppo.micro_batch_size
        return own * (self.lengths.shortest_prompt + self.config.rollout.max_new_tokens) <= ppo.micro_batch_tokens

    def _score(self) -> Iterator[Moment]:
        gather = self.config.rollout.gather
        texts = self._texts(self.config.ppo.batch_size // self.place.num_ranks)
        kept: list[Item] = []
        if self.reuses:
            passes = max((training(self.policy.architecture, one) for one in texts), key=lambda one: one.kept.total)
            held = self.policy.gathered(True)
            yield self._moment("score", "policy, with its graph", *held, *items_of("policy", passes.kept))
            kept = [*held, *items_of("policy", passes.kept, " kept for the update")]
        else:
            yield self._scored(self.policy, texts, gather, [])
        for engine in (self.reference, self.value_model, *self.reward_model):
            yield self._scored(engine, texts, gather, kept)
        for engine, size in self.own.values():
            yield self._asked(engine, min(size, self.config.ppo.batch_size // self.place.num_ranks), "score", kept)

    def _asked(self, engine: Engine, rows: int, phase: str, kept: list[Item]) -> Moment:
        """A model with a tokenizer of its own; its texts are taken to have as many tokens as the policy's.

        They are cut to the model's positions.
        """
        new = self.config.rollout.max_new_tokens
        most = getattr(engine.architecture.config, "max_position_embeddings", None) or self.lengths.longest_prompt + new
        texts = Texts(rows, max(1, min(self.lengths.longest_prompt, most - new)), min(new, most - 1))
        read = items_of(engine.role, scoring(engine.architecture, texts))
        return self._moment(phase, engine.role, *kept, *engine.gathered(self.config.rollout.gather), *read)

    def _scored(self, engine: Engine, texts: list[Texts], gather: bool, kept: list[Item]) -> Moment:
        read = largest_of([scoring(engine.architecture, one) for one in texts])
        return self._moment("score", engine.role, *kept, *engine.gathered(gather), *items_of(engine.role, read))

    def _update(self) -> Iterator[Moment]:
        ppo, pretrain = self.config.ppo, self.config.pretrain
        own = ppo.minibatch_size // self.place.num_ranks
        texts = self._texts(own)
        policy = [training(self.policy.architecture, one) for one in texts]
        num_blocks = 0
        if pretrain.path is not None:
            rows = min(pretrain.micro_batch_size, pretrain.batch_size // self.place.num_ranks)
            block = Texts(rows, 1, self.lengths.longest_text - 1)
            policy.append(training(replace(self.policy.architecture, packing=False), block))
            num_blocks = -(-pretrain.batch_size // (rows * self.place.num_ranks))
        value = [training(self.value_model.architecture, one) for one in texts]
        num_passes = max(-(-own // one.rows) for one in texts)
        for engine, passes, num in (
            (self.policy, policy, num_passes + num_blocks),
            (self.value_model, value, num_passes),
        ):
            held = engine.gathered(ppo.gather)
            yield from training_moments(engine, passes, held, self._moment, num)
            yield self._moment("update", f"{engine.role}, optimizer", *engine.gradients(num), *engine.step(num))

    def _save(self) -> Iterator[Moment]:
        trained = (self.policy, self.value_model)
        written = self.written(sum(one.saved for one in trained))
        yield self._moment("save", "checkpoint", host=[Item("", "a file being written", written)])
        states = tuple(Item(one.role, "exported weights", one.exported) for one in trained)
        yield Moment("save", "export", (*self.base, *largest_parameter(trained)), tuple(self.host), states)
