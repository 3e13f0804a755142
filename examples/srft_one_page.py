"""The loss of SRFT (arXiv 2506.19767) on one page, in plain float64 torch, from logits. It shares nothing with the library.

Run it to see the values for a demonstration and two rollouts over a vocabulary of four tokens.
"""

import torch


def srft_loss(groups):
    """groups: one list per prompt of sequences {"logits": (T, V) float64, "tokens": (T,), "reward": float, "demo": bool}.

    Returns the four terms of Eq. 13; their sum is the loss.
    """
    sums = dict.fromkeys(
        ("sft_demo", "rl_demo", "rl_positive", "rl_negative"), torch.zeros((), dtype=torch.float64)
    )
    demo_tokens = rollout_tokens = 0
    for group in groups:
        rewards = torch.tensor([sequence["reward"] for sequence in group], dtype=torch.float64)
        for sequence in group:
            log_pi = torch.log_softmax(sequence["logits"], -1)
            chosen = log_pi[torch.arange(len(log_pi)), torch.tensor(sequence["tokens"])]
            entropy = (
                -(log_pi.exp() * log_pi).sum(-1).mean().detach()
            )  # H: mean over the sequence's own tokens; no gradient
            if sequence["demo"]:
                demo_tokens += len(chosen)
                w_sft = 0.5 * torch.exp(-entropy)
                sums["sft_demo"] = sums["sft_demo"] - (w_sft * chosen).sum()  # Eq. 8
                if len(rewards) > 1:  # Eq. 7, over rollouts and demonstration
                    advantage = (sequence["reward"] - rewards.mean()) / (rewards.std() + 1e-6)
                    sums["rl_demo"] = (
                        sums["rl_demo"] - (advantage * chosen.exp()).sum()
                    )  # Eq. 9 and 10 with π_β = 1
            else:
                rollout_tokens += len(chosen)
                if sequence["reward"] > 0.5:
                    w_rl = 0.1 * torch.exp(entropy)
                    sums["rl_positive"] = sums["rl_positive"] - (w_rl * chosen).sum()  # Eq. 12, first half
                else:
                    sums["rl_negative"] = sums["rl_negative"] + chosen.sum()  # Eq. 12, second half
    return {
        name: value / max(1, demo_tokens if "demo" in name else rollout_tokens)
        for name, value in sums.items()
    }


def sequence(logits, tokens, reward, demo=False):
    return {
        "logits": torch.tensor(logits, dtype=torch.float64),
        "tokens": tokens,
        "reward": reward,
        "demo": demo,
    }


if __name__ == "__main__":
    demonstration = sequence([[2, 0, -1, 0], [0, 1, 0, -1], [0.5, 0.5, 0, 0]], [0, 1, 2], 1, demo=True)
    correct = sequence([[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]], [0, 1, 3], 1)
    wrong = sequence([[0, 0, 1, 0], [0, 0, 0, 3]], [2, 3], 0)
    terms = srft_loss([[correct, wrong, demonstration]])
    for name, value in terms.items():
        print(f"{name:12} {value:+.8f}")
    print(f"{'loss':12} {sum(terms.values()):+.8f}")
