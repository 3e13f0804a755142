"""Verifiers, and the judge that runs them on model output in bounded processes of their own."""

from srft_ray.verify.pool import VerifierPool
from srft_ray.verify.verifier import Item, Verdict, resolve

__all__ = ["Item", "VerifierPool", "Verdict", "resolve"]
