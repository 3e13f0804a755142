"""CHORD with other weights of the SFT part, as tested in its paper."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import weights
from algorithms.chord import CHORD, CHORDPhi
from algorithms.term import PerToken


@dataclass(frozen=True)
class CHORDIS(CHORDPhi):
    """CHORD with SFT-IS: L = (1-μ) L_GRPO + μ E_demo[sg(π) · -log π], μ constant

    The weight π is that of DFT. Deviation: the same as that of CHORD-μ.
    """

    name: ClassVar[str] = "chord_is"

    def sft_weight(self) -> PerToken:
        return weights.product(weights.probability, CHORD.sft_weight(self))
