"""PPO: sample responses, score them, estimate advantages, update the policy and the value model."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from rlhf_cli.algo.advantages import gae, token_rewards
from rlhf_cli.algo.kl import adapted_kl_coef, is_clearly_negative, kl_k1, kl_k2, kl_k3
from rlhf_cli.algo.logprobs import token_logprobs
from rlhf_cli.algo.losses import approx_kl, policy_clipped, policy_loss, value_clipped, value_loss
from rlhf_cli.algo.masking import masked_sum, masked_whiten
from rlhf_cli.algo.normalise import Moments
from rlhf_cli.config.errors import RewardError
from rlhf_cli.config.objectives import KLEstimator
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.sampler import batch_indices, shuffled
from rlhf_cli.data.token_batches import TokenBatch, TokenSequence, chunks, collate, flatten
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import StepResult
from rlhf_cli.engine.roofline import Work
from rlhf_cli.rollout import RolloutEngine
from rlhf_cli.train.batch import Episode, PPOBatch, PPOTargets, Rollout, Samples
from rlhf_cli.train.flops import ModelSizes, TokensRead
from rlhf_cli.train.forward import FirstPass, ForwardPasses, HeldPolicy, Models
from rlhf_cli.train.ppo_metrics import batch_metrics, optimizer_metrics, response_figures, source_metrics
from rlhf_cli.train.run_log import RunLog
from rlhf_cli.train.shaping import shaped_scores
from rlhf_cli.train.step_hooks import StepHooks

_KL = {KLEstimator.k1: kl_k1, KLEstimator.k2: kl_k2, KLEstimator.k3: kl_k3}
_PRETRAIN = "loss/pretrain"
_ENOUGH_RESPONSES = 200  # to judge the sign of their mean KL


@dataclass
class PPOState:
    """The trainer's own part of a checkpoint; everything else follows from the configuration."""

    kl_coef: float  # of the next step
    step: int = 0  # steps completed
    moments: dict[str, Moments] = field(default_factory=dict)  # of scores, by reward source
    failures: int = 0  # consecutive steps skipped because a reward source failed

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Self:
        """Rebuild a state from its `asdict`."""
        moments = {name: Moments(**one) for name, one in saved["moments"].items()}
        return cls(**{**saved, "moments": moments})


@dataclass(frozen=True)
class PPOData:
    """The data of a PPO run."""

    prompts: Sequence[Prompt]
    texts: list[TokenSequence]  # blocks for the language-modelling loss; empty without one


@dataclass(frozen=True)
class Monitors:
    """What a run measures besides its training metrics."""

    sizes: ModelSizes | None = None  # to log perf/
    response_text: Callable[[tuple[int, ...]], str] | None = None  # to log sampled responses
    evaluate: Callable[[int], dict[str, float]] | None = None  # on held-out prompts, after a step


class PPOTrainer:
    """One PPO run.

    Each rank samples and scores its share of the prompts. Advantages use the batch of all ranks.
    """

    def __init__(
        self,
        config: TrainPPOConfig,
        passes: ForwardPasses,
        sampler: RolloutEngine,
        data: PPOData,
        hooks: StepHooks,
        report: RunLog,
        monitors: Monitors,
    ) -> None:
        self.config = config
        self.passes = passes
        self.sampler = sampler
        self.data = data
        self.hooks = hooks
        self.report = report
        self.monitors = monitors
        self.device = distributed.device()
        self.state = PPOState(kl_coef=config.ppo.kl_coef)
        self._read = TokensRead()
        self._recent_kl: deque[float] = deque(maxlen=4 * _ENOUGH_RESPONSES)

    @property
    def models(self) -> Models:
        """The models of the run."""
        return self.passes.models

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.state = PPOState.of(saved)

    def fit(self) -> None:
        """Train from the step of `self.state` to ppo.num_steps."""
        while self.state.step < self.config.ppo.num_steps:
            self.hooks.before_step(asdict(self.state))
            with self.saving_on_failure():
                metrics = self._step()
            self.hooks.after_step(asdict(self.state), metrics)
        self.hooks.after_last_step(asdict(self.state))

    def _step(self) -> dict[str, float]:
        """Run one step, and the evaluation if one is due; return the metrics of both."""
        with HeldPolicy(self.models.policy) as held:
            with self.report.time("rollout"):
                held.gather(self.config.rollout.gather)
                samples = self.collect()
            with self.report.time("score"):
                rollout = self.normalise(self.score(samples, held))
            with self.report.time("update"):
                metrics = self.train_on(rollout, held)
        work = self._work(rollout)
        self._log_rollout(rollout)
        self.state = self._next_state(metrics.get("kl"))
        self.report.log(self.state.step, metrics, int(rollout.response_mask.sum()), work)
        self.state.kl_coef *= self.hooks.check(self.state.step, metrics)
        return metrics | self._evaluate()

    def collect(self) -> Samples:
        """Sample a response to each of this rank's prompts of the step."""
        config, step = self.config, self.state.step
        rows = distributed.share(list(range(config.ppo.batch_size)))
        keys = [f"{config.run.seed}/{step}/{row}" for row in rows]
        of_step = batch_indices(len(self.data.prompts), config.ppo.batch_size, step, config.run.seed)
        indices = [of_step[row] for row in rows]
        prompts = [self.data.prompts[index] for index in indices]
        return Samples(prompts, indices, self.sampler.sample([prompt.ids for prompt in prompts], keys))

    @torch.no_grad()
    def score(self, samples: Samples, held: HeldPolicy | None = None) -> Rollout:
        """Compute logprobs, values and scores of this rank's samples; gather those of all ranks.

        held: of the step, if `train_on` follows and may reuse the policy's forward pass. Scores are
        not normalised yet. Raises RewardError, on all ranks, if a reward source fails.
        """
        models, passes, sequences = self.models, self.passes, samples.sequences
        passes.restart_count()
        reuses = held is not None and self._can_reuse(sequences)
        held = held or HeldPolicy(models.policy)
        if reuses:
            own = self._first_pass(sequences, held)
        else:
            own = passes.map_micro_batches(models.policy, sequences, passes.logprobs_and_entropy)
            held.close()
        reference = passes.map_logprobs(models.reference, sequences)
        values = passes.map_micro_batches(
            models.value_model, sequences, lambda part: passes.values(passes.collate(part))
        )
        scores = models.rewards.scores(samples.prompts, sequences, passes.map_micro_batches)
        self._read = TokensRead(score=passes.take_count(num_models=3), reused=reuses)
        episodes = []
        for row, sequence in enumerate(sequences):
            length = len(sequence.response_ids)
            episode = Episode(
                prompt_index=samples.indices[row],
                sequence=sequence,
                ended=passes.ends.ended(sequence),
                logprobs=own[row][0, :length],
                ref_logprobs=reference[row][:length],
                values=values[row][:length],
                entropy=own[row][1, :length],
                source_scores=scores[row],
            )
            episodes.append(episode)
        return Rollout.of(flatten(distributed.gather_all(episodes)), models.rewards.weighted_sum)

    def normalise(self, rollout: Rollout) -> Rollout:
        """Update the moments of the reward sources, and normalise the step's scores with them."""
        weigh = self.models.rewards.weighted_sum
        if rollout.source_scores.isfinite().all():
            self.state.moments = weigh.updated_moments(self.state.moments, rollout.source_scores)
            return replace(rollout, scores=weigh(rollout.source_scores, self.state.moments))
        return rollout  # the step will be skipped

    def train_on(self, rollout: Rollout, held: HeldPolicy | None = None) -> dict[str, float]:
        """Estimate advantages and update both models; return the step's metrics.

        The step is skipped if a reward source failed, or if a number of the rollout is not finite,
        which would spoil the advantages of all responses.
        """
        if self.models.rewards.failed:
            return self._skip_failed_rewards()
        if not_finite := rollout.not_finite():
            return self._skip_not_finite(rollout, not_finite)
        batch = self.estimate(rollout)
        losses = self.update(batch, held)
        self._warn_of_negative_kl(rollout)
        weigh = self.models.rewards.weighted_sum
        sources = source_metrics(rollout, weigh, self.state.moments) if self.config.reward else {}
        return {**batch_metrics(batch, self.config.ppo), **sources, "kl_coef": self.state.kl_coef, **losses}

    def estimate(self, rollout: Rollout) -> PPOBatch:
        """Compute rewards, advantages and returns, all [B, T], from a scored rollout."""
        ppo, mask = self.config.ppo, rollout.response_mask
        kl = _KL[ppo.kl_estimator](rollout.logprobs, rollout.ref_logprobs)
        rewards = token_rewards(shaped_scores(rollout, ppo), kl, mask, self.state.kl_coef)
        if ppo.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, rollout.values, mask, ppo.gamma, ppo.lam)
        return PPOBatch(rollout, rewards, masked_whiten(advantages, mask), returns)

    def update(self, batch: PPOBatch, held: HeldPolicy | None = None) -> dict[str, float]:
        """Run num_epochs epochs of clipped updates; return means over the tokens of all ranks."""
        ppo, per_step, gather = self.config.ppo, self.config.ppo.updates_per_step, self.config.ppo.gather
        policy_step = self.state.step - ppo.value_warmup_steps
        held = held or HeldPolicy(self.models.policy)
        metrics: dict[str, float] = {}
        totals: Counter[str] = Counter()
        num_tokens = num_skipped = num_updates = 0
        self.passes.restart_count()
        for minibatch in self._minibatches():
            tokens = int(batch.rollout.response_mask[minibatch].sum())
            sums: dict[str, float] = {}
            results: dict[str, StepResult] = {}
            if policy_step >= 0:
                update = policy_step * per_step + num_updates
                with self.models.policy.gathered(gather):
                    sums |= self._policy_gradients(batch, minibatch, tokens, held)
                    totals.update(self._pretrain(update))
                held.close()
                results["policy"] = self.models.policy.step(update)
            with self.models.value_model.gathered(gather):
                sums |= self._accumulate(batch, minibatch, tokens, self._value_backward)
            results["value"] = self.models.value_model.step(self.state.step * per_step + num_updates)
            totals.update(sums)
            num_tokens += tokens
            num_updates += 1
            num_skipped += sum(result.skipped for result in results.values())
            metrics = optimizer_metrics(results)
            if ppo.early_stop_kl is not None and sums.get("approx_kl", 0.0) / tokens > ppo.early_stop_kl:
                break
        self._read.update = self.passes.take_count(num_models=1 + (policy_step >= 0))
        self._read.num_epochs = num_updates * ppo.minibatch_size / ppo.batch_size
        means = {name: total / (num_updates if name == _PRETRAIN else num_tokens) for name, total in totals.items()}
        return {**means, **metrics, "num_updates": float(num_updates), "skipped_updates": float(num_skipped)}

    def _minibatches(self) -> Iterator[list[int]]:
        """Yield minibatches of rows: each row once an epoch, ordered by seed, step and epoch."""
        ppo = self.config.ppo
        for epoch in range(ppo.num_epochs):
            order = shuffled(ppo.batch_size, f"{self.config.run.seed}/minibatches/{self.state.step}/{epoch}")
            yield from chunks(order, ppo.minibatch_size)

    def _can_reuse(self, sequences: list[TokenSequence]) -> bool:
        """Whether the update may reuse scoring's forward pass: same weights, same rows.

        Each rank must fit its rows of the step in one micro-batch, and hold full weights until the
        backward pass.
        """
        ppo = self.config.ppo
        if self.state.step < ppo.value_warmup_steps or not ppo.may_reuse_forward(self.models.policy.has_full_weights):
            return False
        return not distributed.any_rank(len(self.passes.micro_batches(sequences, in_step=False)) > 1)

    def _first_pass(self, sequences: list[TokenSequence], held: HeldPolicy) -> list[Tensor]:
        """Run the policy and keep its graph; return logprobs and entropy, [2, T] per sequence."""
        held.gather()
        [(indices, _)] = self.passes.micro_batches(sequences, in_step=False)
        tokens = self.passes.collate([sequences[index] for index in indices])
        with torch.enable_grad():
            outputs = self.passes.policy_outputs(tokens)
        start = distributed.rank() * len(sequences)
        held.keep(FirstPass([start + index for index in indices], tokens, self.passes.num_read, outputs))
        found = dict(zip(indices, torch.stack(outputs, dim=1).detach().cpu(), strict=True))
        return [found[index] for index in range(len(sequences))]

    def _policy_gradients(
        self, batch: PPOBatch, minibatch: list[int], num_tokens: int, held: HeldPolicy
    ) -> dict[str, float]:
        """Accumulate the policy's gradients of a minibatch, from the kept pass if there is one."""
        first = held.take_first_pass()
        if first is None:
            return self._accumulate(batch, minibatch, num_tokens, self._policy_backward)
        self.passes.add_count(first.num_read)
        part = batch.rows(first.rows, first.tokens.response_mask, self.device)
        return _over_ranks(self._policy_backward(part, first.tokens, num_tokens, first.outputs))

    def _accumulate(
        self,
        batch: PPOBatch,
        minibatch: list[int],
        num_tokens: int,
        backward: Callable[[PPOTargets, TokenBatch, int], dict[str, Tensor]],
    ) -> dict[str, float]:
        """Accumulate one model's gradients of a minibatch; return sums over its tokens."""
        sums: dict[str, Tensor] = {}
        share = distributed.balanced_share(minibatch, [len(batch.rollout.sequences[row]) for row in minibatch])
        for indices, real in self.passes.micro_batches([batch.rollout.sequences[row] for row in share]):
            rows = [share[index] for index in indices]
            tokens = self.passes.collate([batch.rollout.sequences[row] for row in rows])
            mask = tokens.response_mask if real else torch.zeros_like(tokens.response_mask)
            own = backward(batch.rows(rows, mask, self.device), tokens, num_tokens)
            sums = {name: sums.get(name, 0) + value for name, value in own.items()}
        return _over_ranks(sums)

    def _policy_backward(
        self, part: PPOTargets, tokens: TokenBatch, num_tokens: int, outputs: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Accumulate the policy's gradients of some rows; return sums over their tokens."""
        loss, sums = self.policy_objective(part, tokens, outputs)
        self.models.policy.backward(loss / num_tokens)
        return sums

    def policy_objective(
        self, part: PPOTargets, tokens: TokenBatch, outputs: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the policy's loss on some rows and its statistics, all summed over their tokens.

        outputs: the policy's logprobs and entropy of these rows, [B, T] each, if computed already.
        """
        ppo, mask = self.config.ppo, part.mask
        high = ppo.cliprange if ppo.cliprange_high is None else ppo.cliprange_high
        logprobs, entropy = outputs or self.passes.policy_outputs(tokens)
        surrogate = (logprobs, part.logprobs, part.advantages, ppo.cliprange, high, ppo.dual_clip)
        loss = masked_sum(policy_loss(*surrogate), mask)
        sums = {"loss/policy": loss.detach()}
        if ppo.kl_loss_coef:
            kl = masked_sum(_KL[ppo.kl_loss_estimator](logprobs, part.ref_logprobs), mask)
            loss = loss + ppo.kl_loss_coef * kl
            sums["loss/kl"] = kl.detach()
        if ppo.entropy_coef:
            loss = loss - ppo.entropy_coef * masked_sum(entropy, mask)
        with torch.no_grad():
            sums["approx_kl"] = masked_sum(approx_kl(logprobs, part.logprobs), mask)
            sums["clipfrac/policy"] = masked_sum(policy_clipped(*surrogate), mask)
        return loss, sums

    def _value_backward(self, part: PPOTargets, tokens: TokenBatch, num_tokens: int) -> dict[str, Tensor]:
        """Accumulate the value model's gradients of some rows; return sums over their tokens."""
        errors = (self.passes.values(tokens), part.values, part.returns, self.config.ppo.cliprange_value)
        loss = masked_sum(value_loss(*errors), part.mask)
        self.models.value_model.backward(loss / num_tokens)
        with torch.no_grad():
            clipped = masked_sum(value_clipped(*errors), part.mask)
        return {"loss/value": loss.detach(), "clipfrac/value": clipped}

    def _pretrain(self, update: int) -> dict[str, float]:
        """Accumulate the gradients of the language-modelling loss of an update; return its mean."""
        pretrain = self.config.pretrain
        if not self.data.texts:
            return {}
        indices = batch_indices(len(self.data.texts), pretrain.batch_size, update, self.config.run.seed)
        blocks = [self.data.texts[index] for index in indices]
        num_tokens = sum(len(block.response_ids) for block in blocks)
        total = torch.zeros((), device=self.device)
        for part in chunks(distributed.share(blocks), pretrain.micro_batch_size):
            tokens = collate(part, self.passes.ends.pad_id, self.device)  # not counted in perf/
            logits = self.passes.logits(self.models.policy, tokens)
            loss = -token_logprobs(logits, tokens.real_response_ids(), temperature=1.0).sum() / num_tokens
            self.models.policy.backward(pretrain.coef * loss)
            total += loss.detach()
        return {_PRETRAIN: float(distributed.global_sum(total))}

    def _evaluate(self) -> dict[str, float]:
        evaluate, every, step = self.monitors.evaluate, self.config.eval.every_steps, self.state.step
        return evaluate(step) if evaluate is not None and every and step % every == 0 else {}

    def _next_state(self, kl: float | None) -> PPOState:
        """Return the state after a step whose mean KL was `kl`; None for a skipped step."""
        ppo, kl_coef = self.config.ppo, self.state.kl_coef
        if kl is not None and ppo.kl_target is not None and self.state.step >= ppo.value_warmup_steps:
            kl_coef = adapted_kl_coef(kl_coef, kl, ppo.kl_target, ppo.batch_size, ppo.kl_horizon)
        failures = self.state.failures if self.models.rewards.failed else 0
        return PPOState(kl_coef, self.state.step + 1, self.state.moments, failures)

    @contextmanager
    def saving_on_failure(self) -> Iterator[None]:
        """If a reward source fails in the body, save a checkpoint of the last completed step."""
        try:
            yield
        except RewardError as error:
            self.hooks.give_up(asdict(replace(self.state, failures=0)), error)

    def _skip_failed_rewards(self) -> dict[str, float]:
        """Warn that the step is skipped; raise RewardError after too many consecutive failures."""
        rewards = self.models.rewards
        self.state.failures += 1
        for source in rewards.sources:
            error = rewards.failed.get(source.name)
            if error is not None and self.state.failures >= source.max_failures:
                raise RewardError(f"{error}; {self.state.failures} consecutive steps were skipped for such failures")
        first = next(iter(rewards.failed.values()))
        self.report.warn(f"step {self.state.step + 1} is skipped: {first}")
        return {"failed_rewards": float(len(rewards.failed))}

    def _skip_not_finite(self, rollout: Rollout, not_finite: dict[int, str]) -> dict[str, float]:
        """Warn that the step is skipped, and count its updates as skipped."""
        named = [f"{rollout.prompt_indices[row]} ({what})" for row, what in list(not_finite.items())[:8]]
        what = f"these prompts have numbers that are not finite: {', '.join(named)}"
        self.report.warn(f"step {self.state.step + 1} is skipped: {what}")
        return {
            "nonfinite_responses": float(len(not_finite)),
            "skipped_updates": float(2 * self.config.ppo.updates_per_step),
        }

    def _warn_of_negative_kl(self, rollout: Rollout) -> None:
        self._recent_kl.extend(rollout.kl().tolist())
        if len(self._recent_kl) >= _ENOUGH_RESPONSES and is_clearly_negative(torch.tensor(self._recent_kl)):
            self.report.warn_once(
                "the mean KL is clearly negative: responses are not sampled from the policy that scores them"
            )

    def _log_rollout(self, rollout: Rollout) -> None:
        """Log figures of all responses, and one response as text: another row each step."""
        if self.monitors.response_text is None:
            return
        step = self.state.step + 1
        row, figures = step % len(rollout.sequences), response_figures(rollout)
        sample = {
            "prompt": self.data.prompts[rollout.prompt_indices[row]].text,
            "response": self.monitors.response_text(rollout.sequences[row].response_ids),
            "score": figures["scores"][row],
            "kl": figures["kl"][row],
        }
        self.report.rollout(step, {**figures, "sample": sample})

    def _work(self, rollout: Rollout) -> dict[str, Work]:
        if self.monitors.sizes is None:
            return {}
        trains_policy = self.state.step >= self.config.ppo.value_warmup_steps
        return self.monitors.sizes.work(rollout.sequences, self._read, trains_policy)


def _over_ranks(sums: dict[str, Tensor]) -> dict[str, float]:
    total = distributed.global_sum(torch.stack(list(sums.values()))).tolist()
    return dict(zip(sums, total, strict=True))
