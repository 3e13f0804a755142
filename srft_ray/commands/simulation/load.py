"""How many calls a run makes at its coordinator, by arithmetic."""

from srft_ray.sync.health import heartbeat_interval_s

# Seconds of CPU that the coordinator's process takes for a call, most of them in Ray: an estimate from short
# runs of `srft-ray scale --simulate` with up to 200 engines, on 2 virtual cores of an Intel Xeon.
CALL_S = 0.5e-3


def calls_per_s(engines: int, blocks_per_step: int, step_s: float, stall_timeout_s: float) -> float:
    """Calls per second of so many engines; those of learners are few.

    Each block is admitted once, and each engine that has a block asks for the new weights. This holds while
    no admission waits for longer than a call may take.
    """
    heartbeats = engines / heartbeat_interval_s(engines, stall_timeout_s)
    of_step = blocks_per_step + min(engines, blocks_per_step)
    return heartbeats + of_step / step_s
