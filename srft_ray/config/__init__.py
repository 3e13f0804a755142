"""The config: sections, YAML and overrides, and all checks that need nothing but the config.

It may import `algorithms`, `srft_ray.plugins` and `srft_ray.errors`, and no other room.
"""
