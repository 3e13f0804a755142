"""HPT: RL or SFT for each prompt, depending on the pass rate of its rollouts."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.rl_sft import RLWithSFTLoss
from algorithms.settings import limited
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class HPT(RLWithSFTLoss):
    """Hybrid post-training: RL on the rollouts of a prompt if its pass rate is above γ, else SFT

    RL is Dr.GRPO without a clip and with an entropy bonus of 0.001 over all tokens, as in the scripts; the
    paper's text has a clipped surrogate (set clip_low and clip_high to 0.2). γ is 0 for Qwen and 2/8 for
    Llama. A prompt without demonstration is always trained by RL. Each part is a mean over its own prompts,
    however few: the RL part is divided by its B sequences times rollout.max_new_tokens, the SFT part by the
    tokens of its demonstrations. Deviations: these counts are those of the whole update. The authors' code
    divides RL by the maximal length alone and adds the means of micro-batches for SFT, so that RL has
    B/(D·K) times the proportion that it has here, with D ranks and K micro-batches per rank that hold a
    demonstration. No update is skipped because of its gradient norm. The authors' repository was not
    available: this follows third-party readings of its scripts.
    """

    name: ClassVar[str] = "hpt"
    paper: ClassVar[str] = "arXiv 2509.04419"
    gamma: float = limited(0.0, least=0, most=1)
    correct_above: float = 0.5

    def trains_on(self, group: Group, completion: Completion) -> bool:
        hard = group.pass_rate(self.correct_above) <= self.gamma
        supervised = hard and bool(group.demonstrations)
        is_demo = completion.origin == "demo"
        return is_demo == supervised and super().trains_on(group, completion)
