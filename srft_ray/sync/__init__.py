"""What learners and engines share: policy versions and staleness, health of engines, transport of weights.

It may import `models`, `config`, `plugins` and `errors`, but neither `data` nor `verify`.
"""
