from collections import Counter

from rlhf_cli.data.sampler import batch_indices, shuffled


def test_each_pass_reads_every_row_once_even_where_batches_cross_its_end():
    taken = [index for step in range(14) for index in batch_indices(7, 4, step, seed=0)]
    for turn in range(8):
        assert sorted(taken[turn * 7 : turn * 7 + 7]) == list(range(7))
    assert taken[:7] != taken[7:14]


def test_a_batch_depends_on_seed_and_step_alone():
    assert batch_indices(50, 8, 5, seed=1) == batch_indices(50, 8, 5, seed=1)
    assert batch_indices(50, 8, 5, seed=1) != batch_indices(50, 8, 5, seed=2)


def test_a_batch_may_be_larger_than_the_set():
    assert Counter(batch_indices(3, 6, 0, seed=0)) == {0: 2, 1: 2, 2: 2}


def test_shuffled_is_a_permutation_of_its_key():
    assert sorted(shuffled(20, "a")) == list(range(20))
    assert shuffled(20, "a") == shuffled(20, "a") != shuffled(20, "b")
