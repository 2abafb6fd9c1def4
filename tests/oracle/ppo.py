"""A slow PPO run in float64: one sequence at a time, no padding, batches or ranks.

It is written from the papers and shares no mathematics with rlhf_cli: it reads only the options and
the sampled ids. Sources: arXiv:1707.06347 (PPO), arXiv:1506.02438 (GAE), arXiv:2203.02155 (RLHF),
and those given next to the options.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rlhf_cli.config.objectives import KLEstimator, MissingEOS, PPOConfig, PretrainConfig
from rlhf_cli.config.sections import OptimConfig, Schedule


@dataclass
class Sample:
    """A sampled response: its ids, and whether it ended by itself."""

    prompt: list[int]
    response: list[int]
    ended: bool


@dataclass
class Step:
    """What the oracle computed in one step, row by row."""

    logprobs: list[Tensor] = field(default_factory=list)
    ref_logprobs: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    advantages: list[list[float]] = field(default_factory=list)
    returns: list[list[float]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


class Adam:
    """AdamW (arXiv:1711.05101), with clipping to a global norm and a learning rate set by the
    update's number.
    """

    def __init__(self, model: nn.Module, optim: OptimConfig, num_updates: int) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optim, self.num_updates, self.count = optim, num_updates, 0
        self.mean = [torch.zeros_like(p) for p in self.parameters]
        self.square = [torch.zeros_like(p) for p in self.parameters]

    def rate(self, update: int) -> float:
        warmup = round(self.optim.warmup_ratio * self.num_updates)
        if update < warmup:
            return self.optim.learning_rate * (update + 1) / warmup
        start = max(warmup - 1, 0)
        span = self.num_updates - 1 - start
        done = (update - start) / span if span else 0.0
        floor = self.optim.min_lr_ratio
        if self.optim.schedule is Schedule.linear:
            return self.optim.learning_rate * (floor * done + 1 - done)
        if self.optim.schedule is Schedule.cosine:
            return self.optim.learning_rate * (floor + (1 - floor) * math.cos(math.pi * done / 2) ** 2)
        return self.optim.learning_rate

    @torch.no_grad()
    def step(self, gradients: list[Tensor], update: int) -> tuple[float, float]:
        norm = math.sqrt(sum(float((g * g).sum()) for g in gradients))
        limit = self.optim.max_grad_norm
        scale = limit / (norm + 1e-6) if limit and norm > limit else 1.0
        self.count += 1
        o, rate = self.optim, self.rate(update)
        for p, g, m, s in zip(self.parameters, gradients, self.mean, self.square, strict=True):
            g = g * scale
            m.copy_(o.beta1 * m + (1 - o.beta1) * g)
            s.copy_(o.beta2 * s + (1 - o.beta2) * g * g)
            unbiased = m / (1 - o.beta1**self.count)
            size = (s / (1 - o.beta2**self.count)).sqrt() + o.eps
            p.copy_(p - rate * o.weight_decay * p - rate * unbiased / size)
        return norm, rate


class Oracle:
    """Four plain models in float64, and their training steps."""

    def __init__(
        self,
        models: dict[str, nn.Module],  # policy, reference, reward_model, value_model: plain transformers models
        ppo: PPOConfig,
        pretrain: PretrainConfig,
        optims: tuple[OptimConfig, OptimConfig],
        temperature: float,
        eos: int,
    ) -> None:
        self.policy, self.reference, self.reward_model, self.value_model = (
            copy.deepcopy(models[name]).double().eval()
            for name in ("policy", "reference", "reward_model", "value_model")
        )
        self.ppo, self.pretrain, self.temperature, self.eos = ppo, pretrain, temperature, eos
        per_step = ppo.num_epochs * (ppo.batch_size // ppo.minibatch_size)
        self.per_step = per_step
        self.policy_adam = Adam(self.policy, optims[0], (ppo.num_steps - ppo.value_warmup_steps) * per_step)
        self.value_adam = Adam(self.value_model, optims[1], ppo.num_steps * per_step)
        self.average = [p.detach().clone() for p in self.policy.parameters()]
        self.beta, self.done = ppo.kl_coef, 0

    def step(self, samples: list[Sample], minibatches: list[list[int]], blocks: list[list[list[int]]]) -> Step:
        """Run a step; minibatches: rows of each planned update; blocks: texts of each planned
        update.
        """
        out = Step()
        with torch.no_grad():
            for sample in samples:
                self._look_at(sample, out)
        self._rewards(samples, out)
        self._advantages(out)
        self._updates(samples, minibatches, blocks, out)
        kl = sum(float((p - q).sum()) for p, q in zip(out.logprobs, out.ref_logprobs, strict=True)) / len(samples)
        out.metrics |= {"kl": kl, "kl_coef": self.beta}
        if self.ppo.kl_target is not None and self.done >= self.ppo.value_warmup_steps:  # arXiv:1909.08593
            error = kl / self.ppo.kl_target - 1
            error = -0.2 if error < -0.2 else 0.2 if error > 0.2 else error
            self.beta += self.beta * error * len(samples) / self.ppo.kl_horizon
        self.done += 1
        return out

    def _distributions(self, model: nn.Module, sample: Sample, temperature: float) -> Tensor:
        """Return the logprobs of every token of the vocabulary for each response token [T, V]."""
        logits = model(torch.tensor([sample.prompt + sample.response])).logits[0]
        first = len(sample.prompt) - 1
        return torch.log_softmax(logits[first : first + len(sample.response)] / temperature, dim=-1)

    def _chosen(self, distributions: Tensor, sample: Sample) -> Tensor:
        return torch.stack([distributions[t, token] for t, token in enumerate(sample.response)])

    def _states(self, model: nn.Module, ids: list[int]) -> Tensor:
        return model.base_model(torch.tensor([ids])).last_hidden_state[0]  # type: ignore[operator,union-attr]

    def _values(self, sample: Sample) -> Tensor:
        states = self._states(self.value_model, sample.prompt + sample.response)
        first = len(sample.prompt) - 1
        head = self.value_model.score.weight[0]  # type: ignore[union-attr,index]
        return torch.stack([states[first + t] @ head for t in range(len(sample.response))])

    def _look_at(self, sample: Sample, out: Step) -> None:
        out.logprobs.append(self._chosen(self._distributions(self.policy, sample, self.temperature), sample))
        out.ref_logprobs.append(self._chosen(self._distributions(self.reference, sample, self.temperature), sample))
        out.values.append(self._values(sample))
        text = sample.response[:-1] if sample.ended else sample.response
        states = self._states(self.reward_model, [*sample.prompt, *text, self.eos])
        out.scores.append(float(states[-1] @ self.reward_model.score.weight[0]))  # type: ignore[union-attr,index]

    def _kl(self, kind: KLEstimator, p: Tensor, q: Tensor) -> Tensor:
        """Schulman, "Approximating KL divergence": ratio r = q / p of a sample from p."""
        log_r = q - p
        if kind is KLEstimator.k1:
            return -log_r
        return 0.5 * log_r * log_r if kind is KLEstimator.k2 else log_r.exp() - 1 - log_r

    def _rewards(self, samples: list[Sample], out: Step) -> None:
        o = self.ppo
        for row, sample in enumerate(samples):
            score = out.scores[row]
            if o.reward_clip is not None:
                score = max(-o.reward_clip, min(o.reward_clip, score))
            if not sample.ended:
                score = -o.missing_eos_penalty if o.missing_eos is MissingEOS.replace else score - o.missing_eos_penalty
            if len(sample.response) < o.min_length:
                score -= o.min_length_penalty
            kl = self._kl(o.kl_estimator, out.logprobs[row], out.ref_logprobs[row])
            rewards = [-self.beta * float(k) for k in kl]
            rewards[-1] += score
            out.rewards.append(rewards)
        if o.whiten_rewards:
            every = [r for rewards in out.rewards for r in rewards]
            mean = sum(every) / len(every)
            deviation = math.sqrt(sum((r - mean) ** 2 for r in every) / len(every) + 1e-8)
            out.rewards = [[mean + (r - mean) / deviation for r in rewards] for rewards in out.rewards]

    def _advantages(self, out: Step) -> None:
        raw = []
        for rewards, values in zip(out.rewards, out.values, strict=True):
            v = [*values.tolist(), 0.0]
            deltas = [rewards[t] + self.ppo.gamma * v[t + 1] - v[t] for t in range(len(rewards))]
            decay = self.ppo.gamma * self.ppo.lam
            sums = [sum(decay ** (k - t) * deltas[k] for k in range(t, len(rewards))) for t in range(len(rewards))]
            raw.append(sums)
            out.returns.append([a + b for a, b in zip(sums, v, strict=False)])
        every = [a for row in raw for a in row]
        mean = sum(every) / len(every)
        deviation = math.sqrt(sum((a - mean) ** 2 for a in every) / len(every) + 1e-8)
        out.advantages = [[(a - mean) / deviation for a in row] for row in raw]

    def _updates(
        self, samples: list[Sample], minibatches: list[list[int]], blocks: list[list[list[int]]], out: Step
    ) -> None:
        o, learns = self.ppo, self.done >= self.ppo.value_warmup_steps
        sums = {"loss/value": 0.0, "clipfrac/value": 0.0, "loss/policy": 0.0, "approx_kl": 0.0, "clipfrac/policy": 0.0}
        num_tokens, pretrain, count = 0, 0.0, 0
        for number, rows in enumerate(minibatches):
            tokens = sum(len(samples[row].response) for row in rows)
            before = sums["approx_kl"]
            value = sum((self._value_loss(row, samples[row], out, sums) for row in rows), torch.zeros(())) / tokens
            self.value_adam.step(_gradients(value, self.value_adam), self.done * self.per_step + number)
            if learns:
                policy = (
                    sum((self._policy_loss(row, samples[row], out, sums) for row in rows), torch.zeros(())) / tokens
                )
                if blocks:
                    text = self._text_loss(blocks[number])
                    policy = policy + self.pretrain.coef * text
                    pretrain += _number(text)
                update = (self.done - o.value_warmup_steps) * self.per_step + number
                norm, rate = self.policy_adam.step(_gradients(policy, self.policy_adam), update)
                out.metrics |= {"grad_norm/policy": norm, "lr/policy": rate}
                if o.ema_decay is not None:
                    for mean, parameter in zip(self.average, self.policy.parameters(), strict=True):
                        mean.copy_(o.ema_decay * mean + (1 - o.ema_decay) * parameter.detach())
            num_tokens += tokens
            count = number + 1
            if o.early_stop_kl is not None and (sums["approx_kl"] - before) / tokens > o.early_stop_kl:
                break
        names = sums if learns else ("loss/value", "clipfrac/value")
        out.metrics |= {name: sums[name] / num_tokens for name in names}
        out.metrics |= {"num_updates": count, **({"loss/pretrain": pretrain / count} if blocks and learns else {})}

    def _policy_loss(self, row: int, sample: Sample, out: Step, sums: dict[str, float]) -> Tensor:
        o = self.ppo
        distributions = self._distributions(self.policy, sample, self.temperature)
        now = self._chosen(distributions, sample)
        low, high = 1 - o.cliprange, 1 + (o.cliprange_high if o.cliprange_high is not None else o.cliprange)
        total = torch.zeros((), dtype=torch.float64)
        for t, advantage in enumerate(out.advantages[row]):
            ratio = (now[t] - out.logprobs[row][t]).exp()
            bounded = low if ratio < low else high if ratio > high else ratio
            objective = min(ratio * advantage, bounded * advantage, key=_number)
            if o.dual_clip is not None and advantage < 0:  # arXiv:1912.09729
                objective = max(objective, o.dual_clip * advantage, key=_number)
            sums["loss/policy"] -= _number(objective)
            sums["clipfrac/policy"] += 0.0 if torch.is_tensor(objective) else 1.0  # a bound has no gradient
            sums["approx_kl"] += _number(ratio - 1 - ratio.log())
            total = total - objective
        kl = self._kl(o.kl_loss_estimator, now, out.ref_logprobs[row]).sum()
        entropy = -(distributions.exp() * distributions).sum()
        return total + o.kl_loss_coef * kl - o.entropy_coef * entropy

    def _value_loss(self, row: int, sample: Sample, out: Step, sums: dict[str, float]) -> Tensor:
        values, total = self._values(sample), torch.zeros((), dtype=torch.float64)
        for t, target in enumerate(out.returns[row]):
            error, now = (values[t] - target) ** 2, _number(values[t])
            if self.ppo.cliprange_value is not None:
                old, reach = float(out.values[row][t]), self.ppo.cliprange_value
                near = min(max(now, old - reach), old + reach)
                if near != now and (near - target) ** 2 > (now - target) ** 2:
                    error = torch.tensor((near - target) ** 2, dtype=torch.float64)
                    sums["clipfrac/value"] += 1
            sums["loss/value"] += 0.5 * _number(error)
            total = total + 0.5 * error
        return total

    def _text_loss(self, texts: list[list[int]]) -> Tensor:
        """Return the mean over all predicted tokens of -log p (arXiv:2203.02155, eq. 2, third
        term).
        """
        total, count = torch.zeros((), dtype=torch.float64), 0
        for ids in texts:
            block = Sample(ids[:1], ids[1:], ended=False)
            total = total - self._chosen(self._distributions(self.policy, block, 1.0), block).sum()
            count += len(ids) - 1
        return total / count


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value


def _gradients(loss: Tensor, adam: Adam) -> list[Tensor]:
    if not loss.requires_grad:  # every term is at a bound
        return [torch.zeros_like(p) for p in adam.parameters]
    found = torch.autograd.grad(loss, adam.parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(adam.parameters, found, strict=True)]
