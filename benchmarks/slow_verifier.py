"""A verifier that answers late, as one that asks a server or runs tests."""

import time

from srft_ray.verify import task_verifier

SECONDS = 0.05

task_verifier.warm_up()


def verify(response: str, reference: str, metadata: dict):
    time.sleep(SECONDS)
    return task_verifier.verify(response, reference, metadata)
