"""HPT: RL or SFT for each prompt, depending on the pass rate of its rollouts."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.rl_sft import RLWithSFTLoss
from algorithms.settings import limited
from algorithms.term import Norm
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class HPT(RLWithSFTLoss):
    """Hybrid post-training: RL on the rollouts of a prompt if its pass rate is above γ, else SFT

    RL is Dr.GRPO with a clip of 0.2 on both sides and an entropy bonus of 0.001. γ is 0 for Qwen and 2/8 for
    Llama. A prompt without demonstration is always trained by RL. Each part is a mean over its own prompts,
    however few: the RL part is divided by its sequences times rollout.max_new_tokens, the SFT part by the
    tokens of its demonstrations. Deviations: these counts are those of the whole update, not of a
    micro-batch, and the authors' code divides RL by the maximal length alone; no update is skipped because of
    its gradient norm.
    """

    name: ClassVar[str] = "hpt"
    paper: ClassVar[str] = "arXiv 2509.04419"
    gamma: float = limited(0.0, least=0, most=1)
    correct_above: float = 0.5
    standardize: bool = False
    norm: Norm = "sequence_mean_constant"

    def trains_on(self, group: Group, completion: Completion) -> bool:
        hard = group.pass_rate(self.correct_above) <= self.gamma
        supervised = hard and bool(group.demonstrations)
        is_demo = completion.origin == "demo"
        return is_demo == supervised and super().trains_on(group, completion)
