"""A fingerprint changes with every change of the weights, and with nothing else."""

import pytest
import torch
from safetensors.torch import save_file

from srft_ray.sync.fingerprint import (
    BLOCK_WORDS,
    FingerprintedWeights,
    fingerprint,
    folder_fingerprint,
    model_fingerprint,
    tensor_hash,
)
from srft_ray.sync.pieces import Rank
from srft_ray.sync.versions import fingerprint_of


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "large": torch.randn(BLOCK_WORDS * 2 + 3, 2, generator=generator),
        "odd": torch.randn(7, generator=generator).to(torch.bfloat16),
        "empty": torch.zeros(0),
        "scalar": torch.tensor(1.5),
    }


def test_the_order_and_the_layout_do_not_matter():
    weights = tensors()
    expected = fingerprint(weights.items())
    assert expected == fingerprint(reversed(list(weights.items())))
    weights["large"] = weights["large"].T.contiguous().T
    assert expected == fingerprint(weights.items()) and len(expected) == 16
    # A view that does not begin at a multiple of eight bytes.
    weights["odd"] = torch.cat([torch.zeros(1, dtype=torch.bfloat16), weights["odd"]])[1:]
    assert expected == fingerprint(weights.items())


@pytest.mark.parametrize("place", [0, 1, BLOCK_WORDS, 2 * BLOCK_WORDS, 4 * BLOCK_WORDS + 5])
def test_every_bit_counts(place):
    weights = tensors()
    before = fingerprint(weights.items())
    flat = weights["large"].view(-1)
    flat[place] = torch.nextafter(flat[place], torch.tensor(torch.inf))
    assert fingerprint(weights.items()) != before


def test_places_names_shapes_and_types_count():
    tensor = torch.arange(8, dtype=torch.float32)
    hashes = [
        tensor_hash("a", tensor),
        tensor_hash("b", tensor),
        tensor_hash("a", tensor.flip(0)),
        tensor_hash("a", tensor.view(2, 4)),
        tensor_hash("a", tensor.view(torch.int32)),
    ]
    assert len(set(hashes)) == len(hashes)
    two = {"a": torch.zeros(4), "b": torch.ones(4)}
    exchanged = {"a": torch.ones(4), "b": torch.zeros(4)}
    assert fingerprint(two.items()) != fingerprint(exchanged.items())
    blocks = torch.cat([torch.ones(2 * BLOCK_WORDS), torch.zeros(2 * BLOCK_WORDS)])
    assert tensor_hash("a", blocks) != tensor_hash("a", blocks.flip(0)), "blocks have factors of their own"


def test_what_the_consumer_leaves_out_is_in_the_fingerprint():
    weights = FingerprintedWeights(tensors().items())
    next(weights)
    assert fingerprint_of(weights.exhaust()) == fingerprint(tensors().items())


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_the_sums_of_all_ranks_are_the_fingerprint(ranks):
    parts = [
        FingerprintedWeights(tensors().items(), Rank(number, ranks)).exhaust() for number in range(ranks)
    ]
    assert fingerprint_of(sum(parts)) == fingerprint(tensors().items())
    # Each tensor is hashed once.
    assert sum(part > 0 for part in parts) == min(ranks, 3), "one is empty"


def test_files_have_the_fingerprint_of_their_tensors(tmp_path):
    weights = tensors()
    save_file({name: weights[name] for name in ("large", "odd")}, tmp_path / "model-00000.safetensors")
    save_file({name: weights[name] for name in ("empty", "scalar")}, tmp_path / "model-00001.safetensors")
    assert folder_fingerprint(tmp_path) == fingerprint(weights.items())


def test_a_model_has_the_fingerprint_of_its_own_files(tiny_model, untied_model):
    assert model_fingerprint(str(tiny_model)) == folder_fingerprint(tiny_model)
    assert model_fingerprint(str(tiny_model)) != model_fingerprint(str(untied_model))
