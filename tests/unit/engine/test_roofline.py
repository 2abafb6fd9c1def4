import torch

from rlhf_cli.engine import distributed, roofline


def test_the_rate_is_that_of_the_median_product_summed_over_the_ranks(one_rank, monkeypatch):
    """Products of 8 x 8 are 1024 operations; they take 1 to 7 seconds, in the median 4; two ranks make 512 a second."""
    clock, passed = [0.0], iter([7.0, 1.0, 3.0, 2.0, 6.0, 4.0, 5.0])
    readings = []

    def read():
        if len(readings) % 2:
            clock[0] += next(passed)
        readings.append(clock[0])
        return clock[0]

    monkeypatch.setattr(roofline, "CPU_SIDE", 8)
    monkeypatch.setattr(roofline.time, "perf_counter", read)
    monkeypatch.setattr(distributed, "global_sum", lambda rate: rate + rate)
    assert roofline.matmul_flops(torch.float32) == 2 * 1024 / 4 == 512.0
