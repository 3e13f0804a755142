"""Chunks of tensors, and the safetensors files that they become."""

import pytest
import torch
from safetensors.torch import load

from srft_ray.train import hf_files
from srft_ray.train.chunks import chunks, safetensors_parts
from srft_ray.train.nonfinite import first_nonfinite_tensor


def tensors():
    return {
        "odd": torch.arange(3, dtype=torch.uint8),
        "weights": torch.randn(4, 5, dtype=torch.bfloat16),
        "number": torch.tensor(7.0),
        "moments": torch.randn(2, 3, 4),
        "nothing": torch.zeros(0, 3),
    }


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_a_file_in_parts_is_read_by_safetensors(metadata, tmp_path):
    expected = tensors()
    content = b"".join(safetensors_parts(expected, metadata))
    found = load(content)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert (b"__metadata__" in content) == bool(metadata)


def test_parts_share_the_memory_of_the_tensors():
    tensor = torch.zeros(4)
    _, part = safetensors_parts({"a": tensor}, {})
    tensor[0] = 1.0
    assert bytes(part) == tensor.numpy().tobytes()


def test_chunks_have_a_bounded_size_and_hold_what_is_kept():
    given = [(f"{n}", torch.full((2,), float(n))) for n in range(7)]
    found = list(chunks(iter(given), 16, lambda n: n != 3, copy=True))
    assert [list(chunk) for chunk in found] == [["0", "1"], ["2", "4"], ["5", "6"]]
    given[0][1].fill_(9.0)
    assert found[0]["0"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
@pytest.mark.parametrize("last", [12, 13])  # the last piece is full, or not
def test_pieces_are_the_same_however_they_are_dealt(ranks: int, last: int):
    given = [(f"{n}", torch.full((n % 3 + 1,), float(n))) for n in range(last)]
    expected = list(chunks(iter(given), 16, lambda n: True, copy=True))
    dealt = [list(hf_files.rounds(iter(given), 16, rank, ranks)) for rank in range(ranks)]
    for rank, rounds in enumerate(dealt):
        sizes = [piece for pieces, _ in rounds for piece in pieces]
        assert sizes == [{name: tensor.nbytes for name, tensor in piece.items()} for piece in expected]
        own = [list(piece) for _, piece in rounds if piece]
        assert own == [list(piece) for piece in expected[rank::ranks]]
    given[0][1].fill_(9.0)
    assert dealt[0][0][1]["0"].tolist() == [0.0], "it is a copy"


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_that_is_not_finite_is_found(number, dtype):
    good = {"empty": torch.zeros(0), "whole": torch.arange(3), "good": torch.tensor([1.0, -2.0], dtype=dtype)}
    assert first_nonfinite_tensor(good) is None
    bad = torch.ones(3, 4, dtype=dtype)
    bad[1, 2] = number
    assert first_nonfinite_tensor({**good, "bad": bad}) == "bad"
