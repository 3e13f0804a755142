"""What an update in bfloat16 should be: the same bfloat16 passes, everything that is summed in float64.

Activations, and the gradients that flow between layers, are those of the plain model, one sequence at a time.
The gradient of each weight is computed from them here, without the code under test.
"""

from collections import defaultdict

import torch
from torch import nn

from algorithms import Batch, PolicyOutput
from tests.distributed.harness import Case, load


def reference(model_path: str, case: Case) -> dict[str, torch.Tensor]:
    """Weights and first moments after one update, float64, named as by `DeepSpeedEngine.state`."""
    model, frozen = (m.to(torch.bfloat16) for m in load(model_path))
    stage, learner = case.stage(0), case.learner()
    gradients = collect(model)
    losses(model, frozen, case, stage, case.make_groups(stage, 0)).backward()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    masters = {
        names[id(p)]: nn.Parameter(p.detach().double()) for p in model.parameters() if id(p) in gradients
    }
    for parameter in model.parameters():
        masters[names[id(parameter)]].grad = gradients[id(parameter)].view_as(parameter)
    nn.utils.clip_grad_norm_(masters.values(), learner.max_grad_norm)
    optimizer = torch.optim.AdamW(
        masters.values(),
        lr=learner.lr,
        betas=tuple(learner.betas),
        eps=learner.eps,
        weight_decay=learner.weight_decay,
    )
    optimizer.step()
    moments = {f"{name}|exp_avg": optimizer.state[p]["exp_avg"] for name, p in masters.items()}
    return {f"{name}|weight": p.detach() for name, p in masters.items()} | moments


def collect(model: nn.Module) -> dict[int, torch.Tensor]:
    """Float64 gradients by the id of a parameter, complete after a backward pass."""
    sums = defaultdict(lambda: torch.zeros((), dtype=torch.float64))

    def observe(module, inputs, output):
        (given,) = inputs
        output.register_hook(lambda gradient: add(module, given.detach(), gradient))

    def add(module, given, gradient):
        wide, parameter = gradient.double().flatten(0, -2), module.weight
        if isinstance(module, nn.Linear):
            sums[id(parameter)] = sums[id(parameter)] + wide.T @ given.double().flatten(0, -2)
            if module.bias is not None:
                sums[id(module.bias)] = sums[id(module.bias)] + wide.sum(0)
        elif isinstance(module, nn.Embedding):
            own = torch.zeros(parameter.shape, dtype=torch.float64).index_add(0, given.flatten(), wide)
            if module.padding_idx is not None:
                own[module.padding_idx] = 0
            sums[id(parameter)] = sums[id(parameter)] + own
        else:
            scale = torch.rsqrt(given.float().pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
            product = gradient * (given.float() * scale).to(torch.bfloat16)
            sums[id(parameter)] = sums[id(parameter)] + product.double().flatten(0, -2).sum(0)

    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)) or type(module).__name__.endswith("RMSNorm"):
            module.register_forward_hook(observe)
    return sums


def losses(model, frozen, case, stage, groups) -> torch.Tensor:
    """The loss of the whole update; what follows the logits is in float32, as in the learner."""
    algorithm = stage.algorithm
    pairs = [(g, c) for g in groups for c in g.trained]
    logprobs_BT, entropies_BT = score(model, pairs, case)
    if "entropy_gradient" not in algorithm.needs:
        entropies_BT = entropies_BT.detach()
    completions = [c for _, c in pairs]
    mask, prefix, behavior = (
        torch.zeros(logprobs_BT.shape, dtype=kind) for kind in (torch.bool, torch.bool, torch.float32)
    )
    for row, c in enumerate(completions):
        mask[row, : len(c.ids)] = True
        prefix[row, : c.prefix] = True
        if c.logprobs is not None:
            behavior[row, : len(c.ids)] = torch.tensor(c.logprobs)
    batch = Batch(
        mask,
        torch.tensor([c.origin == "demo" for c in completions]),
        torch.tensor([float(c.reward) for c in completions]),
        torch.tensor([float(c.advantage) for c in completions]),
        behavior,
        0,
        groups[0].max_new_tokens,
        prefix,
    )
    mean = None
    if "mean_entropy" in algorithm.needs:
        rollouts_BT = mask & torch.tensor([c.origin == "rollout" for c in completions])[:, None]
        mean = entropies_BT.detach().double()[rollouts_BT].mean()
    known_BT = None
    if "reference" in algorithm.needs:
        with torch.no_grad():
            known_BT = score(frozen, pairs, case)[0]
    return sum(
        algorithm.losses(batch, PolicyOutput(logprobs_BT, entropies_BT, None, known_BT, mean)).values()
    )


def score(model, pairs, case):
    """(log-probs, entropies) of every response token, zeros behind its end; one padded sequence at a time."""
    longest = max(len(c.ids) for _, c in pairs)
    logprobs, entropies = [], []
    for group, c in pairs:
        ids, first, count = [*group.prompt_ids, *c.ids], len(group.prompt_ids) - 1, len(c.ids)
        padded = torch.tensor([ids + [0] * (case.length - len(ids))])
        logits = model(padded, use_cache=False).logits[0, first : first + count].float()
        if case.temperature != 1:
            logits = logits / case.temperature
        logp = logits.log_softmax(-1)
        padding = logp.new_zeros(longest - count)
        logprobs.append(torch.cat([logp[torch.arange(count), torch.tensor(c.ids)], padding]))
        entropies.append(torch.cat([-(logp.exp() * logp).sum(-1), padding]))
    return torch.stack(logprobs), torch.stack(entropies)
