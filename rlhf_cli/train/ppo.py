"""PPO: sample responses, score them, estimate advantages, update the policy and the value model."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from rlhf_cli.algo.advantages import gae, token_rewards
from rlhf_cli.algo.kl import adapted_kl_coef, clearly_negative, kl_k1, kl_k2, kl_k3
from rlhf_cli.algo.logprobs import token_logprobs
from rlhf_cli.algo.losses import approx_kl, policy_clipped, policy_loss, value_clipped, value_loss
from rlhf_cli.algo.masking import masked_sum, masked_whiten
from rlhf_cli.algo.normalise import Moments
from rlhf_cli.config.errors import RewardError
from rlhf_cli.config.objectives import KLEstimator
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.sampler import batch_indices, shuffled
from rlhf_cli.data.token_batches import (
    EndTokens,
    TokenBatch,
    TokenSequence,
    chunks,
    collate,
    flatten,
)
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import StepResult
from rlhf_cli.report.reporter import Reporter, Work
from rlhf_cli.rollout import RolloutEngine
from rlhf_cli.train.batch import (
    Episode,
    PPOBatch,
    PPOTargets,
    Rollout,
    per_response,
    shaped_scores,
    source_means,
    summary,
)
from rlhf_cli.train.flops import Read, Sizes
from rlhf_cli.train.forward import ForwardPasses, Models
from rlhf_cli.train.step_hooks import StepHooks

_KL = {KLEstimator.k1: kl_k1, KLEstimator.k2: kl_k2, KLEstimator.k3: kl_k3}
_PRETRAIN = "loss/pretrain"
_ENOUGH_RESPONSES = 200  # for a verdict on the sign of their mean KL


@dataclass
class PPOState:
    """What a checkpoint keeps of the trainer itself; everything else follows from the configuration."""

    kl_coef: float  # of the next step
    step: int = 0  # steps done
    moments: dict[str, Moments] = field(default_factory=dict)  # by which the scores of sources are normalised
    failures: int = 0  # steps in a row that were skipped because a source had failed

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Self:
        """Return what `asdict` of a state gave."""
        moments = {name: Moments(**one) for name, one in saved.get("moments", {}).items()}
        return cls(**{**saved, "moments": moments})


@dataclass(frozen=True)
class PPOData:
    """What a PPO run reads."""

    prompts: Sequence[Prompt]
    texts: list[TokenSequence]  # blocks for the language-modelling loss; empty: none


@dataclass(frozen=True)
class FirstPass:
    """The policy's forward pass of the scoring with its graph, for the first update to go on from."""

    rows: list[int]  # of the batch of all ranks
    tokens: TokenBatch  # these rows
    num_read: int  # tokens that the pass has read
    view: tuple[Tensor, Tensor]  # the policy's logprobs and entropy at each response token, [B, T] each


class PPOTrainer:
    """One PPO run. Every rank samples and scores its share of the prompts; estimates are made on the whole batch."""

    def __init__(
        self,
        config: TrainPPOConfig,
        models: Models,
        sampler: RolloutEngine,
        ends: EndTokens,
        data: PPOData,
        boundary: StepHooks,
        report: Reporter,
    ) -> None:
        self.config = config
        self.models = models
        self.sampler = sampler
        self.ends = ends
        self.data = data
        self.boundary = boundary
        self.report = report
        self.sizes: Sizes | None = None  # set where perf/ is to be logged
        self.response_text: Callable[[tuple[int, ...]], str] | None = None  # set where responses are to be told
        self.evaluate: Callable[[int], dict[str, float]] | None = None  # set where held-out prompts are to be asked
        self.views = ForwardPasses(config, models, ends)
        self._read = Read()
        self._first_pass: FirstPass | None = None
        self._hold = ExitStack()  # of the policy's whole weights, from the rollout to its last pass on these weights
        self.device = distributed.device()
        self.state = PPOState(kl_coef=config.ppo.kl_coef)
        self._recent_kl: deque[float] = deque(maxlen=4 * _ENOUGH_RESPONSES)

    def fit(self) -> None:
        """Run the loop from the step of `self.state` to ppo.num_steps."""
        while self.state.step < self.config.ppo.num_steps:
            self.boundary.before_step(asdict(self.state))
            with self.saving_on_failure():
                metrics = self._step()
            self.boundary.after_step(asdict(self.state), metrics)
        self.boundary.after_last_step(asdict(self.state))

    @contextmanager
    def saving_on_failure(self) -> Iterator[None]:
        """Where a source fails for good inside, on all ranks, save what the whole steps have left, and raise."""
        try:
            yield
        except RewardError as error:
            self.boundary.give_up(asdict(replace(self.state, failures=0)), error)

    def _step(self) -> dict[str, float]:
        """Go through one turn of the loop, and the evaluation that may be due after it; return its metrics."""
        with ExitStack() as self._hold:
            with self.report.time("rollout"):
                self._hold.enter_context(self.models.policy.gathered(self.config.rollout.gather))
                sequences = self.collect()
            with self.report.time("score"):
                rollout = self.normalised(self.score(sequences, for_update=True))
            with self.report.time("update"):
                metrics = self.learn(rollout)
        work = self._work(rollout)
        self._tell(rollout)
        self.state = self._next_state(metrics.get("kl"))
        self.report.log(self.state.step, metrics, int(rollout.response_mask.sum()), work)
        self.state.kl_coef *= self.boundary.look(self.state.step, metrics)
        every = self.config.eval.every_steps
        if self.evaluate is not None and every and self.state.step % every == 0:
            metrics |= self.evaluate(self.state.step)
        return metrics

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """Estimate advantages and update both models; return the step's metrics.

        A rollout with a score, a logprob or a value that is not finite would spoil every advantage of the step: it is
        told and counted, and nothing is learnt from it.
        """
        if self.models.judging.failed:
            return self._skip_failed()
        broken = rollout.not_finite()
        if broken:
            self._first_pass = None
            indices = self._prompt_indices()
            of = ", ".join(f"{indices[place]} ({what})" for place, what in list(broken.items())[:8])
            self.report.warn(f"step {self.state.step + 1} is skipped: not finite for prompts {of}")
            return {
                "nonfinite_responses": float(len(broken)),
                "skipped_updates": float(2 * self.config.ppo.updates_per_step),
            }
        batch = self.estimate(rollout)
        losses = self.update(batch)
        self._look_for_negative_kl(rollout)
        weigh = self.models.judging.weighted_sum
        sources = source_means(rollout, weigh, self.state.moments) if self.config.reward else {}
        return {**summary(batch, self.config.ppo), **sources, "kl_coef": self.state.kl_coef, **losses}

    def normalised(self, rollout: Rollout) -> Rollout:
        """Take a step's scores into the moments of the sources that are normalised, and normalise them."""
        weigh = self.models.judging.weighted_sum
        if rollout.source_scores.isfinite().all():
            self.state.moments = weigh.updated_moments(self.state.moments, rollout.source_scores)
            return replace(rollout, scores=weigh(rollout.source_scores, self.state.moments))
        return rollout  # nothing will be learnt from it

    def _skip_failed(self) -> dict[str, float]:
        """Say which sources failed; raise RewardError where they have done so for too many steps in a row."""
        self._first_pass = None
        judging = self.models.judging
        self.state.failures += 1
        for source in judging.sources:
            error = judging.failed.get(source.name)
            if error is not None and self.state.failures >= source.max_failures:
                raise RewardError(f"{error}; {self.state.failures} steps in a row were skipped for such failures")
        first = next(iter(judging.failed.values()))
        self.report.warn(f"step {self.state.step + 1} is skipped: {first}")
        return {"failed_rewards": float(len(judging.failed))}

    def _tell(self, rollout: Rollout) -> None:
        """Write down the responses of the step as figures, and one of them, another one each time, as text."""
        if self.response_text is None:
            return
        step = self.state.step + 1
        place, figures = step % len(rollout.sequences), per_response(rollout)
        sample = {
            "prompt": self.data.prompts[self._prompt_indices()[place]].text,
            "response": self.response_text(rollout.sequences[place].response_ids),
            "score": figures["scores"][place],
            "kl": figures["kl"][place],
        }
        self.report.rollout(step, {**figures, "sample": sample})

    def _work(self, rollout: Rollout) -> dict[str, Work]:
        if self.sizes is None:
            return {}
        ppo = self.config.ppo
        return self.sizes.work(rollout.sequences, self._read, self.state.step >= ppo.value_warmup_steps)

    def _look_for_negative_kl(self, rollout: Rollout) -> None:
        self._recent_kl.extend(rollout.kl().tolist())
        if len(self._recent_kl) >= _ENOUGH_RESPONSES and clearly_negative(torch.tensor(self._recent_kl)):
            self.report.warn_once("the KL is clearly negative: responses are not drawn from the policy that is scored")

    def _next_state(self, kl: float | None) -> PPOState:
        ppo, kl_coef = self.config.ppo, self.state.kl_coef
        if kl is not None and ppo.kl_target is not None and self.state.step >= ppo.value_warmup_steps:
            kl_coef = adapted_kl_coef(kl_coef, kl, ppo.kl_target, ppo.batch_size, ppo.kl_horizon)
        failures = self.state.failures if self.models.judging.failed else 0
        return PPOState(kl_coef, self.state.step + 1, self.state.moments, failures)

    def collect(self) -> list[TokenSequence]:
        """Sample a response to each of this rank's prompts of the step."""
        places = distributed.share(list(range(self.config.ppo.batch_size)))
        keys = [f"{self.config.run.seed}/{self.state.step}/{place}" for place in places]
        return self.sampler.sample([prompt.ids for prompt in self._own_prompts()], keys)

    def _own_prompts(self) -> list[Prompt]:
        """This rank's prompts of the step."""
        return [self.data.prompts[index] for index in distributed.share(self._prompt_indices())]

    def _prompt_indices(self) -> list[int]:
        """The prompts of the step, of all ranks."""
        size, seed = self.config.ppo.batch_size, self.config.run.seed
        return batch_indices(len(self.data.prompts), size, self.state.step, seed)

    @torch.no_grad()
    def score(
        self, sequences: list[TokenSequence], prompts: list[Prompt] | None = None, for_update: bool = False
    ) -> Rollout:
        """Compute what models and sources say of this rank's responses, one after the other; gather that of all ranks.

        prompts: of the responses; unset: those of the step. for_update: `learn` comes next, and may go on from the
        policy's forward pass. Scores are not normalised. Raises RewardError, on all ranks, where a source fails.
        """
        models, views = self.models, self.views
        views.num_read = 0
        if for_update and self._can_reuse(sequences):
            own = self._first_view(sequences)
        else:
            own = views.map_micro_batches(models.policy, sequences, views.logprobs_and_entropy)
            self._hold.close()
        reference = views.map_micro_batches(
            models.reference, sequences, lambda part: views.logprobs(models.reference, part)
        )
        values = views.map_micro_batches(models.value_model, sequences, lambda part: views.values(views.collate(part)))
        asked = self._own_prompts() if prompts is None else prompts
        scores = models.judging.scores(asked, sequences, views.map_micro_batches)
        self._read = Read(score=views.take_read(num_models=3), reused=self._first_pass is not None)
        episodes = []
        for row, sequence in enumerate(sequences):
            length = len(sequence.response_ids)
            episode = Episode(
                sequence=sequence,
                ended=self.ends.ended(sequence),
                logprobs=own[row][0, :length],
                ref_logprobs=reference[row][:length],
                values=values[row][:length],
                entropy=own[row][1, :length],
                source_scores=scores[row],
            )
            episodes.append(episode)
        return Rollout.of(flatten(distributed.gather_all(episodes)), models.judging.weighted_sum)

    def _can_reuse(self, sequences: list[TokenSequence]) -> bool:
        """Say whether scoring's forward pass of the policy is also the update's first: same weights, same rows.

        Every rank then has its rows of the step in one micro-batch, and its whole weights until the backward pass.
        """
        ppo = self.config.ppo
        if self.state.step < ppo.value_warmup_steps or not ppo.may_reuse_forward(self.models.policy.has_full_weights):
            return False
        return not distributed.any_rank(len(self.views.micro_batches(sequences, in_step=False)) > 1)

    def _first_view(self, sequences: list[TokenSequence]) -> list[Tensor]:
        """Keep the policy's forward pass for the update; return its logprobs and entropy, [2, T] for each sequence."""
        self._hold.enter_context(self.models.policy.gathered())
        [(places, _)] = self.views.micro_batches(sequences, in_step=False)
        tokens = self.views.collate([sequences[place] for place in places])
        with torch.enable_grad():
            view = self.views.policy(tokens)
        start = distributed.rank() * len(sequences)
        self._first_pass = FirstPass([start + place for place in places], tokens, self.views.num_read, view)
        found = dict(zip(places, torch.stack(view, dim=1).detach().cpu(), strict=True))
        return [found[place] for place in range(len(sequences))]

    def estimate(self, rollout: Rollout) -> PPOBatch:
        """Turn a scored rollout into rewards, advantages and returns, all [B, T]."""
        ppo, mask = self.config.ppo, rollout.response_mask
        kl = _KL[ppo.kl_estimator](rollout.logprobs, rollout.ref_logprobs)
        rewards = token_rewards(shaped_scores(rollout, ppo), kl, mask, self.state.kl_coef)
        if ppo.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, rollout.values, mask, ppo.gamma, ppo.lam)
        return PPOBatch(rollout, rewards, masked_whiten(advantages, mask), returns)

    def update(self, batch: PPOBatch) -> dict[str, float]:
        """Run num_epochs passes of clipped updates over the batch; return means over all tokens that were used."""
        ppo, per_step, gather = self.config.ppo, self.config.ppo.updates_per_step, self.config.ppo.gather
        policy_step = self.state.step - ppo.value_warmup_steps
        metrics: dict[str, float] = {}
        totals: Counter[str] = Counter()
        num_tokens = num_skipped = num_updates = self.views.num_read = 0
        for minibatch in self._minibatches():
            tokens = int(batch.rollout.response_mask[minibatch].sum())
            sums: dict[str, float] = {}
            results: dict[str, StepResult] = {}
            if policy_step >= 0:
                update = policy_step * per_step + num_updates
                with self.models.policy.gathered(gather):
                    sums |= self._policy_gradients(batch, minibatch, tokens)
                    totals.update(self._pretrain(update))
                self._hold.close()
                results["policy"] = self.models.policy.step(update)
            with self.models.value_model.gathered(gather):
                sums |= self._accumulate(batch, minibatch, tokens, self._value_backward)
            results["value"] = self.models.value_model.step(self.state.step * per_step + num_updates)
            totals.update(sums)
            num_tokens += tokens
            num_updates += 1
            num_skipped += sum(result.skipped for result in results.values())
            metrics = _optimizer_metrics(results)
            if ppo.early_stop_kl is not None and sums.get("approx_kl", 0.0) / tokens > ppo.early_stop_kl:
                break
        self._read.update = self.views.take_read(num_models=1 + (policy_step >= 0))
        self._read.num_epochs = num_updates * ppo.minibatch_size / ppo.batch_size
        means = {name: total / (num_updates if name == _PRETRAIN else num_tokens) for name, total in totals.items()}
        return {**means, **metrics, "num_updates": float(num_updates), "skipped_updates": float(num_skipped)}

    def _minibatches(self) -> Iterator[list[int]]:
        """Every row of the step once an epoch, in minibatches, in an order that depends on seed, step and epoch."""
        ppo = self.config.ppo
        for epoch in range(ppo.num_epochs):
            order = shuffled(ppo.batch_size, f"{self.config.run.seed}/minibatches/{self.state.step}/{epoch}")
            yield from chunks(order, ppo.minibatch_size)

    def _policy_gradients(self, batch: PPOBatch, minibatch: list[int], num_tokens: int) -> dict[str, float]:
        """Add the policy's gradients of a minibatch, from scoring's forward pass where that was kept."""
        first, self._first_pass = self._first_pass, None
        if first is None:
            return self._accumulate(batch, minibatch, num_tokens, self._policy_backward)
        self.views.num_read += first.num_read
        part = batch.rows(first.rows, first.tokens.response_mask, self.device)
        return _over_ranks(self._policy_backward(part, first.tokens, num_tokens, first.view))

    def _accumulate(
        self,
        batch: PPOBatch,
        minibatch: list[int],
        num_tokens: int,
        backward: Callable[[PPOTargets, TokenBatch, int], dict[str, Tensor]],
    ) -> dict[str, float]:
        """Add one model's gradients of a minibatch; return the sums of the statistics over its tokens, of all ranks."""
        sums: dict[str, Tensor] = {}
        share = distributed.balanced_share(minibatch, [len(batch.rollout.sequences[row]) for row in minibatch])
        for places, real in self.views.micro_batches([batch.rollout.sequences[row] for row in share]):
            rows = [share[place] for place in places]
            tokens = self.views.collate([batch.rollout.sequences[row] for row in rows])
            mask = tokens.response_mask if real else torch.zeros_like(tokens.response_mask)
            own = backward(batch.rows(rows, mask, self.device), tokens, num_tokens)
            sums = {name: sums.get(name, 0) + value for name, value in own.items()}
        return _over_ranks(sums)

    def _policy_backward(
        self, part: PPOTargets, tokens: TokenBatch, num_tokens: int, view: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Add the policy's gradients of some rows; return sums over their tokens."""
        loss, sums = self.policy_objective(part, tokens, view)
        self.models.policy.backward(loss / num_tokens)
        return sums

    def policy_objective(
        self, part: PPOTargets, tokens: TokenBatch, view: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the policy's loss on some rows and its statistics, all summed over their tokens.

        view: the policy's logprobs and entropy of these rows, [B, T] each, where it has been asked already.
        """
        ppo, mask = self.config.ppo, part.mask
        high = ppo.cliprange if ppo.cliprange_high is None else ppo.cliprange_high
        logprobs, entropy = view or self.views.policy(tokens)
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
        """Add the value model's gradients of some rows; return sums over their tokens."""
        errors = (self.views.values(tokens), part.values, part.returns, self.config.ppo.cliprange_value)
        loss = masked_sum(value_loss(*errors), part.mask)
        self.models.value_model.backward(loss / num_tokens)
        with torch.no_grad():
            clipped = masked_sum(value_clipped(*errors), part.mask)
        return {"loss/value": loss.detach(), "clipfrac/value": clipped}

    def _pretrain(self, update: int) -> dict[str, float]:
        """Add the gradients of the language-modelling loss on the update's blocks of text; return its mean."""
        pretrain = self.config.pretrain
        if not self.data.texts:
            return {}
        indices = batch_indices(len(self.data.texts), pretrain.batch_size, update, self.config.run.seed)
        blocks = [self.data.texts[index] for index in indices]
        num_tokens = sum(len(block.response_ids) for block in blocks)
        total = torch.zeros((), device=self.device)
        for part in chunks(distributed.share(blocks), pretrain.micro_batch_size):
            tokens = collate(part, self.ends.pad_id, self.device)  # perf/ counts prompts and responses alone
            logits = self.views.logits(self.models.policy, tokens)
            loss = -token_logprobs(logits, tokens.real_response_ids(), temperature=1.0).sum() / num_tokens
            self.models.policy.backward(pretrain.coef * loss)
            total += loss.detach()
        return {_PRETRAIN: float(distributed.global_sum(total))}


def _over_ranks(sums: dict[str, Tensor]) -> dict[str, float]:
    total = distributed.global_sum(torch.stack(list(sums.values()))).tolist()
    return dict(zip(sums, total, strict=True))


def _optimizer_metrics(results: dict[str, StepResult]) -> dict[str, float]:
    norms = {f"grad_norm/{name}": result.grad_norm for name, result in results.items()}
    return {**norms, **{f"lr/{name}": result.learning_rate for name, result in results.items()}}
