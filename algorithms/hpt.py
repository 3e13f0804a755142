"""HPT: RL or SFT for each prompt, as its rollouts turn out."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.base import limited
from algorithms.rl_sft import RLWithSFTLoss
from algorithms.term import Norm
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class HPT(RLWithSFTLoss):
    """Hybrid post-training: a prompt with pass rate P > γ is trained by RL on its rollouts, else by SFT on its demonstration

    RL is Dr.GRPO with a clip of 0.2 on both sides and an entropy bonus of 0.001. γ is 0 for Qwen and 2/8 for Llama. A
    prompt without demonstration is always trained by RL. Each part is a mean over its own prompts, however few: RL over
    their sequences times rollout.max_new_tokens, SFT over the tokens of their demonstrations. Deviations: these counts
    are those of the whole update, not of a micro-batch, where the code divides RL by the maximal length alone; the
    update is never skipped by gradient norm.
    """

    name: ClassVar[str] = "hpt"
    paper: ClassVar[str] = "arXiv 2509.04419"
    gamma: float = limited(0.0, least=0, most=1)
    correct_above: float = 0.5
    standardize: bool = False
    norm: Norm = "sequence_mean_constant"

    def trains_on(self, group: Group, completion: Completion) -> bool:
        supervised = group.pass_rate(self.correct_above) <= self.gamma and bool(group.demonstrations)
        return (completion.origin == "demo") == supervised and super().trains_on(group, completion)
