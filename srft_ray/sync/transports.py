"""The weight transports by name."""

from srft_ray.errors import UserError
from srft_ray.plugins import load_object
from srft_ray.sync.collective import CollectiveTransport
from srft_ray.sync.transport import ObjectStoreTransport, WeightTransport

BUILT_IN: dict[str, type[WeightTransport]] = {
    "object_store": ObjectStoreTransport,
    "collective": CollectiveTransport,
}


def transport_class(name: str) -> type[WeightTransport]:
    """The transport that rollout.transport names: a built-in one, or a class as `file.py:Class`.

    Raises:
        UserError: neither of the two, or the class cannot be loaded.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        raise UserError(f"rollout.transport is {name!r}: choose {', '.join(BUILT_IN)} or file.py:Class.")
    return load_object(name, "rollout.transport")
