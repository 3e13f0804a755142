"""How many calls a run makes at its coordinator, by arithmetic."""

import math

from srft_ray.commands.pipeline_model import Setting
from srft_ray.commands.simulation.job import ENGINES_PER_NODE
from srft_ray.sync.health import heartbeat_interval_s

# Seconds of CPU that the coordinator's process takes for a call, most of them in Ray: measured by `srft-ray
# scale --simulate` with 1,000 engines in steps of their true length, on 2 virtual cores of an Intel Xeon.
CALL_S = 1.1e-3


def calls_per_s(setting: Setting, blocks_per_step: int, step_s: float, stall_timeout_s: float) -> float:
    """Calls per second of the engines; those of learners are few.

    At staleness 0 the blocks of a step wait, and one of each node asks for all; otherwise they start when
    they come, and each asks. One engine of each node asks for the new weights. This holds while no admission
    waits for longer than a call may take.
    """
    engines = setting.engines
    heartbeats = engines / heartbeat_interval_s(engines, stall_timeout_s)
    nodes = math.ceil(min(engines, blocks_per_step) / ENGINES_PER_NODE)
    admissions = blocks_per_step if setting.staleness else nodes
    return heartbeats + (admissions + nodes) / step_s
