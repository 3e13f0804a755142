"""What every key of a run's records means, as data. docs/metrics.md is made from it.

The tables are dictionaries from a key to its meaning and its unit. A word in angle brackets stands for any
name: `loss/<term>` is the loss of each term of the algorithm.
"""

import re

from srft_ray.observe.ledger_reference import EVALUATION_LEDGER, LEDGER, TOKEN_LEDGER, Entry, Table

METRICS: Table = {
    "step": Entry("The optimizer step, from 0."),
    "policy_version": Entry("Optimizer steps behind the weights that the step began with; equal to `step`."),
    "loss": Entry("Sum of the losses of all terms."),
    "loss/<term>": Entry(
        "Loss of a term of the algorithm: its sum over the selected tokens of all ranks, divided by its "
        "global count."
    ),
    "count/<term>": Entry("The global count that divides the term's sum.", "tokens or sequences"),
    "weight/<term>": Entry("Mean weight of the tokens that the term selects."),
    "clipped/<term>": Entry("Share of the term's tokens whose importance ratio is clipped.", "0 to 1"),
    "entropy/rollout": Entry("Mean entropy of the policy on tokens of rollouts.", "nats per token"),
    "entropy/demo": Entry("Mean entropy of the policy on tokens of demonstrations.", "nats per token"),
    "ratio/mean": Entry(
        "Mean importance ratio of sampled tokens between the policy and the one before the step's first "
        "update. Only with several updates a step."
    ),
    "ratio/kl_old": Entry(
        "KL divergence of the policy from the one before the step's first update, estimated by r - 1 - log "
        "r. Only with several updates a step.",
        "nats per token",
    ),
    "parity/abs_logprob_diff": Entry(
        "Mean absolute difference between the learner's and the engine's log-probs of rollouts that this "
        "policy version sampled; null if there were none. Beyond learner.parity_threshold the run stops.",
        "nats",
    ),
    "parity/abs_logprob_diff_max": Entry("The largest of these differences.", "nats"),
    "parity/tokens": Entry("Tokens that were compared for it.", "tokens"),
    "parity/probe_abs_logprob_diff": Entry(
        "Largest mean absolute difference between the log-probs that an engine, after it loaded a version, "
        "and the learners, when they published it, give the tokens of a fixed sequence. Only "
        "with rollout.max_staleness above 0. Beyond learner.parity_threshold the run stops.",
        "nats",
    ),
    "steps/skipped_nonfinite": Entry(
        "1 if the step was skipped because its update was not finite (trainer.on_nonfinite), else 0."
    ),
    "grad_norm": Entry("Norm of the gradient before clipping; the mean over the updates of the step."),
    "lr": Entry("Learning rate of the step."),
    "micro_batches": Entry("Micro-batches of each rank in the step."),
    "tokens": Entry("Response tokens that entered the update.", "tokens"),
    "tokens/generated": Entry(
        "Tokens that the engines sampled for the step, those of discarded groups included.", "tokens"
    ),
    "tokens/per_second": Entry("`tokens` divided by `time/step`.", "tokens per second"),
    "operations": Entry(
        "Cost of the step by a stated formula: 6 operations for each parameter and token trained on, and 2 "
        "for each parameter and token generated.",
        "10^12 floating-point operations",
    ),
    "reward/mean": Entry("Mean reward of the rollouts; 0 without rollouts."),
    "length/mean": Entry("Mean length of the rollouts.", "tokens"),
    "length/truncated": Entry("Share of the rollouts that reached rollout.max_new_tokens.", "0 to 1"),
    "staleness/mean": Entry(
        "Mean number of optimizer steps between the policy that sampled a rollout and the one that is "
        "trained on it.",
        "steps",
    ),
    "staleness/mixed": Entry(
        "With rollout.in_flight: share of the rollouts that several versions sampled.", "0 to 1"
    ),
    "groups/all_correct": Entry("Groups whose rollouts all have the same reward, above 0.5.", "groups"),
    "groups/all_wrong": Entry("Groups whose rollouts all have the same reward, at most 0.5.", "groups"),
    "groups/passed_over": Entry(
        "Prompts that the algorithm did not keep because of their history, before those that were sampled.",
        "prompts",
    ),
    "buffer/groups": Entry("Groups that wait for an update of their own. Only with a buffer.", "groups"),
    "buffer/loss": Entry("Loss of the update on buffered demonstrations, in the steps that have one."),
    "buffer/grad_norm": Entry("Norm of its gradient before clipping."),
    "buffer/tokens": Entry("Response tokens that entered it.", "tokens"),
    "replay/kept": Entry(
        "Rollouts of earlier steps that may be trained on again. Only with `replay_age`, as those below.",
        "rollouts",
    ),
    "replay/sequences": Entry("Rollouts of earlier steps that the step trained on again.", "rollouts"),
    "replay/staleness_mean": Entry(
        "Mean number of optimizer steps between the policy that sampled such a rollout and the one that is "
        "trained on it; at most `replay_age` plus rollout.max_staleness.",
        "steps",
    ),
    "replay/staleness_max": Entry("The largest of these numbers.", "steps"),
    "critic/loss": Entry("Loss of the critic; the mean over the updates of the step. Only with a critic."),
    "critic/grad_norm": Entry("Norm of its gradient before clipping; the mean over these updates."),
    "critic/clipped": Entry("Share of tokens whose value was clipped; the mean over them.", "0 to 1"),
    "critic/value_mean": Entry("Mean value of the states before the step's rollout tokens."),
    "critic/return_mean": Entry("Mean of what the critic is to learn for them, advantage plus value."),
    "critic/explained_variance": Entry(
        "1 - Var(return - value) / Var(return) over the step's rollout tokens, before its updates; 0 if all "
        "returns are equal.",
        "at most 1",
    ),
    "groups/discarded": Entry("Groups without signal that other groups took the place of.", "groups"),
    "verdict/timeout_or_error": Entry("Rollouts whose verdict is `timeout` or `error`.", "rollouts"),
    "time/step": Entry(
        "Duration of the step, from the wait for its groups to its record, without `time/evaluation`.",
        "seconds",
    ),
    "time/recorded": Entry("When the step was recorded, as seconds since 1970-01-01 UTC.", "seconds"),
    "time/rollout_wait": Entry("Time in which the learners waited for the step's groups.", "seconds"),
    "time/learner": Entry("Duration of the update.", "seconds"),
    "time/publish": Entry("Duration of the publication of the new weights.", "seconds"),
    "time/evaluation": Entry(
        "Time in which the learners waited for the evaluation after `step` steps, scored its demonstrations "
        "and recorded it; 0 if there is none. With rollout.max_staleness above 0 engines sample it during "
        "the update, and the learners wait only for what is left of it then. The evaluation after the last "
        "step belongs to no step.",
        "seconds",
    ),
    "time/generation": Entry(
        "From the first start to the last end of generation of the step's groups; 0 without rollouts.",
        "seconds",
    ),
    "utilization/learner": Entry("`time/learner` divided by `time/step`.", "0 to 1"),
    "utilization/engine": Entry("`time/generation` divided by `time/step`, at most 1.", "0 to 1"),
    "learners": Entry("Learners that did the step."),
    "engines": Entry("Engines that were heard of in the last seconds."),
    "publications/unread": Entry(
        "Versions, since the start of the coordinator, that were replaced before any node of engines had "
        "their weights."
    ),
    "publications/nodes_reached": Entry(
        "Nodes to whose shared memory the collective transport brought the weights that the step published, "
        "before their engines asked for them; 0 if that failed, if it published none, or with another "
        "transport.",
        "nodes",
    ),
    "queue/depth": Entry("Groups that are ready and not yet taken by a learner.", "groups"),
}

EVALUATIONS: Table = {
    "step": Entry("Optimizer steps done before the evaluation; 0 is the model that the run began with."),
    "set": Entry("Name of the evaluation set, a key of evaluation.data."),
    "prompts": Entry("Prompts that were evaluated.", "prompts"),
    "samples": Entry("Responses sampled for each prompt, the k of avg@k and pass@k.", "responses"),
    "avg": Entry("avg@k: mean reward over all responses.", "percent"),
    "avg_interval": Entry("1.96 standard errors of `avg` over prompts.", "percentage points"),
    "avg_low": Entry(
        "Lower end of the 95 % interval of `avg` that also holds for few prompts: a studentized bootstrap "
        "over prompts, or Wilson's interval with one sample a prompt and where nearly all prompts are 0 or "
        "nearly all 1. NaN with one prompt.",
        "percent",
    ),
    "avg_high": Entry("Its upper end.", "percent"),
    "pass": Entry("pass@k: prompts with at least one response whose reward is above 0.5.", "percent"),
    "pass_interval": Entry("1.96 standard errors of `pass` over prompts.", "percentage points"),
    "pass_low": Entry("As `avg_low`, of `pass`.", "percent"),
    "pass_high": Entry("As `avg_high`, of `pass`.", "percent"),
    "maj": Entry(
        "maj@k: prompts whose most frequent answer is right; answers that tie share the prompt.", "percent"
    ),
    "length": Entry("Mean length of the responses.", "tokens"),
    "length_correct": Entry("Mean length of the right responses; null without any.", "tokens"),
    "length_wrong": Entry("Mean length of the wrong responses; null without any.", "tokens"),
    "truncated": Entry("Share of the responses that reached max_new_tokens.", "0 to 1"),
    "unanswered": Entry("Share of the responses in which the verifier found no answer.", "0 to 1"),
    "unjudged": Entry("Share of the responses whose verdict is `timeout` or `error`.", "0 to 1"),
    "entropy": Entry(
        "Minus the mean log-prob of the sampled tokens, which estimates the entropy at the evaluation's "
        "temperature.",
        "nats per token",
    ),
    "demo_loss": Entry(
        "The held-out loss: minus the mean log-prob of the tokens of the set's demonstrations, which are not "
        "trained on, at temperature 1. Absent if the set has none, and after `srft-ray evaluate`.",
        "nats per token",
    ),
    "demo_entropy": Entry("Mean entropy of the policy at these tokens.", "nats per token"),
}

CHECKPOINTS: Table = {
    "step": Entry("Optimizer steps behind the checkpoint."),
    "path": Entry("Its directory or address. It may have been removed since: see trainer.keep_checkpoints."),
    "time": Entry("When it was complete.", "seconds since 1970"),
}

EVENTS: Table = {
    "time": Entry("When it happened.", "seconds since 1970"),
    "kind": Entry("What it is about, such as `engine`, `learners`, `coordinator`, `checkpoint`, `callback`."),
    "message": Entry("One sentence."),
}

# Title, what a record is, and the table of each kind of record.
TABLES = (
    ("metrics.jsonl", "One line for each optimizer step. Figures are over all ranks.", METRICS),
    ("evaluations.jsonl", "One line for each evaluation of a set.", EVALUATIONS),
    ("checkpoints.jsonl", "One line for each complete checkpoint.", CHECKPOINTS),
    ("events.jsonl", "One line for each thing that happened to the run besides training.", EVENTS),
    (
        "groups/*.parquet (the ledger)",
        "One row for each sequence that entered an update.",
        LEDGER | TOKEN_LEDGER,
    ),
    (
        "evaluations/SET/step-N.parquet (the evaluation ledger)",
        "One row for each response that an evaluation sampled after N optimizer steps.",
        EVALUATION_LEDGER,
    ),
)


def find_entry(table: Table, key: str) -> Entry | None:
    """The entry of a key: its own, or that of the pattern that it fits; None if it has none."""
    if key in table:
        return table[key]
    fitting = (entry for pattern, entry in table.items() if _expression(pattern).fullmatch(key))
    return next(fitting, None)


def _expression(pattern: str) -> re.Pattern[str]:
    """The keys that a pattern stands for. Names of terms have no slash."""
    return re.compile(re.sub(r"<\w+>", r"[^/]+", pattern))


def metrics_markdown() -> str:
    """The page docs/metrics.md."""
    lines = [
        "# What a run records",
        "",
        "<!-- Generated from srft_ray/observe/metrics_reference.py: do not edit. -->",
        "",
        "The files are in the run directory. A word in angle brackets stands for any name, such as that "
        "of a term.",
        "An algorithm of your own may add figures: `<figure>/<term>` is the mean of a term's figure over "
        "its tokens.",
    ]
    for title, record, table in TABLES:
        lines += ["", f"## {title}", "", record, "", "| key | meaning | unit |", "|---|---|---|"]
        lines += [f"| `{key}` | {entry.meaning} | {entry.unit} |" for key, entry in table.items()]
    return "\n".join(lines) + "\n"
