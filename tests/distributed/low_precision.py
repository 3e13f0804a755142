"""What an update in bfloat16 should be: the same bfloat16 passes, everything that is summed in float64.

Activations, and the gradients that flow between layers, are those of the plain model, one sequence at a time.
The gradient of each weight is computed from them here, without the code under test.
"""

import copy
from collections import defaultdict
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from srft_ray.config.training import LearnerSection
from tests.distributed import harness, low_rank, one_page_critic
from tests.distributed.harness import Case, load


def reference(model_path: str, case: Case) -> dict[str, torch.Tensor]:
    """Weights and first moments after one step, float64, named as by `DeepSpeedEngine.state`."""
    model, frozen = (m.to(torch.bfloat16) for m in load(model_path))
    stage, learner, number = case.stage(0), case.learner(), case.updates(0)
    groups = case.make_groups(stage, 0)
    if case.lora:
        low_rank.with_adapter(model, learner.lora)
    old = copy.deepcopy(model) if number > 1 else None
    policy = Masters(model, learner, learner.lr)
    if stage.algorithm.uses_critic:
        values = Values(frozen, case.length)
        critic = Masters(values, learner, learner.critic_lr)
        values.give_credit(stage.algorithm, groups)
    for index in range(number):
        own = [group for group in groups if group.group_id % number == index]
        losses(model, old, frozen, case, stage, groups, own, number).backward()
        policy.step()
        if stage.algorithm.uses_critic:
            values.loss(stage.algorithm, own).backward()
            critic.step()
    found = policy.state()
    if stage.algorithm.uses_critic:
        found |= {f"critic|{name}": value for name, value in critic.state().items()}
    return found


class Masters:
    """The float64 weights behind a bfloat16 model, and their optimizer."""

    def __init__(self, model: nn.Module, learner: LearnerSection, lr: float) -> None:
        self.sums = collect(model)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: nn.Parameter(p.detach().double()) for name, p in self.trained.items()}
        self.largest_norm = learner.max_grad_norm
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=lr,
            betas=tuple(learner.betas),
            eps=learner.eps,
            weight_decay=learner.weight_decay,
        )

    @torch.no_grad()
    def step(self) -> None:
        """An update with the gradients since the last one."""
        for name, parameter in self.trained.items():
            if id(parameter) in self.sums:
                self.weights[name].grad = self.sums[id(parameter)].view_as(parameter)
        self.sums.clear()
        nn.utils.clip_grad_norm_(self.weights.values(), self.largest_norm)
        self.optimizer.step()
        for name, parameter in self.trained.items():
            parameter.copy_(self.weights[name])

    def state(self) -> dict[str, torch.Tensor]:
        updated = {name: p for name, p in self.weights.items() if p.grad is not None}
        moments = {f"{name}|exp_avg": self.optimizer.state[p]["exp_avg"] for name, p in updated.items()}
        return {f"{name}|weight": p.detach() for name, p in updated.items()} | moments


class Values(one_page_critic.Values):
    """The critic of one page in bfloat16, its sequences padded to one length."""

    def __init__(self, model: nn.Module, length: int) -> None:
        super().__init__(model)
        self.head.to(torch.bfloat16)
        self.length = length

    def forward(self, group, completion):
        ids, first = [*group.prompt_ids, *completion.ids], len(group.prompt_ids) - 1
        padded = torch.tensor([ids + [0] * (self.length - len(ids))])
        hidden = self.decoder(input_ids=padded, use_cache=False).last_hidden_state[0]
        return self.head(hidden[first : len(ids) - 1])[:, 0].float()


def collect(model: nn.Module) -> dict[int, torch.Tensor]:
    """Float64 gradients by the id of a parameter, complete after a backward pass."""
    sums = defaultdict(lambda: torch.zeros((), dtype=torch.float64))

    def observe(module, inputs, output):
        (given,) = inputs
        if output.requires_grad:
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


def losses(model, old, frozen, case, stage, everything, groups, number) -> torch.Tensor:
    """The loss of one of `number` updates; what a model says of a token is in float32, as in the learner.

    A sequence passes through a model once, whatever is computed from it.
    """
    passes = {}

    def distribution(of, group, completion, temperature, shown=None):
        key = id(of), id(completion), torch.is_grad_enabled(), shown is None
        if key not in passes:
            passes[key] = log_softmax(of, group, completion, case, temperature, shown)
        return passes[key]

    def forward(of, pairs, temperature):
        return score(of, pairs, temperature, distribution)

    def full_kl(of, known, pairs, temperature, shown=None):
        return whole_kl(of, known, pairs, temperature, distribution, shown)

    with patch.object(harness, "forward", forward), patch.object(harness, "full_kl", full_kl):
        found = harness.update_losses(model, old, frozen, case, stage, everything, groups, number)
    return sum(found.values())


def score(model, pairs, temperature, distribution):
    """(log-probs, entropies) of every response token, zeros where an environment wrote it and behind its
    end; one padded sequence at a time."""
    logprobs, entropies = [], []
    for group, c in pairs:
        logp = distribution(model, group, c, temperature)
        own = harness.written(c).to(logp.dtype)
        logprobs.append(logp[torch.arange(len(c.ids)), torch.tensor(c.ids)] * own)
        entropies.append(-(logp.exp() * logp).sum(-1) * own)
    return pad_sequence(logprobs, True), pad_sequence(entropies, True)


def whole_kl(model, known, pairs, temperature, distribution, shown):
    """KL of the two models' distributions at every response token; `shown` gives what only `known` sees."""
    found = []
    for group, c in pairs:
        logp = distribution(model, group, c, temperature)
        with torch.no_grad():
            logq = distribution(known, group, c, temperature, shown)
        found.append((logp.exp() * (logp - logq)).sum(-1))
    return pad_sequence(found, True)


def log_softmax(model, group, completion, case, temperature, shown):
    prompt_ids = group.prompt_ids if shown is None else shown(group)
    ids, first = [*prompt_ids, *completion.ids], len(prompt_ids) - 1
    padded = torch.tensor([ids + [0] * (case.length - len(ids))])
    logits = model(padded, use_cache=False).logits[0, first : len(ids) - 1].float()
    logits = logits if temperature == 1 else logits / temperature
    return AsInChunks.apply(logits) if case.logit_chunk_mb < 1 else logits.log_softmax(-1)


class AsInChunks(torch.autograd.Function):
    """log-softmax by the formulas of the chunked head, in float32.

    Its last bit is often another than that of PyTorch's kernel, and in one token of a thousand the gradient
    of the hidden state is then rounded to another bfloat16 number: both are right, and are not the same pass.
    """

    @staticmethod
    def forward(ctx, logits_TV):
        logp_TV = logits_TV - logits_TV.logsumexp(-1, keepdim=True)
        ctx.save_for_backward(logp_TV)
        return logp_TV

    @staticmethod
    def backward(ctx, gradient_TV):
        (logp_TV,) = ctx.saved_tensors
        return gradient_TV - logp_TV.exp() * gradient_TV.sum(-1, keepdim=True)
