"""What some ranks wrote, any number of ranks reads, slice by slice, with files of any size."""

import itertools

import pytest
import torch
from safetensors import safe_open

from rlhf_cli.config.errors import CheckpointError
from rlhf_cli.engine import shards
from rlhf_cli.engine.shards import open_shards, write_shards

SIZES = (1, 2, 7, 12, 61)  # of a tensor of each


def name_of(size):
    return f"master/layer{size}.weight"


def whole(size):
    """Numbers that no two tensors share."""
    return torch.arange(size) + 1000.0 * size


def slice_of(tensor, rank, num_ranks):
    """As ZeRO-3 cuts: equal parts, the end of the last filled up with zeros."""
    part = -(-len(tensor) // num_ranks)
    padded = torch.cat([tensor, torch.zeros(part * num_ranks - len(tensor))])
    return padded[rank * part :][:part]


def write(folder, num_ranks):
    for rank in range(num_ranks):
        write_shards(((name_of(size), slice_of(whole(size), rank, num_ranks)) for size in SIZES), folder, rank)


def check_read(folder, num_ranks):
    with open_shards(folder) as reader:
        for size, rank in itertools.product(SIZES, range(num_ranks)):
            expected = slice_of(whole(size), rank, num_ranks)
            got = reader.read(name_of(size), rank * len(expected), len(expected))
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected), (size, rank)
            assert torch.equal(reader.read(name_of(size), 0, size), whole(size))


@pytest.mark.parametrize("readers", range(1, 6))
@pytest.mark.parametrize("writers", range(1, 6))
def test_any_number_of_ranks_reads_what_any_number_wrote(tmp_path, writers, readers):
    write(tmp_path, writers)
    assert {path.name for path in tmp_path.iterdir()} == {f"rank{rank}-0.safetensors" for rank in range(writers)}
    check_read(tmp_path, readers)


def test_twelve_ranks_are_joined_in_the_order_of_their_numbers(tmp_path):
    """As text, rank10 and rank11 come before rank2."""
    write(tmp_path, 12)
    check_read(tmp_path, 1)
    check_read(tmp_path, 5)


@pytest.mark.parametrize(("file_bytes", "num_files"), [(1, 5), (40, 2), (10**9, 1)])
def test_a_rank_writes_several_files(tmp_path, monkeypatch, file_bytes, num_files):
    """A shard of two ranks has 1, 1, 4, 6 or 31 numbers of 4 bytes: four are 48 bytes together, the fifth has 124."""
    monkeypatch.setattr(shards, "FILE_BYTES", file_bytes)
    write(tmp_path, 2)
    expected = {f"rank{rank}-{number}.safetensors" for rank in range(2) for number in range(num_files)}
    assert {path.name for path in tmp_path.iterdir()} == expected
    for readers in (1, 2, 3):
        check_read(tmp_path, readers)


def test_more_than_ten_files_of_more_than_ten_ranks(tmp_path, monkeypatch):
    """Each of eleven ranks writes a file a tensor, thirteen of them."""
    monkeypatch.setattr(shards, "FILE_BYTES", 1)
    tensors = {f"t{number}": torch.arange(23.0) + 100 * number for number in range(13)}
    for rank in range(11):
        write_shards(((name, slice_of(tensor, rank, 11)) for name, tensor in tensors.items()), tmp_path, rank)
    assert len(list(tmp_path.iterdir())) == 11 * 13
    with open_shards(tmp_path) as reader:
        for name, tensor in tensors.items():
            assert torch.equal(reader.read(name, 0, 23), tensor)
            assert torch.equal(reader.read(name, 9, 8), tensor[9:17])


def test_no_more_is_held_than_a_file_takes(tmp_path, monkeypatch):
    """Shards come one after another; at no time are more than two of these in memory."""
    monkeypatch.setattr(shards, "FILE_BYTES", 80)
    written = []
    save_file = shards.save_file
    monkeypatch.setattr(
        shards, "save_file", lambda tensors, path: (written.append(len(tensors)), save_file(tensors, path))
    )

    def produce():
        for number in range(5):
            assert sum(written) >= number - 1
            yield f"t{number}", torch.zeros(10)

    write_shards(produce(), tmp_path, 0)
    assert written == [2, 2, 1]


def test_any_slice_is_that_of_the_whole(tmp_path):
    write(tmp_path, 3)
    padded = torch.cat([whole(12), torch.zeros(40)])
    with open_shards(tmp_path) as reader:
        for start, size in itertools.product(range(16), range(20)):
            assert torch.equal(reader.read(name_of(12), start, size), padded[start:][:size])


def test_what_is_part_of_a_larger_tensor_is_written_alone(tmp_path):
    """ZeRO keeps the shards of many parameters as views of one flat tensor, on a device and in a graph."""
    flat = torch.arange(30.0, requires_grad=True)
    write_shards([("a", flat[:10]), ("b", flat[10:30:2])], tmp_path, 0)
    assert (tmp_path / "rank0-0.safetensors").stat().st_size < 300  # 20 numbers of 4 bytes, and a header
    with open_shards(tmp_path) as reader:
        assert torch.equal(reader.read("a", 0, 10), torch.arange(10.0))
        assert torch.equal(reader.read("b", 0, 10), torch.arange(10.0, 30.0, 2))


def test_nothing_to_write_writes_nothing(tmp_path):
    write_shards([], tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_there_is_said(tmp_path):
    write(tmp_path, 2)
    with open_shards(tmp_path) as reader:
        assert name_of(7) in reader
        assert "ema/a" not in reader
        with pytest.raises(CheckpointError) as caught:
            reader.read("ema/a", 0, 1)
    assert str(caught.value) == f"{tmp_path}: no tensor ema/a; the checkpoint is of another model or other options"


def test_the_files_are_closed_again(tmp_path):
    write(tmp_path, 1)
    with open_shards(tmp_path) as reader:
        reader.read(name_of(1), 0, 1)
    with pytest.raises(Exception, match="closed"):
        reader.read(name_of(1), 0, 1)


def test_the_files_are_plain_safetensors(tmp_path):
    """Anybody can open them, and no code is run."""
    write(tmp_path, 2)
    with safe_open(tmp_path / "rank1-0.safetensors", "pt") as file:
        assert set(file.keys()) == {name_of(size) for size in SIZES}
        assert file.get_tensor(name_of(7)).tolist() == [7004.0, 7005.0, 7006.0, 0.0]
