"""What every column of the ledgers means, as data. docs/metrics.md is made from it."""

from collections.abc import Mapping
from typing import NamedTuple


class Entry(NamedTuple):
    """Meaning and unit of a key; the unit of a text, a list or a mere number is empty."""

    meaning: str
    unit: str = ""


Table = Mapping[str, Entry]

LEDGER: dict[str, Entry] = {
    "step": Entry("The optimizer step that the sequence entered."),
    "group_id": Entry("Position of the prompt in the seeded order."),
    "sample": Entry("Number of the sequence within its group."),
    "origin": Entry("`rollout`, `demo`, or `replay`: a rollout of an earlier step, trained on again."),
    "prompt": Entry("The prompt with its template."),
    "response": Entry("The response. A character that no file can hold (a lone surrogate) is `?`."),
    "prompt_ids": Entry("Token ids of the prompt."),
    "response_ids": Entry("Token ids of the response."),
    "logprobs": Entry(
        "The engine's log-prob of each response token; null for tokens of a prefix or of an environment, and "
        "for demonstrations.",
        "nats",
    ),
    "reward": Entry("What the verifier gave; 1 for demonstrations."),
    "verdict": Entry("`match`, `mismatch`, `no_answer`, `timeout` or `error`; `given` for demonstrations."),
    "answer": Entry("The answer as the verifier extracted it; null if it found none."),
    "reference": Entry("The reference answer."),
    "advantage": Entry("The credit of the sequence."),
    "policy_version": Entry(
        "Optimizer steps behind the weights that sampled it, the oldest if there are several; -1 for "
        "demonstrations."
    ),
    "seed": Entry("Seed of its sampling; -1 for demonstrations."),
    "finish_reason": Entry(
        "`stop`, `length` if it was truncated, `turns` if it reached rollout.max_turns, or `error` if the "
        "environment failed; `given` for demonstrations."
    ),
    "prefix": Entry("How many leading tokens come from a demonstration.", "tokens"),
    "attempt": Entry("Groups without signal that were discarded before this one took their place.", "groups"),
    "row": Entry("Number of the prompt among the prepared rows."),
    "spans": Entry(
        "With rollout.in_flight: the versions that sampled it, in order, each with its first token; null if "
        "one version sampled all."
    ),
}

TOKEN_LEDGER: dict[str, Entry] = {
    "learner_logprobs": Entry(
        "With ledger.tokens: the log-prob of each response token by the policy at the beginning of the "
        "update that the sequence entered.",
        "nats",
    ),
    "entropies": Entry("With ledger.tokens: the entropy of that policy at each response token.", "nats"),
    "ratios": Entry(
        "With ledger.tokens: the importance ratio of each sampled token, that policy over the one that "
        "sampled it; null for demonstrations, prefixes and what an environment wrote."
    ),
    "weights": Entry(
        "With ledger.tokens: for each term by name the weight of each token, as the update used it; null "
        "where the term does not select the token."
    ),
}

EVALUATION_LEDGER: Table = {
    "set": Entry("Name of the evaluation set."),
    "step": Entry("Optimizer steps done before the evaluation."),
    "prompt_id": Entry("Number of the prompt in the set, from 0 in the order of its file."),
    "sample": Entry("Number of the response among those to the prompt."),
    "group_id": Entry(
        "Number of the group in the set. It is `prompt_id`, unless each sample has a prompt of its own, with "
        "its options in another order."
    ),
    "seed": Entry("Seed of its sampling."),
    "policy_version": Entry("Optimizer steps behind the weights that sampled it."),
    "prompt": Entry("The prompt with its template."),
    "response": Entry("The response. A character that no file can hold (a lone surrogate) is `?`."),
    "prompt_ids": Entry("Token ids of the prompt."),
    "response_ids": Entry("Token ids of the response."),
    "logprobs": Entry(
        "The engine's log-prob of each response token; null for what an environment wrote.", "nats"
    ),
    "reward": Entry("What the verifier gave."),
    "verdict": Entry("`match`, `mismatch`, `no_answer`, `timeout` or `error`."),
    "reason": Entry("How the verifier came to it, in a few words; may be empty."),
    "answer": Entry("The answer as the verifier extracted it; null if it found none."),
    "reference": Entry("The reference answer."),
    "finish_reason": Entry(
        "`stop`, `length` if it was truncated, or `turns` or `error` where an environment ended it."
    ),
    "seconds": Entry(
        "From the start to the end of the generation of its block of prompts; nearly 0 where an earlier run "
        "of the series had sampled the evaluation of the model that both begin with.",
        "seconds",
    ),
}
