"""One run: `fit`, its checks before the start, Ray itself, the run directory, and what the driver supervises.

It may import every room but `commands`; only `elasticity` touches internals of Ray.
"""
