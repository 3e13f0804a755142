"""Packed sequences have the log-probs, entropies and gradients of padded ones, in several architectures.

`tests/distributed/test_packing.py` has whole updates of all algorithms."""

import pytest
import torch
from torch import Tensor, nn

from algorithms import SRFT, Completion, Group
from srft_ray.train.batching import MicroBatch, cut, trained_sequences
from srft_ray.train.policy_model import PolicyModel
from tests.distributed.harness import make_groups
from tests.unit.test_logprobs import make_model

KINDS = ("Qwen2", "Qwen3", "Llama", "Gemma", "Gemma2", "Gemma3Text")
ROOM = 120  # tokens of a micro-batch


def architecture(kind: str) -> nn.Module:
    """A tiny random model; a window of attention, where there is one, is shorter than most sequences.

    What a new model fills with zeros (biases, Gemma's norms) has numbers, as in every trained model. Left at
    zero, such a tensor would be one update after the first step, and in a bias of keys nearly all of a
    gradient cancels: of all algorithms in all architectures, three then differ by 1.1e-6 to 3.4e-6 of the
    update.
    """
    windowed = kind.startswith(("Gemma2", "Gemma3"))
    model = make_model(kind, {"sliding_window": 9} if windowed else {})
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def micro_batches(packing: bool) -> list[MicroBatch]:
    return cut(trained_sequences(make_groups(SRFT().stage(0, 1), 0)), ROOM, 0, packing=packing)


def scores(model: nn.Module, packing: bool) -> tuple[dict[tuple[int, int], Tensor], dict[str, Tensor]]:
    """Log-probs and entropies by group and sample, and gradients by parameter."""
    policy = PolicyModel(model, logit_chunk_mb=64)
    policy.zero_grad()
    found = {}
    for each in micro_batches(packing):
        options = (True, (), False, each.position_ids_BL)
        figures = policy(each.input_ids_BL, each.rows_N, each.positions_N, 1.0, *options)
        logprobs_BT, entropies_BT = (each.align(values_N) for values_N in figures)
        (logprobs_BT.cos().sum() + entropies_BT.sin().sum()).backward()
        for row, (group, completion) in enumerate(each.sequences):
            length = len(completion.ids)
            own = torch.stack([logprobs_BT[row, :length], entropies_BT[row, :length]])
            found[group.group_id, completion.sample] = own.detach()
    return found, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_padded(kind: str) -> None:
    """In float64: only the order of sums may differ. Gemma's norms are summed in float32 in any format."""
    model = architecture(kind).double()
    padded, packed = scores(model, False), scores(model, True)
    assert padded[0].keys() == packed[0].keys()
    for key, expected in padded[0].items():
        assert (packed[0][key] - expected).abs().max() <= 1e-12 * expected.abs().max().clamp(min=1), key
    for name, expected in padded[1].items():
        limit = 1e-6 if "norm" in name and kind.startswith("Gemma") else 1e-12
        assert (packed[1][name] - expected).abs().max() <= limit * expected.abs().max(), name


def test_without_positions_the_sequences_of_a_row_see_each_other() -> None:
    """The comparison above can fail."""
    packed = next(each for each in micro_batches(True) if len(each.sequences) > len(each.input_ids_BL))
    policy = PolicyModel(make_model("Llama", {}), logit_chunk_mb=64)
    inputs = (packed.input_ids_BL, packed.rows_N, packed.positions_N, 1.0, True, (), False)
    apart, together = policy(*inputs, packed.position_ids_BL)[0], policy(*inputs, None)[0]
    assert (apart - together).abs().max() > 0.1


def test_packing_keeps_every_sequence_once_and_saves_padding() -> None:
    padded, packed = micro_batches(False), micro_batches(True)
    for batches in (padded, packed):
        keys = [(g.group_id, c.sample) for each in batches for g, c in each.sequences]
        assert len(keys) == len(set(keys)) == len(trained_sequences(make_groups(SRFT().stage(0, 1), 0)))
        assert all(each.input_ids_BL.numel() <= ROOM for each in batches)
    sizes = [sum(each.input_ids_BL.numel() for each in batches) for batches in (padded, packed)]
    assert sizes[1] < sizes[0]


def test_positions_begin_again_with_each_sequence() -> None:
    group = Group(0, 0, "", [7, 8], "")
    sequences = [(group, Completion(n, "rollout", "", [10 + n] * size)) for n, size in enumerate((5, 1, 2))]
    (packed,) = cut(sequences, 14, 0, packing=True)
    assert packed.position_ids_BL is not None
    assert packed.input_ids_BL.tolist() == [[7, 8, 10, 10, 10, 10, 10], [7, 8, 12, 12, 7, 8, 11]]
    assert packed.position_ids_BL.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 0, 1, 2]]
    assert packed.input_ids_BL[packed.rows_N, packed.positions_N].tolist() == [10] * 5 + [12] * 2 + [11]
    (short,) = cut(sequences[1:], 4, 0, packing=True)[:1]
    assert short.position_ids_BL is not None and short.position_ids_BL.tolist() == [[0, 1, 2, 3]]


def test_padding_behind_packed_sequences_is_a_sequence_of_its_own() -> None:
    group = Group(0, 0, "", [7], "")
    sequences = [(group, Completion(n, "rollout", "", [9] * size)) for n, size in enumerate((5, 2))]
    (packed,) = cut(sequences, 12, 0, packing=True)
    assert packed.position_ids_BL is not None
    assert packed.position_ids_BL[1].tolist() == [0, 1, 2, 0, 1, 2]
