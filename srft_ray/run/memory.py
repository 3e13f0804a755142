"""Memory of a learner on its device, from shapes alone.

Every term is what must be there, so that a sum is a lower bound: what a kernel needs for itself, and what is
lost between the blocks of an allocator, is not counted. All figures are bytes. P is the number of parameters,
N that of learners, w the bytes of one weight (2 in bfloat16, 4 in float32).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from srft_ray.config.training import LearnerSection
from srft_ray.run.model_shape import FLOAT32, ModelShape
from srft_ray.train.chunks import PIECE_BYTES
from srft_ray.train.logprobs import chunk_tokens

GIB = 2**30
MOMENTS = 8  # two float32 numbers of each parameter
CUDA_CONTEXT = GIB // 2  # of one process: about this much, whatever it computes
# What DeepSpeed takes unless `learner.deepspeed` says otherwise, in elements (deepspeed/runtime/zero/config).
ZERO_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "max_live_parameters": 1_000_000_000,
    "sub_group_size": 1_000_000_000,
}


@dataclass(frozen=True)
class LearnerSetting:
    """What decides a learner's memory beside the model.

    Attributes:
        w: bytes of a weight.
        tokens: of the largest micro-batch.
        recomputed: whether activations are recomputed.
        reference: whether there is a reference model.
        critic: whether there is a critic.
        second_moments: whether updates of buffered groups have moments of their own.
        compared: whether terms need the gradient of entropies, or divergences over the whole vocabulary.
        cuda: whether the device is a GPU.
        async_checkpoints: whether checkpoints are written from a copy of their content.
    """

    learner: LearnerSection
    learners: int
    w: int
    tokens: int
    recomputed: bool = False
    reference: bool = False
    critic: bool = False
    second_moments: bool = False
    compared: bool = False
    cuda: bool = True
    async_checkpoints: bool = False

    @property
    def zero(self) -> Mapping[str, Any]:
        given = self.learner.deepspeed.get("zero_optimization", {})
        return {**ZERO_DEFAULTS, **{key.removeprefix("stage3_"): value for key, value in given.items()}}

    @property
    def of_critic(self) -> "LearnerSetting":
        """Of the critic's own states, which come beside those of the policy."""
        return replace(self, reference=False, critic=False, second_moments=False, async_checkpoints=False)

    @property
    def alone(self) -> bool:
        """One learner gathers and exchanges nothing."""
        return self.learners == 1

    @property
    def stage(self) -> int:
        """In bfloat16 ZeRO 0 runs as ZeRO 1 (`deepspeed_config`)."""
        return max(1, self.learner.zero_stage) if self.w == 2 else self.learner.zero_stage


@dataclass(frozen=True)
class LearnerMemory:
    """Terms of one learner's memory, on its device unless said otherwise.

    ZeRO divides the optimizer's state over the learners from stage 1, gradients from stage 2, and weights
    from stage 3 (arXiv 1910.02054, section 3). What is kept twice was measured with DeepSpeed 0.19
    (`benchmarks/plan_memory.py`).

    Attributes:
        weights: P w. Under ZeRO 3 the share, and what is gathered: up to `max_live_parameters`.
        master: float32 weights. DeepSpeed copies its share in float32 too, unless it does not divide it.
        moments: Adam's two.
        gradients: their float32 sum over micro-batches (`weight_gradients`).
        reference: the weights of the reference model, divided as those of the policy.
        critic: weights, master, moments and gradients of the critic, which are about those of the policy.
        buckets: in which gradients are reduced, in float32.
        activations: of the largest micro-batch.
        head: two float32 matrices of the head's size for its gradient, and two of a chunk of tokens times the
            vocabulary (`chunked_logprobs`), four where terms compare distributions.
        step: what only the optimizer's step needs, when activations are gone; the bucket of ZeRO 3 stays.
        context: of CUDA.
        host: in CPU memory: what `offload_optimizer` and `offload_param` move there, and the copy of a
            checkpoint that is written in the background.
    """

    weights: int
    master: int
    moments: int
    gradients: int
    reference: int
    critic: int
    buckets: int
    activations: int
    head: int
    step: int
    context: int
    host: int

    @property
    def states(self) -> int:
        """What is there all the time."""
        lasting = (self.weights, self.master, self.moments, self.gradients, self.reference, self.critic)
        return sum(lasting) + self.context

    @property
    def peak(self) -> int:
        """The backward pass of a micro-batch when it begins, or the optimizer's step."""
        return self.states + max(self.buckets + self.activations + self.head, self.step)

    @classmethod
    def of(cls, shape: ModelShape, setting: LearnerSetting) -> "LearnerMemory":
        """The memory of each of the learners."""
        trained = replace(shape, parameters=shape.trained)
        own = share(shape.trained, setting.learners)
        offload = setting.learner.offload_optimizer
        divided = setting.stage >= 1
        master = FLOAT32 * own if divided else 0
        moments = MOMENTS * (own if divided else shape.trained) * (2 if setting.second_moments else 1)
        weights, weights_on_host = _weights(shape, setting, share(shape.parameters, setting.learners))
        gradients, gradients_on_host = _gradients(trained, setting, own)
        tokens = min(setting.tokens, chunk_tokens(max(1, shape.vocabulary), setting.learner.logit_chunk_mb))
        matrices = 4 if setting.compared else 2
        of_token = shape.activations(setting.w, setting.recomputed)
        host = weights_on_host + gradients_on_host
        if offload:
            host += master + moments
            master = moments = 0
        # All of a critic is trained, also beside adapters.
        critic = cls.of(replace(shape, adapters=None), setting.of_critic) if setting.critic else None
        if setting.async_checkpoints:
            host += _checkpoint(shape, setting, own)
        head_gradient = 0 if shape.adapters else 2 * shape.hidden
        return cls(
            weights=weights,
            master=master,
            moments=moments,
            gradients=gradients,
            reference=weights if setting.reference else 0,
            critic=critic.states - critic.context if critic else 0,
            buckets=_buckets(trained, setting),
            activations=setting.tokens * of_token,
            head=FLOAT32 * shape.vocabulary * (head_gradient + matrices * tokens),
            step=_step(trained, setting, own),
            context=CUDA_CONTEXT if setting.cuda else 0,
            host=host + (critic.host if critic else 0),
        )


def share(number: int, parts: int) -> int:
    return -(-number // parts)


def _weights(shape: ModelShape, setting: LearnerSetting, own: int) -> tuple[int, int]:
    """(on the device, in CPU memory)."""
    if setting.stage < 3:
        return setting.w * shape.parameters, 0
    live = min(shape.parameters, setting.zero["max_live_parameters"])
    if "offload_param" in setting.zero:
        return setting.w * live, setting.w * own
    return setting.w * (own if setting.alone else own + live), 0


def _gradients(shape: ModelShape, setting: LearnerSetting, own: int) -> tuple[int, int]:
    """(on the device, in CPU memory)."""
    whole, share = FLOAT32 * shape.parameters, FLOAT32 * own
    if not setting.learner.offload_optimizer:
        return (whole if setting.stage < 2 else share), 0
    if setting.stage == 3:
        return 0, 2 * share
    # With bfloat16 weights the sum stays on the device; else it has a place of its own in CPU memory. The new
    # weights pass through a buffer there.
    passing = setting.w * own
    if setting.w == 2:
        return (whole if setting.stage == 1 else share), share + passing
    return (whole if setting.stage == 1 else 0), 2 * share + passing


def _checkpoint(shape: ModelShape, setting: LearnerSetting, own: int) -> int:
    """A learner's part of a checkpoint: the float32 state, and pieces of the model, or all of a small one."""
    state = (FLOAT32 + MOMENTS * (2 if setting.second_moments else 1)) * own
    if setting.critic:
        state += (FLOAT32 + MOMENTS) * share(shape.parameters, setting.learners)
    model = setting.w * shape.parameters
    return state + max(min(model, PIECE_BYTES), share(model, setting.learners))


def _made(shape: ModelShape, setting: LearnerSetting) -> int:
    """Elements of a bucket. On CPU a page that is never written takes no memory."""
    size = setting.zero["reduce_bucket_size"]
    return size if setting.cuda else min(shape.parameters, size)


def _buckets(shape: ModelShape, setting: LearnerSetting) -> int:
    made = _made(shape, setting)
    exchanged = 0 if setting.alone else min(shape.parameters, setting.zero["reduce_bucket_size"])
    if setting.stage == 3:
        # One in which gradients are collected, and a copy in the order of the ranks.
        return FLOAT32 * (made + exchanged)
    if setting.stage == 2 or (setting.stage == 1 and (setting.w == 4 or setting.learner.offload_optimizer)):
        return FLOAT32 * made * (2 if setting.zero.get("overlap_comm") else 1)
    return FLOAT32 * exchanged  # without ZeRO's own buckets gradients are copied to be reduced


def _step(shape: ModelShape, setting: LearnerSetting, own: int) -> int:
    """Copies of gradients, and on CPU the two matrices that Adam makes of a flat tensor."""
    bucket = FLOAT32 * _made(shape, setting) if setting.stage == 3 else 0
    if setting.stage == 0 or setting.learner.offload_optimizer:
        return bucket
    adam = 0 if setting.cuda else 2 * FLOAT32 * own
    if setting.stage == 3:
        return bucket + FLOAT32 * min(own, setting.zero["sub_group_size"]) + adam
    return max(adam, 0 if setting.w == 2 else FLOAT32 * own)
