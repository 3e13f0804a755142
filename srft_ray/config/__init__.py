"""The config: sections, YAML and overrides, and `resolve`, which refuses what the config alone shows to be wrong.

It may import `algorithms`, `srft_ray.plugins` and `srft_ray.errors`, and no other room.
"""
