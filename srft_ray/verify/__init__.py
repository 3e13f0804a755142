"""Verifiers, and the pool of bounded processes in which they judge what a model wrote.

It may import `models`, `config` and what these may import, but neither `data` nor `sync`.
"""

from srft_ray.verify.pool import VerifierFailed, VerifierPool
from srft_ray.verify.verifier import Item, Verdict, resolve

__all__ = ["Item", "Verdict", "VerifierFailed", "VerifierPool", "resolve"]
