"""Verifiers, and the processes that run them on model output. May import errors, plugins and tasks."""

from srft_ray.verify.pool import VerifierFailed, VerifierPool
from srft_ray.verify.verifier import Item, Verdict, resolve

__all__ = ["Item", "Verdict", "VerifierFailed", "VerifierPool", "resolve"]
