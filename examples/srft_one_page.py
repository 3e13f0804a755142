"""The loss of SRFT (arXiv 2506.19767) on one page, in float64 torch, from logits, without the library.

Run it to see the values for a demonstration and two rollouts over a vocabulary of four tokens.
"""

import torch

NAMES = ("sft_demo", "rl_demo", "rl_positive", "rl_negative")


def srft_loss(groups):
    """The four terms of Eq. 13 by name, float64 scalars; their sum is the loss.

    `groups` has one list per prompt, of sequences as `sequence` makes them.
    """
    sums = dict.fromkeys(NAMES, torch.zeros((), dtype=torch.float64))
    demo_tokens = rollout_tokens = 0
    for group in groups:
        rewards = torch.tensor([sequence["reward"] for sequence in group], dtype=torch.float64)
        for sequence in group:
            log_pi_TV = torch.log_softmax(sequence["logits"], -1)
            chosen_T = log_pi_TV[torch.arange(len(log_pi_TV)), torch.tensor(sequence["tokens"])]
            # H: the mean over the sequence's own tokens, without gradient.
            entropy_T = -(log_pi_TV.exp() * log_pi_TV).sum(-1)
            entropy = entropy_T.mean().detach()
            if sequence["demo"]:
                demo_tokens += len(chosen_T)
                # Eq. 8
                w_sft = 0.5 * torch.exp(-entropy)
                sums["sft_demo"] = sums["sft_demo"] - (w_sft * chosen_T).sum()
                if len(rewards) > 1:
                    # Eq. 7, over rollouts and demonstration; Eq. 9 and 10 with π_β = 1
                    advantage = (sequence["reward"] - rewards.mean()) / (rewards.std() + 1e-6)
                    sums["rl_demo"] = sums["rl_demo"] - (advantage * chosen_T.exp()).sum()
            else:
                rollout_tokens += len(chosen_T)
                if sequence["reward"] > 0.5:
                    # Eq. 12, first half
                    w_rl = 0.1 * torch.exp(entropy)
                    sums["rl_positive"] = sums["rl_positive"] - (w_rl * chosen_T).sum()
                else:
                    # Eq. 12, second half
                    sums["rl_negative"] = sums["rl_negative"] + chosen_T.sum()
    counts = {name: demo_tokens if "demo" in name else rollout_tokens for name in NAMES}
    return {name: sums[name] / max(1, counts[name]) for name in NAMES}


def sequence(logits, tokens, reward, demo=False):
    """A sequence of T tokens: logits (T, V) float64, T token ids, a reward, whether it is a demonstration."""
    logits = torch.tensor(logits, dtype=torch.float64)
    return {"logits": logits, "tokens": tokens, "reward": reward, "demo": demo}


if __name__ == "__main__":
    demonstration = sequence([[2, 0, -1, 0], [0, 1, 0, -1], [0.5, 0.5, 0, 0]], [0, 1, 2], 1, demo=True)
    correct = sequence([[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]], [0, 1, 3], 1)
    wrong = sequence([[0, 0, 1, 0], [0, 0, 0, 3]], [2, 3], 0)
    terms = srft_loss([[correct, wrong, demonstration]])
    for name, value in terms.items():
        print(f"{name:12} {value:+.8f}")
    print(f"{'loss':12} {sum(terms.values()):+.8f}")
