"""The learners: their entry under Ray Train, one exact update on DeepSpeed, checkpoints.

It may import `data`, `sync`, `verify`, `observe` and what these may import, but not `rollout`; only
the files `deepspeed_*` import deepspeed.
"""
