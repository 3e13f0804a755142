"""What learners and engines share: policy versions and staleness, health of engines, transport of weights.

It may import `models`, `config` and what these may import, but neither `data` nor `verify`.
"""
