"""The models beside the policy that an algorithm asks for: its reference and its critic."""

import torch

from srft_ray.train import parity
from srft_ray.train.critic import Critic, CriticEngine, value_layers
from srft_ray.train.deepspeed_engine import DeepSpeedEngine
from srft_ray.train.deepspeed_loading import load_for_learner
from srft_ray.train.job import Job
from srft_ray.train.learner import Learner
from srft_ray.train.model_checks import check_critic, check_model
from srft_ray.train.reference import ReferenceModel


def make_learner(job: Job, engine: DeepSpeedEngine, parity_threshold: float) -> Learner:
    """Raises UserError for a reference or critic with which the learner would compute wrongly."""
    settings, exact = job.learner, parity.THRESHOLDS[job.dtype]
    dtype = getattr(torch, job.dtype)
    reference = None
    if job.algorithm.uses_reference:
        frozen = load_for_learner(job.model, settings, dtype, settings.reference or job.model.path)
        reference = ReferenceModel(frozen, settings, dtype, engine.device)
        if settings.reference:
            check_model(reference, "learner.reference", exact, settings.packing)
    critic = None
    if job.algorithm.uses_critic:
        layers = value_layers(load_for_learner(job.model, settings, dtype, settings.critic or job.model.path))
        critic = Critic(CriticEngine(layers, settings, dtype), settings.critic_lr, engine)
        if settings.critic and settings.packing:
            check_critic(critic.engine, exact)
    return Learner(engine, settings, parity_threshold, reference, job.ledger_tokens, critic)
