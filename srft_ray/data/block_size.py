"""How many groups a block of the stream holds, and how many blocks a stream."""

import math
from collections.abc import Sequence

from srft_ray.errors import UserError

UNEVEN = 1.1  # what an engine may have more than with blocks of one group: fewer blocks cost less
# Ray Data takes some 4 ms for each block, one after another (`srft-ray scale --simulate`): a step is not
# divided further for the sake of even shares.
MANY_BLOCKS = 256
# Of a block of an evaluation set, at most. An engine that has finished most sequences of a block samples the
# others in small batches: one of a few hundred is busy for a small part of its time only.
EVALUATED_SEQUENCES = 1024
# Ray Data holds the inputs of all tasks of an execution from its start on: a millisecond and 6 kB for each
# block (`benchmarks/long_runs.py`). A stream therefore ends after a step, the learners write a checkpoint,
# and the next stream begins, which takes as long as a start. Its blocks are as many as these steps have,
# within these bounds.
STREAM_STEPS = 100
STREAM_BLOCKS = (1_000, 20_000)


def block_size(given: int | None, per_learner: int, counts: Sequence[int], engines: int, wanted: int) -> int:
    """Groups of a block; `counts` are the groups of a step in each stage, `wanted` the blocks of a step.

    Blocks divide each learner's share, so that none spans two steps or two learners. They are as large as
    they can be if they are to be so many, and no engine is to have much more of a step than the others.

    Raises:
        UserError: the size that the user has given does not divide a learner's share.
    """
    if given is not None and per_learner % given:
        raise UserError(
            f"rollout.groups_per_task={given} must divide the {per_learner} groups that each learner takes "
            "in a step."
        )
    if given is not None:
        return given
    most = max(1, min(counts) // wanted)
    sizes = [size for size in range(1, most + 1) if per_learner % size == 0]
    sizes = [size for size in sizes if max(counts) // size <= MANY_BLOCKS] or sizes[-1:]
    even = [size for size in sizes if all(_is_even(size, groups, engines) for groups in counts)]
    return max(even, default=sizes[0])


def _is_even(block: int, groups: int, engines: int) -> bool:
    """Whether the engine with the most groups has about as few as if they were dealt out one by one."""
    most = block * math.ceil(groups / block / engines)
    return most <= UNEVEN * math.ceil(groups / engines)


def bundle_size(block: int, groups: int, samples: int, engines: int) -> int:
    """How many times as large as a block of training one of an evaluation set is.

    Engines share the set evenly, in blocks that are large, but not too large.

    Args:
        groups: prompts of the set.
        samples: responses to each.
    """
    blocks = max(engines, math.ceil(groups * samples / EVALUATED_SEQUENCES))
    return math.ceil(groups / blocks / block)


def blocks_of_stream(groups: int, block: int) -> int:
    """Most blocks of one stream, unless a single step has more; `groups` are those of the largest step."""
    least, most = STREAM_BLOCKS
    return min(most, max(least, STREAM_STEPS * groups // block))
