"""Who gets which part, by hand; what ranks exchange stands in tests/distributed."""

import pytest

from rlhf_cli.engine import distributed


def shares(items, sizes, num_ranks, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: num_ranks)
    found = []
    for rank in range(num_ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        found.append(distributed.balanced_share(items, sizes))
    return found


def test_two_ranks_are_dealt_items_by_size_there_and_back(monkeypatch):
    """Sizes 1, 2 | 3, 4 | 5, 6: to ranks 0, 1 | 1, 0 | 0, 1."""
    assert shares(list("cafbed"), [3, 1, 6, 2, 5, 4], 2, monkeypatch) == [list("ade"), list("bcf")]


def test_three_ranks_are_dealt_items_by_size_there_and_back(monkeypatch):
    """Sizes 1, 2, 3 | 4, 5, 6 | 7, 8, 9: sums of 14, 15 and 16."""
    items = [7, 1, 5, 9, 3, 2, 8, 6, 4]
    assert shares(items, items, 3, monkeypatch) == [[1, 6, 7], [2, 5, 8], [3, 4, 9]]


def test_items_of_one_size_are_dealt_in_their_order(monkeypatch):
    assert shares(list("abcd"), [5, 5, 5, 5], 2, monkeypatch) == [["a", "d"], ["b", "c"]]


def test_one_rank_gets_all_from_the_smallest_to_the_largest(monkeypatch):
    assert shares(list("abc"), [2, 3, 1], 1, monkeypatch) == [list("cab")]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 6])
def test_every_item_is_dealt_once_and_all_ranks_get_as_many(num_ranks, monkeypatch):
    sizes = [1 + 17 * n % 12 for n in range(24)]
    found = shares(list(range(24)), sizes, num_ranks, monkeypatch)
    assert sorted(item for share in found for item in share) == list(range(24))
    assert {len(share) for share in found} == {24 // num_ranks}
    totals = [sum(sizes[item] for item in share) for share in found]
    assert max(totals) - min(totals) <= max(sizes) - min(sizes)


def test_what_cannot_be_dealt_evenly_is_an_error(monkeypatch):
    with pytest.raises(AssertionError):
        shares([1, 2, 3], [1, 2, 3], 2, monkeypatch)


def test_shares_in_order_and_padding_to_the_ranks(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert distributed.share([1, 2, 3, 4]) == [3, 4]
    assert distributed.pad_to_ranks([1, 2, 3]) == [1, 2, 3, 1]
    assert distributed.pad_to_ranks([1, 2]) == [1, 2]
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    assert distributed.pad_to_ranks([1, 2, 3, 4]) == [1, 2, 3, 4, 1, 1]


def test_parts_are_evened_with_the_first_for_company(monkeypatch):
    monkeypatch.setattr(distributed, "gather_all", lambda number: [number, 3])
    assert distributed.pad_to_same_count(["a"]) == [("a", True), ("a", False), ("a", False)]
    assert distributed.pad_to_same_count(["a", "b", "c", "d"]) == [(part, True) for part in "abcd"]


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "8"}, 8),
        ({"WORLD_SIZE": "8", "LOCAL_SIZE": "4"}, 4),  # deepspeed
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2"}, 2),  # torchrun
    ],
)
def test_ranks_of_this_machine_are_those_that_the_launcher_names(monkeypatch, given, count):
    for name in ("WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert distributed.num_local_ranks() == count
