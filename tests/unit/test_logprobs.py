"""The chunked head computes what the model itself computes, also where logits are scaled or capped."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from srft_ray.train.logprobs import chunk_tokens
from srft_ray.train.policy_model import PolicyModel

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,
}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "gemma 2": ("Gemma2", {"final_logit_softcapping": 3.0}),
    "gemma 3": ("Gemma3Text", {"final_logit_softcapping": 2.0}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "cohere 2": ("Cohere2", {"logit_scale": 0.5}),
    "granite": ("Granite", {"logits_scaling": 4.0}),
}


def make_model(kind: str, settings: dict[str, Any]) -> nn.Module:
    import transformers

    sizes = {
        name: value
        for name, value in SIZES.items()
        if kind not in ("Cohere", "Granite") or name != "head_dim"
    }
    config = getattr(transformers, f"{kind}Config")(**sizes, **settings)
    name = "Gemma3ForCausalLM" if kind == "Gemma3Text" else f"{kind}ForCausalLM"
    torch.manual_seed(0)
    return getattr(transformers, name)(config).eval()


def inputs(temperature: float) -> tuple[Tensor, Tensor, Tensor, float, bool]:
    ids_BL = torch.randint(3, 97, (3, 12), generator=torch.Generator().manual_seed(1))
    rows_N, positions_N = (torch.ones(3, 9).nonzero() + torch.tensor([0, 3])).T
    return ids_BL, rows_N, positions_N, temperature, True


def gradients(policy: PolicyModel, temperature: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    policy.zero_grad()
    logprobs_N, entropies_N = policy(*inputs(temperature))
    weights_N = torch.linspace(-1, 1, len(logprobs_N), dtype=logprobs_N.dtype)
    (weights_N @ logprobs_N + weights_N.flip(0) @ entropies_N).backward()
    grads = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    return logprobs_N.detach(), entropies_N.detach(), grads


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_equal_the_models_own_logits(name: str, temperature: float) -> None:
    policy = PolicyModel(make_model(*FORMS[name]).double(), logit_chunk_mb=64)
    with policy.model_logits():
        expected = gradients(policy, temperature)
    for chunk_mb in (64, 4 * 97 * 5 / 2**20):  # all tokens at once; five tokens at a time
        policy.logit_chunk_mb = chunk_mb
        logprobs_N, entropies_N, grads = gradients(policy, temperature)
        assert torch.allclose(logprobs_N, expected[0], atol=1e-9)
        assert torch.allclose(entropies_N, expected[1], atol=1e-9)
        assert grads.keys() == expected[2].keys()
        for key, value in expected[2].items():
            assert (grads[key] - value).abs().max() <= 1e-6 * value.abs().max(), key


def test_a_form_changes_the_log_probs() -> None:
    """The comparison above can fail."""
    plain, capped = (make_model("Gemma2", {"final_logit_softcapping": cap}) for cap in (None, 3.0))
    capped.load_state_dict(plain.state_dict())
    found = [PolicyModel(model, 64)(*inputs(1.0))[0] for model in (plain, capped)]
    assert (found[0] - found[1]).abs().max() > 0.1


def test_the_default_chunk_has_384_tokens_or_64_mib() -> None:
    assert chunk_tokens(152_000, None) == 384
    assert chunk_tokens(1024, None) == 2**26 // 4096
    assert chunk_tokens(152_000, 64) == 110
