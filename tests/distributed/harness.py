"""Runs one optimizer step on the real DeepSpeed engine with several ranks, and the same step in float64 in one process."""
import copy
import os
import random
import socket
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import AutoModelForCausalLM

from algorithms import Algorithm, Batch, Completion, Group, PolicyOutput
from srft_ray.config import LearnerSection


@dataclass(frozen=True)
class Case:
    algorithm: Algorithm
    zero_stage: int = 0
    micro_batch_tokens: int = 64
    offload: bool = False
    steps: int = 1
    temperature: float = 1.0
    logit_chunk_mb: float = 64  # 0.01: chunks of ten tokens
    activation_checkpointing: bool = False

    def learner(self) -> LearnerSection:
        """A large eps: gradients that are zero in exact arithmetic (key biases) would be rounding noise made large by Adam."""
        return LearnerSection(lr=1e-3, eps=1e-3, zero_stage=self.zero_stage, micro_batch_tokens=self.micro_batch_tokens,
                              offload_optimizer=self.offload, weight_decay=0.01, max_grad_norm=0.05, logit_chunk_mb=self.logit_chunk_mb)


def make_groups(algorithm: Algorithm, step: int, count: int = 4, rollouts: int = 3) -> list[Group]:
    """Groups of uneven lengths: some without demonstration, one with two, some all wrong or all right."""
    chance = random.Random(step)
    groups = []
    for group_id in range(count):
        group = Group(step, group_id, "", [chance.randrange(3, 90) for _ in range(chance.randrange(1, 9))], "")
        for sample in range(rollouts):
            ids = [chance.randrange(3, 90) for _ in range(chance.randrange(1, 14))]
            group.completions.append(Completion(sample, "rollout", "", ids, [-chance.random() * 4 for _ in ids], step - 1,
                                                reward=float(chance.random() < 0.4)))
        for extra in range((1, 0, 2, 1)[group_id % 4]):
            ids = [chance.randrange(3, 90) for _ in range(chance.randrange(2, 20))]
            group.completions.append(Completion(rollouts + extra, "demo", "", ids))
        for completion, advantage in zip(group.completions, algorithm.advantages(group), strict=True):
            completion.advantage = advantage
        groups.append(group)
    return groups


def reference(model_path: str, case: Case) -> dict[str, torch.Tensor]:
    """The parameters after the case's steps: float64, one process, all sequences in one batch, nothing of the engine."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64).eval()
    learner = case.learner()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learner.lr, betas=tuple(learner.betas), eps=learner.eps, weight_decay=learner.weight_decay)
    for step in range(case.steps):
        optimizer.zero_grad()
        sum(_losses(model, case, make_groups(case.algorithm, step), step).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), learner.max_grad_norm)
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _losses(model, case, groups, step):
    pairs = [(g.prompt_ids, c) for g in groups for c in g.completions]
    longest = max(len(c.ids) for _, c in pairs)
    logprobs, entropies = torch.zeros(len(pairs), longest, dtype=torch.float64), torch.zeros(len(pairs), longest, dtype=torch.float64)
    behavior, mask = torch.zeros(len(pairs), longest, dtype=torch.float64), torch.zeros(len(pairs), longest, dtype=torch.bool)
    rows = []
    for row, (prompt, c) in enumerate(pairs):
        n = len(c.ids)
        logits = model(torch.tensor([[*prompt, *c.ids]])).logits[0, len(prompt) - 1:-1] / case.temperature
        logp = logits.log_softmax(-1)
        rows.append(torch.cat([logp[torch.arange(n), torch.tensor(c.ids)], logp.new_zeros(longest - n)]))
        entropies[row, :n] = -(logp.exp() * logp).sum(-1).detach()
        mask[row, :n] = True
        if c.logprobs is not None:
            behavior[row, :n] = torch.tensor(c.logprobs, dtype=torch.float32).double()
    logprobs = torch.stack(rows)
    completions = [c for _, c in pairs]
    batch = Batch(mask, torch.tensor([c.origin == "demo" for c in completions]),
                  torch.tensor([c.reward for c in completions], dtype=torch.float32).double(),
                  torch.tensor([c.advantage for c in completions], dtype=torch.float32).double(), behavior, step)
    return case.algorithm.losses(batch, PolicyOutput(logprobs, entropies))


def _rank(rank, world, port, model_path, cases, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    import deepspeed

    from srft_ray.engine_deepspeed import DeepSpeedEngine
    from srft_ray.learner import Learner
    deepspeed.init_distributed("gloo", verbose=False)
    template = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    for number, case in enumerate(cases):
        model = copy.deepcopy(template)
        if case.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
        engine = DeepSpeedEngine(model, case.learner(), torch.float32)
        learner = Learner(engine, case.learner(), parity_threshold=1e9)
        for step in range(case.steps):
            mine = make_groups(case.algorithm, step)[rank::world]
            metrics = learner.step(mine, step, replace(case.algorithm.stage(step, case.steps)), case.temperature)
        state = {name: value.detach().clone() for name, value in engine.weights()}
        if rank == 0:
            results[number] = (state, metrics)
    dist.destroy_process_group()


def run(model_path: str, world: int, cases: list[Case]) -> list[tuple[dict[str, torch.Tensor], dict[str, float]]]:
    """(parameters, last metrics) of every case, all on `world` ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (world, port, str(model_path), cases, results), nprocs=world)
        return [results[number] for number in range(len(cases))]


def difference(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference of any parameter relative to the largest value of its tensor."""
    assert actual.keys() == expected.keys()
    return max(float((actual[name].double() - expected[name]).abs().max() / expected[name].abs().max()) for name in expected)
