"""The gradient of each term of the loss at the checkpoints: how large it is, and where it points.

The terms of one loss may pull in different directions, or one may be so small that it does not count (the
coarse and the fine signal of the paper's equation 4). The probe batch of a checkpoint is the step that was
trained from it, as the ledger has it; for the last checkpoint, which no step follows, it is the last step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from algorithms import Algorithm, Completion, Group, PolicyOutput
from srft_ray.commands.analysis import scoring
from srft_ray.config.algorithm import make_algorithm
from srft_ray.config.schema import Config
from srft_ray.observe.ledger_reading import files_by_step, read_step
from srft_ray.observe.page_groups import spread
from srft_ray.train.batching import MicroBatch, cut, trained_sequences
from srft_ray.train.policy_model import PolicyModel

TOTAL = "all terms"
# What a single pass of the policy and of a reference gives. Values of sequences, KLs over the vocabulary and
# teachers need the parts of a learner.
SUPPORTED = frozenset({"reference", "mean_entropy", "entropy_gradient"})
BATCH_TOKENS = 4096  # of a micro-batch; the gradient does not depend on it


def term_gradients(
    run_dir: Path,
    config: Config,
    checkpoints: Mapping[int, Path | str],
    most: int,
) -> list[dict[str, Any]]:
    """One row for each checkpoint and term, and one for their sum.

    Columns: loss, norm of the gradient before clipping, its cosine with the sum of all terms, and with each
    other term. Empty if a term needs what only a learner has.

    Args:
        checkpoints: model directories by step.
        most: checkpoints that are looked at, evenly spaced with the first and the last.
    """
    files = files_by_step(run_dir)
    algorithm = make_algorithm(config.algorithm)
    rows: list[dict[str, Any]] = []
    for version in spread(sorted(checkpoints), most):
        step = min(version, max(files))
        if step not in files:
            continue
        stage = algorithm.stage(step, config.trainer.steps)
        if stage.algorithm.needs - SUPPORTED:
            continue
        groups = groups_of_step(files[step], step, config.rollout.max_new_tokens)
        micro_batches = cut(trained_sequences(groups), BATCH_TOKENS, step, stage.start)
        policy = Scorer(scoring.load(checkpoints[version]), _temperature(config, stage.algorithm))
        reference = None
        if "reference" in stage.algorithm.needs:
            path = config.learner.reference or config.model.path
            reference = Scorer(scoring.load(path), policy.temperature)
        losses, gradients = gradients_of(stage.algorithm, policy, micro_batches, reference)
        rows += [{"checkpoint": version, "step": step, **row} for row in compared(losses, gradients)]
    return rows


def _temperature(config: Config, algorithm: Algorithm) -> float:
    """That of the learner: of sampling, or 1 where nothing is sampled."""
    return config.rollout.temperature if algorithm.uses_rollouts else 1.0


def groups_of_step(files: Sequence[Path], step: int, max_new_tokens: int) -> list[Group]:
    """The groups of a step as the learner had them, from the ledger."""
    groups: dict[int, Group] = {}
    rows = read_step(files, step).to_pylist()
    rows.sort(key=lambda row: (row["group_id"], row["sample"]))
    for row in rows:
        number = row["group_id"]
        if number not in groups:
            prompt = row["prompt"]
            groups[number] = Group(step, number, prompt, row["prompt_ids"], row["reference"] or "")
            groups[number].max_new_tokens = max_new_tokens
        groups[number].completions.append(_completion(row))
    return list(groups.values())


def _completion(row: Mapping[str, Any]) -> Completion:
    # Tokens that the engine did not sample have no log-probs; learners take 0.
    known = row["logprobs"] or ()
    logprobs = row["logprobs"] and [value or 0.0 for value in known]
    foreign = [place for place, value in enumerate(known) if value is None and place >= row["prefix"]]
    return Completion(
        row["sample"],
        row["origin"],
        row["response"],
        row["response_ids"],
        logprobs,
        row["policy_version"],
        reward=row["reward"],
        verdict=row["verdict"],
        advantage=row["advantage"],
        prefix=row["prefix"],
        observed=[(place, place + 1) for place in foreign],
    )


class Scorer:
    """A model that gives log-probs and entropies of micro-batches as a learner's does."""

    def __init__(self, model: Any, temperature: float) -> None:
        self.policy = PolicyModel(model, None)
        self.device = model.device
        self.temperature = temperature
        self.parameters = [one for one in self.policy.parameters() if one.requires_grad]

    def __call__(self, micro_batch: MicroBatch, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the response tokens (B, T), in nats."""
        inputs = (micro_batch.input_ids_BL, micro_batch.rows_N, micro_batch.positions_N)
        logprobs_N, entropies_N = self.policy(*inputs, self.temperature, entropy_gradient)
        return micro_batch.align(logprobs_N), micro_batch.align(entropies_N)


def gradients_of(
    algorithm: Algorithm,
    policy: Scorer,
    micro_batches: Sequence[MicroBatch],
    reference: Scorer | None = None,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Loss and gradient of each term over the whole step, as if it were one update.

    Returns:
        losses, and gradients as one float32 vector of all parameters each, on the CPU.
    """
    names = list(algorithm.named_terms())
    local = [algorithm.counts(micro_batch.batch) for micro_batch in micro_batches]
    counts = {name: torch.stack([one[name] for one in local]).sum().to(policy.device) for name in names}
    mean_entropy = _mean_entropy(policy, micro_batches) if "mean_entropy" in algorithm.needs else None
    losses = dict.fromkeys(names, 0.0)
    gradients = dict.fromkeys(names, torch.zeros(()))
    for on_cpu in micro_batches:
        micro_batch = on_cpu.to(policy.device)
        logprobs_BT, entropies_BT = policy(micro_batch, "entropy_gradient" in algorithm.needs)
        reference_BT = None
        if reference is not None:
            with torch.no_grad():
                reference_BT = reference(micro_batch)[0]
        output = PolicyOutput(
            logprobs_BT, entropies_BT, reference_logprobs_BT=reference_BT, mean_entropy=mean_entropy
        )
        for name, loss in algorithm.losses(micro_batch.batch, output, counts).items():
            losses[name] += float(loss.detach())
            gradients[name] = gradients[name] + _gradient(loss, policy.parameters)
    return losses, gradients


def _gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """One vector; the graph is kept for the other terms."""
    if not loss.requires_grad:
        return torch.zeros(sum(one.numel() for one in parameters))
    found = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([one.flatten() for one in found]).float().cpu()


@torch.no_grad()
def _mean_entropy(policy: Scorer, micro_batches: Sequence[MicroBatch]) -> Tensor:
    """Over all rollout tokens of the step, a scalar."""
    total = torch.zeros((), device=policy.device)
    tokens = torch.zeros((), device=policy.device)
    for on_cpu in micro_batches:
        micro_batch = on_cpu.to(policy.device)
        batch = micro_batch.batch
        mask_BT = batch.mask_BT & ~batch.is_demo_B[:, None]
        total += (policy(micro_batch)[1] * mask_BT).sum()
        tokens += mask_BT.sum()
    return total / tokens.clamp(min=1)


def compared(losses: Mapping[str, float], gradients: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Norms and cosines; a cosine is None where a gradient is 0."""
    total = torch.stack(list(gradients.values())).sum(dim=0)
    every = {**gradients, TOTAL: total}
    rows = []
    for name, gradient in every.items():
        cosines = {f"cosine with {other}": cosine(gradient, one) for other, one in every.items()}
        loss = losses.get(name, sum(losses.values()))
        rows.append({"term": name, "loss": loss, "norm": float(gradient.norm()), **cosines})
    return rows


def cosine(first: Tensor, second: Tensor) -> float | None:
    lengths = float(first.norm()) * float(second.norm())
    return float(first @ second) / lengths if lengths > 0 else None
