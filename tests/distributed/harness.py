"""Optimizer steps on the real DeepSpeed engine with several ranks, and the same in float64 in one process."""

import copy
import gc
import os
import pickle
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing import set_forkserver_preload
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import AutoModelForCausalLM

from algorithms import Algorithm, Batch, Completion, Group, PolicyOutput, Schedule, SequenceRecord, Stage
from srft_ray.config.schedule import updates_per_step, weight_decay
from srft_ray.config.training import LearnerSection, LoraSection
from tests.distributed import low_rank, one_page_critic
from tests.distributed.one_page_critic import written

ZERO = {  # settings of DeepSpeed that a user may add, by a name for tests
    "": {},
    "small buckets": {"reduce_bucket_size": 500, "allgather_bucket_size": 500, "overlap_comm": False},
    "parameters offloaded": {"offload_param": {"device": "cpu"}, "sub_group_size": 1000},
    "parameters kept": {"param_persistence_threshold": 1000, "prefetch_bucket_size": 0},
    "secondary partition": {"zero_hpz_partition_size": 2},
}

# Ranks are forked from a process that has imported what takes seconds; it computes nothing itself.
set_forkserver_preload(["srft_ray.train.worker"])


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
    mini_batches: int = 1
    packing: bool = False
    clip: bool = False  # at half the largest gradient norm
    lr: float = 0.1
    dtype: torch.dtype = torch.float32
    groups: int = 4
    length: int | None = None  # tokens to which every sequence is padded; None: as the learner does it
    zero: str = ""  # of ZERO
    lora: int | None = None  # rank of adapters, which are trained in the place of the model
    norm: float = 1.0  # the largest gradient norm of the case; see `calibrated`

    def learner(self) -> LearnerSection:
        """An eps of the size of the gradient's elements.

        The update is then about proportional to the gradient, so that errors of the gradient are seen in the
        parameters, and rounding noise of zero gradients is not made large by Adam.
        """
        norm = self.norm / 2 if self.clip else self.norm
        return LearnerSection(
            lr=self.lr,
            eps=0.1 * norm,
            zero_stage=self.zero_stage,
            micro_batch_tokens=self.micro_batch_tokens,
            weight_decay=0.01,
            offload_optimizer=self.offload,
            deepspeed={"zero_optimization": ZERO[self.zero]},
            max_grad_norm=norm if self.clip else 1e9,
            logit_chunk_mb=self.logit_chunk_mb,
            packing=self.packing,
            mini_batches=self.mini_batches,
            critic_lr=self.lr / 2,
            lora=LoraSection(self.lora, alpha=4.0),
        )

    def stage(self, step: int) -> Stage:
        """The algorithm's stage with the learning rate of `learner`."""
        stage = self.algorithm.stage(step, self.steps)
        own = stage.schedule
        return replace(stage, schedule=Schedule(mini_batches=own.mini_batches, weight_decay=own.weight_decay))

    def make_groups(self, stage: Stage, step: int) -> list[Group]:
        return make_groups(stage, step, self.groups)

    def updates(self, step: int) -> int:
        return updates_per_step(self.learner(), self.stage(step))


def make_groups(stage: Stage, step: int, count: int = 4, rollouts: int = 3) -> list[Group]:
    """Groups of uneven lengths: some without demonstration, one with two, some all wrong or all right."""
    rng, algorithm = random.Random(step), stage.algorithm
    groups = []
    for group_id in range(count):
        group = Group(
            step,
            group_id,
            "",
            [rng.randrange(3, 90) for _ in range(rng.randrange(1, 9))],
            "",
            max_new_tokens=24,
            num_rollouts=rollouts,
        )
        for extra in range((1, 0, 2, 1)[group_id % 4]):
            ids = [rng.randrange(3, 90) for _ in range(rng.randrange(2, 20))]
            group.completions.append(Completion(rollouts + extra, "demo", "", ids))
        for sample in range(rollouts):
            ids = [rng.randrange(3, 90) for _ in range(rng.randrange(1, 14))]
            own = random.Random(f"{step}/{group_id}") if algorithm.shares_prefix else rng
            prefix = algorithm.prefix(group, sample, step - stage.start, own)
            # An environment wrote two tokens in the middle of the longer ones.
            observed = [(prefix + 2, prefix + 4)] if len(ids) > 6 else []
            if prefix:
                ids = group.demonstrations[0].ids[:prefix] + ids
            logprobs = [0.0] * prefix + [-rng.random() * 4 for _ in ids[prefix:]]
            for first, end in observed:
                logprobs[first:end] = [0.0] * (end - first)
            group.completions.append(
                Completion(
                    sample,
                    "rollout",
                    "",
                    ids,
                    logprobs,
                    step - 1,
                    seed=100 * group_id + sample,
                    reward=float(rng.random() < (0.4, 0.4, 0.0, 0.6)[group_id % 4]),
                    prefix=prefix,
                    observed=observed,
                    finish_reason="length" if rng.random() < 0.2 else "stop",
                )
            )
        if algorithm.replay_age and group_id % 2:
            group.completions.append(make_replay(step, rng))
        algorithm.assign_credit(group)
        groups.append(group)
    return groups


def make_replay(step: int, rng: random.Random) -> Completion:
    """A correct rollout of an earlier step."""
    ids = [rng.randrange(3, 90) for _ in range(rng.randrange(1, 14))]
    return Completion(9, "replay", "", ids, [-rng.random() * 4 for _ in ids], step - 3, reward=1.0)


def load(path: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(policy, a reference model near it), float32."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, near(model)


def near(model: torch.nn.Module) -> torch.nn.Module:
    """A copy whose weights are a little different."""
    near, noise = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in near.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
    return near


def calibrated(model_path: str, case: Case) -> Case:
    """The case with the largest gradient norm of its updates."""
    norms: list[float] = []
    reference(model_path, replace(case, clip=False, norm=1.0), norms)
    return replace(case, norm=max(norms))


def reference(model_path: str, case: Case, norms: list[float] | None = None) -> dict[str, torch.Tensor]:
    """The parameters after the case's steps: float64, one process, a whole update at a time, no engine.

    Gradient norms before clipping are added to `norms`.
    """
    model, frozen = (m.double() for m in load(model_path))
    learner = case.learner()
    values = one_page_critic.Values(frozen) if case.algorithm.uses_critic else None
    if case.lora:
        low_rank.parametrize(model, load(model_path)[0], learner.lora)
    for step in range(case.steps):
        stage, number = case.stage(step), case.updates(step)
        if step == stage.start:
            optimizer = torch.optim.AdamW(model.parameters(), **_adam(learner, stage))
            if values:
                adam = {**_adam(learner, stage), "lr": learner.critic_lr}
                critic_optimizer = torch.optim.AdamW(values.parameters(), **adam)
        rate = stage.algorithm.reference_rate(step - stage.start)
        for name, own in frozen.named_parameters():
            own.data += rate * (low_rank.effective(model, name) - own.data)
        old = copy.deepcopy(model)
        groups = case.make_groups(stage, step)
        if values:
            values.give_credit(stage.algorithm, groups)
        if step == 0:
            waiting, second = [], torch.optim.AdamW(model.parameters(), **_adam(learner, stage))
        for index in range(number):
            optimizer.zero_grad()
            losses = update_losses(
                model,
                old if number > 1 else None,
                frozen,
                case,
                stage,
                groups,
                [g for g in groups if g.group_id % number == index],
                number,
            )
            sum(losses.values()).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), learner.max_grad_norm)
            if norms is not None:
                norms.append(float(norm))
            optimizer.step()
            if values:
                critic_optimizer.zero_grad()
                own = [g for g in groups if g.group_id % number == index]
                values.loss(stage.algorithm, own).backward()
                torch.nn.utils.clip_grad_norm_(values.parameters(), learner.max_grad_norm)
                critic_optimizer.step()
        waiting += [group for group in groups if stage.algorithm.buffers(group)]
        size = stage.algorithm.buffer_size
        if size and len(waiting) >= size:
            _buffered_update(model, second, case, stage, waiting[:size])
            waiting = waiting[size:]
    found = {name: low_rank.effective(model, name) for name in frozen.state_dict()} | low_rank.matrices(model)
    if values:
        found |= {f"critic|{name}": value.detach() for name, value in values.state_dict().items()}
    return {name: value.clone() for name, value in found.items()}


def _adam(learner, stage):
    decay = weight_decay(learner, stage)
    return {"lr": learner.lr, "betas": tuple(learner.betas), "eps": learner.eps, "weight_decay": decay}


def _buffered_update(model, optimizer, case, stage, groups):
    """One update on the demonstrations alone, at temperature 1, with an optimizer of its own."""
    chosen = [replace(group, completions=group.demonstrations) for group in groups]
    for group in chosen:
        group.completions = [replace(completion, trained=True) for completion in group.completions]
    separate = replace(stage, algorithm=stage.algorithm.buffered())
    plain = replace(case, temperature=1.0)
    optimizer.zero_grad()
    losses = update_losses(model, None, None, plain, separate, chosen, chosen, 1)
    sum(losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), case.learner().max_grad_norm)
    optimizer.step()


def update_losses(model, old, frozen, case, stage, everything, groups, number):
    pairs = [(g, c) for g in groups for c in g.trained]
    logprobs_BT, entropies_BT = forward(model, pairs, case.temperature)
    if "entropy_gradient" not in stage.algorithm.needs:
        entropies_BT = entropies_BT.detach()
    with torch.no_grad():
        old_BT = None if old is None else forward(old, pairs, case.temperature)[0]
        reference_BT = (
            forward(frozen, pairs, case.temperature)[0] if "reference" in stage.algorithm.needs else None
        )
        own = [(g, c) for g in everything for c in g.trained if c.origin == "rollout"]
        needs_mean = "mean_entropy" in stage.algorithm.needs
        mean = (
            forward(old or model, own, case.temperature)[1].sum() / sum(int(written(c).sum()) for _, c in own)
            if needs_mean
            else None
        )
    kl = None
    if "reference_kl" in stage.algorithm.needs:
        kl = full_kl(model, frozen, pairs, case.temperature)
    completions = [c for _, c in pairs]
    mask, prefix, behavior = (
        torch.zeros(logprobs_BT.shape, dtype=kind) for kind in (torch.bool, torch.bool, torch.float64)
    )
    for row, c in enumerate(completions):
        mask[row, : len(c.ids)] = written(c)
        prefix[row, : c.prefix] = True
        if c.logprobs is not None:
            behavior[row, : len(c.ids)] = torch.tensor(c.logprobs, dtype=torch.float32).double()
    batch = Batch(
        mask,
        torch.tensor([c.origin == "demo" for c in completions]),
        torch.tensor([c.reward for c in completions], dtype=torch.float32).double(),
        torch.tensor([c.advantage for c in completions], dtype=torch.float32).double(),
        behavior,
        groups[0].step - stage.start,
        groups[0].max_new_tokens,
        prefix,
        is_replay_B=torch.tensor([c.origin == "replay" for c in completions]),
    )
    if stage.algorithm.uses_critic:
        batch.token_advantages_BT = one_page_critic.padded([c.measured["advantages"] for c in completions])
    if "values" in stage.algorithm.needs:
        sums = {}
        for row, (group, c) in enumerate(pairs):
            sums[group.group_id, c.sample] = (
                float(logprobs_BT[row].detach().double().sum()),
                0.0 if reference_BT is None else float(reference_BT[row].double().sum()),
            )
        values = _values(stage.algorithm, everything, number, sums)
        own = [values[group.group_id, c.sample] for group, c in pairs]
        batch.values = {name: torch.tensor([v[name] for v in own]).to(logprobs_BT.dtype) for name in own[0]}
        if "advantages" in own[0]:
            batch.advantages_B = batch.values["advantages"]
    taught = None
    if "teacher_kl" in stage.algorithm.needs:
        taught = full_kl(model, model, pairs, case.temperature, shown)
    policy = PolicyOutput(logprobs_BT, entropies_BT, old_BT, reference_BT, mean, kl, taught)
    if "token_scores" in stage.algorithm.needs:
        scores = stage.algorithm.score(batch, policy)[batch.mask_BT & ~batch.is_demo_B[:, None]]
        for name, value in stage.algorithm.cutoffs(scores.double()).items():
            batch.values[name] = torch.full((len(pairs),), value, dtype=torch.float64)
    return stage.algorithm.losses(batch, policy)


def _values(algorithm, everything, number, sums):
    """{(group, sample): {name: value}}; float64."""
    records = [
        SequenceRecord(
            g.group_id,
            c.sample,
            c.origin,
            g.group_id % number,
            int(written(c).sum()),
            c.prefix,
            c.reward,
            c.advantage,
            c.trained,
            *(sums.get((g.group_id, c.sample), (0.0, 0.0))),
            c.seed,
        )
        for g in everything
        for c in sorted(g.completions, key=lambda c: c.sample)
    ]
    found = algorithm.sequence_values(records)
    return {
        (r.group_id, r.sample): {name: figures[i] for name, figures in found.items()}
        for i, r in enumerate(records)
    }


def forward(model, pairs, temperature):
    """(log-probs, entropies) of every response token, zeros where an environment wrote it and behind its end;
    one sequence at a time."""
    longest = max(len(c.ids) for _, c in pairs)
    logprobs, entropies = [], []
    for group, c in pairs:
        n = len(c.ids)
        logp = (
            model(torch.tensor([[*group.prompt_ids, *c.ids]])).logits[0, len(group.prompt_ids) - 1 : -1]
            / temperature
        ).log_softmax(-1)
        padding = logp.new_zeros(longest - n)
        own = written(c).to(logp.dtype)
        logprobs.append(torch.cat([logp[torch.arange(n), torch.tensor(c.ids)] * own, padding]))
        entropies.append(torch.cat([-(logp.exp() * logp).sum(-1) * own, padding]))
    return torch.stack(logprobs), torch.stack(entropies)


def shown(group):
    """The prompt with a demonstration as its answer, and the prompt again."""
    prompt = list(group.prompt_ids)
    return [*prompt, *group.demonstrations[0].ids, *prompt]


def full_kl(model, frozen, pairs, temperature, context=lambda group: group.prompt_ids):
    """KL(model‖frozen) at every response token, zeros behind its end; one sequence at a time."""
    longest, found = max(len(c.ids) for _, c in pairs), []
    for group, c in pairs:
        logp, known = (
            (
                each(torch.tensor([[*before, *c.ids]])).logits[0, len(before) - 1 : -1] / temperature
            ).log_softmax(-1)
            for each, before in ((model, group.prompt_ids), (frozen, context(group)))
        )
        known = known.detach()
        kl = (logp.exp() * (logp - known)).sum(-1)
        found.append(torch.cat([kl, kl.new_zeros(longest - len(c.ids))]))
    return torch.stack(found)


def _cases(rank, world, model_path, cases, faults):
    template, frozen = load(model_path)
    outcomes = []
    for number, case in enumerate(cases):
        with faults[number](template) if faults else nullcontext():
            found = _steps(rank, world, case, copy.deepcopy(template), copy.deepcopy(frozen))
        if rank == 0:  # the others have the same, and nobody asks them
            outcomes.append(found)
    return outcomes


def _steps(rank, world, case, model, frozen):
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.learner import Learner
    from srft_ray.train.reference import ReferenceModel

    if case.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    model = model.to(case.dtype)
    adapter = low_rank.with_adapter(model, case.learner().lora) if case.lora else None
    engine = DeepSpeedEngine(model, case.learner(), case.dtype, adapter)
    known = (
        ReferenceModel(frozen.to(case.dtype), case.learner(), case.dtype, engine.device)
        if case.algorithm.uses_reference
        else None
    )
    critic = make_critic(frozen, case, engine) if case.algorithm.uses_critic else None
    learner = Learner(engine, case.learner(), parity_threshold=1e9, reference=known, critic=critic)
    for step in range(case.steps):
        stage = case.stage(step)
        groups = case.make_groups(stage, step)[rank::world]
        with padded_to(case.length):
            metrics = learner.step(groups, step, stage, case.temperature)
    # In bfloat16 the weights of the forward pass are rounded; an update is seen in the float32 weights behind
    # them, and in Adam's first moment, which is a tenth of the gradient.
    is_float32 = case.dtype == torch.float32
    found = {n: value.detach().clone() for n, value in (engine.weights() if is_float32 else engine.state())}
    if case.lora and is_float32:
        found |= {name: value.detach().clone() for name, value in engine.tensors.changed()}
    if critic:
        found |= {f"critic|{name}": value.detach().clone() for name, value in critic.engine.weights()}
    engine.close()
    return found, metrics


def make_critic(model: torch.nn.Module, case: Case, policy):
    """A critic that begins as the model, with a head that is not zero."""
    from srft_ray.train.critic import Critic, CriticEngine, value_layers

    layers = value_layers(copy.deepcopy(model))
    with torch.no_grad():
        layers["head"].weight.copy_(one_page_critic.head(layers["head"].weight.shape[-1]))
    learner = case.learner()
    return Critic(CriticEngine(layers.to(case.dtype), learner, case.dtype), learner.critic_lr, policy)


@contextmanager
def padded_to(length: int | None):
    """Every micro-batch has so many tokens in a row, whatever its longest sequence; None changes nothing."""
    from srft_ray.train import teachers
    from srft_ray.train.batching import Layout

    if length is None:
        yield
        return
    make, shown = Layout.padded, teachers.shown_demonstrations

    def padded(micro_batch):
        ids_BL, *rest = shown(micro_batch)
        return torch.nn.functional.pad(ids_BL, (0, length - ids_BL.shape[1])), *rest

    with (
        patch.object(Layout, "padded", lambda lengths_B: replace(make(lengths_B), length=length)),
        patch.object(teachers, "shown_demonstrations", padded),
    ):
        yield


def run(
    model_path: str, world: int, cases: list[Case], faults: Sequence[Callable] = ()
) -> list[tuple[dict[str, torch.Tensor], dict[str, float]]]:
    """(parameters, last metrics) of every case, all on `world` ranks.

    `faults[i](model)` is a context that breaks something in case i.
    """
    return spawn(world, _cases, str(model_path), cases, faults)


def spawn(world: int, function: Callable, *arguments):
    """What `function(rank, world, *arguments)` returns on rank 0, of `world` processes in one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        shared = world, port, function, arguments, results
        mp.start_processes(_in_group, shared, nprocs=world, start_method="forkserver")
        return pickle.loads(results[0])


def _in_group(rank, world, port, function, arguments, results):
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
    )
    torch.set_num_threads(1)
    gc.freeze()  # ZeRO 3 collects garbage at every start: only its own
    from srft_ray.train.deepspeed_import import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    outcome = function(rank, world, *arguments)
    if rank == 0:
        results[0] = pickle.dumps(outcome)  # as bytes: a shared tensor takes a file descriptor each
    dist.destroy_process_group()


def difference(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference of any parameter relative to its tensor's largest value; infinity if absent."""
    if actual.keys() != expected.keys():
        return float("inf")
    return max(
        float((actual[name].double() - expected[name]).abs().max() / expected[name].abs().max())
        for name in expected
    )
