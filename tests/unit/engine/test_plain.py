"""The engines of one rank, beside torch's own optimizer and beside figures by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from rlhf_cli.config.errors import CheckpointError, NonFiniteError
from rlhf_cli.config.sections import DType, OptimConfig, Schedule
from rlhf_cli.engine import param_groups as groups
from rlhf_cli.engine import plain
from rlhf_cli.engine.plain import PlainFrozen, PlainTrain

pytestmark = pytest.mark.usefixtures("one_rank")
OPTIM = OptimConfig(
    learning_rate=0.01, weight_decay=0.1, schedule=Schedule.linear, warmup_ratio=0.0, max_grad_norm=0.05
)
RATES = (0.01, 0.00775, 0.0055, 0.00325, 0.001)  # in a straight line to a tenth


class Small(nn.Module):
    """Two layers, a parameter that nothing uses, a buffer that is saved and one that is not."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.idle = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.to(dtype)
        self.register_buffer("kept", torch.tensor([7.0]))
        self.register_buffer("passing", torch.tensor([8.0]), persistent=False)

    def forward(self, rows):
        return self.layers(rows.to(self.idle.dtype)).float()


def rows_of(update, part):
    """Uneven micro-batches: one row, two rows, three rows."""
    generator = torch.Generator().manual_seed(10 * update + part)
    return torch.randn(1 + part, 3, generator=generator)


def losses(model, update):
    return [((model(rows_of(update, part)) - part) ** 2).sum() / 6 for part in range(3)]


def make_update(engine, update):
    for loss in losses(engine, update):
        engine.backward(loss)
    return engine.step(update)


def run(engine, first, last):
    return [make_update(engine, update) for update in range(first, last)]


def weights(engine):
    return {name: one.detach().clone() for name, one in engine.module.named_parameters()}


def moments(engine):
    return {
        f"{name}/{moment}": engine._moment(one, moment).clone()
        for name, one in engine.module.named_parameters()
        for moment in ("exp_avg", "exp_avg_sq")
    }


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("limit", [0.05, 1e3, 0.0])
def test_updates_are_those_of_torchs_adamw_with_its_clipping(limit):
    """Gradients of three micro-batches add up; the unused parameter has gradient 0, so that it decays alone."""
    model, optim = Small(), replace(OPTIM, max_grad_norm=limit)
    engine = PlainTrain(copy.deepcopy(model), optim, 5)
    adam = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for update, rate in enumerate(RATES):
        result = make_update(engine, update)
        adam.zero_grad()
        for loss in losses(model, update):
            loss.backward()
        model.idle.grad = torch.zeros_like(model.idle)
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit or math.inf)
        adam.param_groups[0]["lr"] = rate
        adam.step()
        assert_close(result.grad_norm, float(norm), rtol=1e-6, atol=0)
        assert_close(result.learning_rate, rate, rtol=1e-6, atol=0)
        assert not result.skipped
    assert_close(weights(engine), dict(model.named_parameters()), rtol=1e-6, atol=1e-7)
    for (name, parameter), theirs in zip(engine.module.named_parameters(), model.parameters(), strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            expected = adam.state[theirs][moment].flatten()
            assert_close(engine._moment(parameter, moment), expected, rtol=1e-5, atol=1e-9, msg=f"{name} {moment}")
    assert_close(engine.module.idle.detach(), torch.tensor([1.0, -2.0]) * math.prod(1 - 0.1 * rate for rate in RATES))
    assert not engine._moment(engine.module.idle, "exp_avg").any()
    assert all(parameter.grad is None for parameter in engine.module.parameters())


def test_an_update_without_any_gradient_has_norm_0_and_lets_the_moments_fall():
    engine = PlainTrain(Small(), replace(OPTIM, weight_decay=0.0), 5)
    make_update(engine, 0)
    before = moments(engine)
    assert engine.step(1).grad_norm == 0.0
    after = moments(engine)
    assert_close(after["layers.0.weight/exp_avg"], 0.9 * before["layers.0.weight/exp_avg"])


class OneWeight(nn.Module):
    """The gradient of w at a factor is the factor."""

    def __init__(self, dtype):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, factor):
        return (self.w * factor).sum()


def test_clipping_by_hand():
    """A gradient of 1e-6 with a limit of 1e-6: the norm is taken to be 1e-6 larger, so that half of it is left."""
    engine = PlainTrain(OneWeight(torch.float32), replace(OPTIM, max_grad_norm=1e-6), 5)
    engine.backward(engine(1e-6))
    engine.step(0)
    assert_close(engine._moment(engine.module.w, "exp_avg").item(), 0.1 * 0.5e-6, rtol=1e-4, atol=0)


def test_bfloat16_gradients_add_up_in_float32():
    """1 + 1/512 + 1/512 is 1 where every sum is rounded to eight bits."""
    engine = PlainTrain(OneWeight(torch.bfloat16), replace(OPTIM, max_grad_norm=0.0), 5)
    for factor in (1.0, 2**-9, 2**-9):
        engine.backward(engine(factor))
    assert engine.step(0).grad_norm == 1 + 2**-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_the_same_whatever_is_updated_at_a_time(dtype, monkeypatch):
    """All at once; or parameters of 12, 4, 4, 1 and 2 numbers in groups of at most five, of which one is larger."""
    found = []
    for together in (groups.GROUP_SIZE, 5):
        monkeypatch.setattr(groups, "GROUP_SIZE", together)
        engine = PlainTrain(Small(dtype), OPTIM, 5)
        for update in range(3):
            for part in range(update):
                engine.backward(engine(rows_of(update, part)).sum())
            engine.step(update)
        found.append([engine._master(parameter) for parameter in engine.module.parameters()])
    assert [[one.numel() for one in group] for group in engine._groups] == [[2], [12], [4], [4, 1]]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_gradient_of_one_micro_batch_takes_no_more_room_than_its_weight():
    """It is turned into float32 for the second one, or for the step."""
    engine = PlainTrain(OneWeight(torch.bfloat16), OPTIM, 5)
    for dtype in (torch.bfloat16, torch.float32):
        engine.backward(engine(1.0))
        assert engine._gradients[engine.module.w].dtype is dtype
        assert engine.module.w.grad is None
    engine.step(0)
    assert engine._gradients == {}


def test_the_moments_are_made_with_the_engine_and_stay_where_they_are():
    engine = PlainTrain(Small(torch.bfloat16), OPTIM, 5)
    places = [engine._moment(one, "exp_avg").data_ptr() for one in engine.module.parameters()]
    assert {state["step"].item() for state in engine._adamw.state.values()} == {0}
    assert not any(one.any() for one in moments(engine).values())
    make_update(engine, 0)
    assert {state["step"].item() for state in engine._adamw.state.values()} == {1}
    assert [engine._moment(one, "exp_avg").data_ptr() for one in engine.module.parameters()] == places


SCALED = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
]


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(("of_gradient", "of_state"), SCALED)
def test_a_gradient_is_scaled_in_float32_and_rounded_once(of_gradient, of_state, factor):
    gradient = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(of_gradient)
    expected = (gradient.float() * min(1.0, factor)).to(of_state)
    found = plain._scaled(gradient.clone(), factor, of_state)
    assert found.dtype is of_state
    assert torch.equal(found, expected)


def test_bfloat16_keeps_float32_weights():
    """A hundred steps of 1e-5 move a weight of 1 by 0.001, though the next smaller bfloat16 is 0.0039 away."""
    optim = OptimConfig(learning_rate=1e-5, schedule=Schedule.constant, warmup_ratio=0.0)
    engine = PlainTrain(OneWeight(torch.bfloat16), optim, 400)
    for update in range(100):
        engine.backward(engine(1.0))
        engine.step(update)
    assert engine.module.w.item() == 1.0
    assert_close(engine._master(engine.module.w).item(), 0.999, rtol=0, atol=2e-6)
    for update in range(100, 300):
        engine.backward(engine(1.0))
        engine.step(update)
    assert engine.module.w.item() == 1 - 2**-8
    assert engine.module.w.dtype is engine.full_state_dict()["w"].dtype is torch.bfloat16


def test_bfloat16_states_round_small_updates_away():
    """The same steps, with the weight its own master: 1 - 1e-5 is 1. Steps of 0.01 are not lost."""
    for rate, reaches in ((1e-5, 1.0), (0.01, 0.98)):
        optim = OptimConfig(
            learning_rate=rate, schedule=Schedule.constant, warmup_ratio=0.0, state_dtype=DType.bfloat16
        )
        engine = PlainTrain(OneWeight(torch.bfloat16), optim, 100, ema_decay=0.5)
        for update in range(2):
            engine.backward(engine(1.0))
            engine.step(update)
        assert_close(engine.module.w.item(), reaches, rtol=0, atol=2**-8)
        held = engine._master(engine.module.w), engine._moment(engine.module.w, "exp_avg")
        assert [tensor.dtype for tensor in held] == [torch.bfloat16] * 2
        assert held[0].data_ptr() == engine.module.w.data_ptr()
        assert engine._ema["w"].dtype is torch.float32
        assert engine.state_bytes == 3 * 2 + 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_skipped_and_leaves_everything_alone(bad, dtype):
    engine = PlainTrain(Small(dtype), OPTIM, 5, ema_decay=0.5)
    make_update(engine, 0)
    kept = weights(engine), moments(engine), engine.full_ema(engine.full_state_dict())
    engine.backward(losses(engine, 1)[0])
    engine.backward(losses(engine, 1)[1] * bad)
    result = engine.step(1)
    assert result.skipped
    assert not math.isfinite(result.grad_norm)
    assert engine.num_skipped == 1
    for before, after in zip(
        kept, (weights(engine), moments(engine), engine.full_ema(engine.full_state_dict())), strict=True
    ):
        assert_same_bits(before, after)
    result = make_update(engine, 2)  # of the broken gradients nothing is left
    assert not result.skipped
    assert math.isfinite(result.grad_norm)
    assert engine.num_skipped == 0
    assert not torch.equal(weights(engine)["layers.0.weight"], kept[0]["layers.0.weight"])


@pytest.mark.parametrize("limit", [3, 0])
def test_so_many_skipped_updates_in_a_row_stop_the_run(limit):
    """Two, then a good one, then three; with 0 it never stops."""
    engine = PlainTrain(Small(), replace(OPTIM, max_skipped_updates=limit), 9)
    before = {}
    for update in range(6):
        if update == 2:
            make_update(engine, update)
            before = weights(engine)
            continue
        engine.backward(losses(engine, update)[0] * math.nan)
        if update == 5 and limit:
            with pytest.raises(NonFiniteError, match=r"^3 consecutive updates had gradients that are not finite"):
                engine.step(update)
        else:
            assert engine.step(update).skipped
    assert engine.num_skipped == 3
    assert_same_bits(before, weights(engine))


@pytest.mark.parametrize(
    ("dtype", "states"),
    [
        (torch.float32, DType.float32),
        (torch.bfloat16, DType.float32),
        (torch.bfloat16, DType.bfloat16),
    ],
)
@pytest.mark.parametrize("ema_decay", [None, 0.7])
@pytest.mark.parametrize("done", [0, 2])
def test_what_is_saved_goes_on_bit_for_bit(done, ema_decay, dtype, states, tmp_path):
    """After two updates, and before the first; into an engine that was elsewhere."""
    optim = replace(OPTIM, state_dtype=states)
    engine = PlainTrain(Small(dtype), optim, 5, ema_decay)
    run(engine, 0, done)
    engine.save(tmp_path / "saved")
    other = Small(dtype)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    again = PlainTrain(other, optim, 5, ema_decay)
    run(again, 0, 1 if done else 0)
    again.load(tmp_path / "saved", num_skipped=4)
    assert again.num_skipped == 4
    for one in (engine, again):
        run(one, done, 5)
        one.save(tmp_path / f"end-{one is engine}")
    assert_same_bits(weights(engine), weights(again))
    assert_same_bits(moments(engine), moments(again))
    assert engine.has_ema is again.has_ema is (ema_decay is not None)
    written = [(tmp_path / f"end-{first}/rank0-0.safetensors").read_bytes() for first in (True, False)]
    assert written[0] == written[1]
    assert again.num_skipped == 0


def test_a_checkpoint_without_an_average_is_refused_where_one_is_kept(tmp_path):
    PlainTrain(Small(), OPTIM, 5).save(tmp_path)
    with pytest.raises(CheckpointError, match="no tensor ema/"):
        PlainTrain(Small(), OPTIM, 5, ema_decay=0.5).load(tmp_path, 0)


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    engine = PlainTrain(Small(), OPTIM, 5)
    with torch.no_grad():
        engine.module.layers[2].bias.fill_(math.inf)
    with pytest.raises(NonFiniteError, match=r"the weight layers\.2\.bias is not finite"):
        engine.save(tmp_path)


def test_the_average_by_hand():
    """Decay 0.75: after two updates 9/16 of the start, 3/16 of the first weights, 1/4 of the second."""
    engine = PlainTrain(Small(torch.bfloat16), OPTIM, 5, ema_decay=0.75)
    seen = [engine._master(engine.module.layers[0].weight).clone()]
    for update in range(2):
        make_update(engine, update)
        seen.append(engine._master(engine.module.layers[0].weight).clone())
    expected = 9 / 16 * seen[0] + 3 / 16 * seen[1] + 1 / 4 * seen[2]
    assert_close(engine._ema["layers.0.weight"], expected)
    averaged = engine.full_ema(engine.full_state_dict())
    assert averaged["layers.0.weight"].dtype is torch.bfloat16
    assert torch.equal(averaged["layers.0.weight"], expected.view(4, 3).bfloat16())
    assert averaged["kept"].item() == 7.0


def test_the_full_state_is_a_copy_with_the_buffers_that_are_saved():
    engine = PlainTrain(Small(), OPTIM, 5)
    state = engine.full_state_dict()
    assert state.keys() == Small().state_dict().keys()
    before = {name: tensor.clone() for name, tensor in state.items()}
    make_update(engine, 0)
    assert_same_bits(state, before)


def test_the_fingerprint_is_the_sum_of_the_bits_and_tells_other_weights():
    """1 is 0x3F80 in bfloat16 and 0x3F800000 in float32; -2 is 0xC0000000, as a signed number -0x40000000."""
    half, single = OneWeight(torch.bfloat16), OneWeight(torch.float32)
    assert PlainFrozen(half).fingerprint() == str(0x3F80)
    assert PlainFrozen(single).fingerprint() == str(0x3F800000)
    engine = PlainTrain(Small(), OPTIM, 5)
    assert engine.fingerprint() == PlainFrozen(Small()).fingerprint() == PlainTrain(Small(), OPTIM, 5).fingerprint()
    with torch.no_grad():
        engine.module.idle.zero_()
    bits = 0x3F800000 - 0x40000000
    assert int(PlainFrozen(Small()).fingerprint()) - int(engine.fingerprint()) == bits
    make_update(engine, 0)
    assert int(PlainFrozen(Small()).fingerprint()) - int(engine.fingerprint()) != bits


def test_a_frozen_engine_keeps_no_gradient_and_is_in_eval_mode():
    engine = PlainFrozen(Small().train())
    rows = rows_of(0, 2)
    assert not engine(rows).requires_grad
    assert torch.equal(engine(rows), Small()(rows))
    assert not any(module.training for module in engine.module.modules())
    assert not any(parameter.requires_grad for parameter in engine.module.parameters())


@pytest.mark.parametrize("hold", [True, False])
def test_the_weights_are_always_there(hold):
    for engine in (PlainFrozen(Small()), PlainTrain(Small(), OPTIM, 5)):
        before = engine.fingerprint()
        with engine.gathered(hold) as module:
            assert module is engine.module
        assert engine.fingerprint() == before


def test_the_largest_difference_looks_at_the_weights_that_both_have():
    engine, other = PlainTrain(Small(), OPTIM, 5), Small()
    with torch.no_grad():
        other.layers[0].weight[1, 2] += 0.25
    other.head = nn.Parameter(torch.full((9,), 5.0))
    assert_close(engine.largest_difference(PlainTrain(other, OPTIM, 5)), 0.25)
    assert engine.largest_difference(engine) == 0.0
    assert engine.largest_difference(PlainTrain(OneWeight(torch.float32), OPTIM, 5)) == 0.0


def test_sizes():
    """3 x 4 + 4 + 4 + 1 + 2 weights; a checkpoint holds them, two moments and the average in float32."""
    engine = PlainTrain(Small(torch.bfloat16), OPTIM, 5, ema_decay=0.5)
    assert engine.num_weights == 23
    assert engine.state_bytes == 4 * 4 * 23
    assert engine.export_bytes == 2 * 2 * 23
    assert PlainTrain(Small(), OPTIM, 5).state_bytes == 4 * 3 * 23
    assert PlainTrain(Small(), OPTIM, 5).export_bytes == 4 * 23
