"""Bytes of live tensors, counted by hand."""

import torch

from rlhf_cli.plan.live_tensors import LiveTensors


def test_a_storage_counts_once_while_it_is_alive():
    with LiveTensors() as live:
        assert (live.total, live.peak) == (0, 0)
        first = torch.zeros(100)  # 400 bytes
        view = first[:10].view(2, 5)
        assert live.total == 400
        second = first + 1
        assert live.total == 800
        del first
        assert live.total == 800  # the view holds the storage
        del view
        assert live.total == 400
        del second
    assert (live.total, live.peak) == (0, 800)


def test_older_tensors_count_only_after_add():
    before = torch.zeros(100)
    with LiveTensors() as live:
        turned = before.view(10, 10).t()
        before.add_(1)
        assert live.total == 0
        live.add(before)
        live.add(turned)
        assert live.total == 400


def test_a_backward_pass_is_counted():
    """Peak: gradients of the product and of both factors, 400 bytes each; the sum and its gradient, 4 each.

    When the last of them is made, the result of exp is gone.
    """
    weight = torch.ones(10, 10, requires_grad=True)
    with LiveTensors() as live:
        (weight @ weight).exp().sum().backward()
        assert weight.grad is not None
        assert live.total == 400
        assert live.peak == 1208


def test_the_peak_is_counted_by_kind_and_can_be_reset():
    kinds = {3: "three", 4: None}
    with LiveTensors(lambda tensor: kinds.get(tensor.dim(), "other")) as live:
        held = torch.zeros(2, 2, 2), torch.zeros(5), torch.zeros(1, 1, 1, 1)
        gone = torch.zeros(50)
        del gone
        assert live.at_peak == {"three": 32, "other": 220}
        live.reset_peak()
        assert (live.peak, live.at_peak) == (52, {"three": 32, "other": 20})
    assert len(held) == 3


def test_the_first_of_equal_peaks_is_reported():
    with LiveTensors(lambda tensor: f"of {tensor.dim()}") as live:
        first = torch.zeros(10)
        del first
        second = torch.zeros(5, 2)
        assert live.at_peak == {"of 1": 40}
        assert second.shape == (5, 2)


def test_meta_tensors_count_like_others():
    with LiveTensors() as live:
        held = torch.empty(1000, 1000, dtype=torch.bfloat16, device="meta")
        assert live.total == 2_000_000
        assert held.shape == (1000, 1000)


def test_onednn_tensors_count_although_their_storage_is_hidden():
    plain = torch.zeros(10, 10)
    with LiveTensors() as live:
        other = plain.to_mkldnn()
        assert live.total == 400
        del other
        assert live.total == 0
