"""Whether the GPUs of single nodes are enough for what is to be placed on them."""

from collections.abc import Iterable, Mapping, Sequence

from srft_ray.errors import require

ROUNDING = 1e-6  # of sums of shares


def check_gpus(parts: Mapping[str, Sequence[float]], gpus_of_nodes: Sequence[float], run: str) -> None:
    """Refuses what Ray would try to place for ever.

    Args:
        parts: the GPUs, or the share of one, of each process, by the setting that decides them.
        run: what the run asks for, in words.

    Raises:
        UserError: the processes do not fit on the GPUs, or Ray would not find the way in which they do.
    """
    nodes = [gpus for gpus in gpus_of_nodes if gpus]
    has = ", ".join(f"{gpus:g}" for gpus in nodes)
    for setting, some in parts.items():
        part = max(some, default=0.0)
        require(
            part <= 1 or part == int(part), f"{setting}={part:g}: more than one GPU must be a whole number."
        )
        require(
            len(nodes) == 1 or not any(_misleads(part, int(gpus)) for gpus in nodes),
            f"{setting}={part:g}: Ray adds up the GPUs of a node, and on nodes of {has} GPUs it would try to "
            "place more such shares than fit on single GPUs. Use 1, 0.5, 0.25 or such.",
        )
    every = [part for some in parts.values() for part in some]
    require(
        fits(every, nodes),
        f"The run asks for {run}, of which one process takes up to {max(every):g} GPUs of a node. The nodes "
        f"have {has} GPUs: lower rollout.tensor_parallel, rollout.num_engines or learner.num_workers, or add "
        "nodes.",
    )


def _misleads(share: float, gpus: int) -> bool:
    """Whether more shares of a GPU seem to fit on a node, by the sum of its GPUs, than do."""
    return 0 < share < 1 and int(gpus / share + ROUNDING) > gpus * int(1 / share + ROUNDING)


def fits(parts: Iterable[float], gpus_of_nodes: Iterable[float]) -> bool:
    """Whether parts can be placed: a share on one GPU, several whole GPUs on one node.

    The largest part first, on the first node and GPU with room. That finds a way if there is one, as long as
    each size divides the next larger one.
    """
    nodes = [[1.0] * int(gpus) for gpus in gpus_of_nodes]
    return all(_take(part, nodes) for part in sorted(parts, reverse=True))


def _take(part: float, nodes: Iterable[list[float]]) -> bool:
    """Takes the part from what is left of each GPU of each node; False if there is no room."""
    number, share = max(1, round(part)), min(1.0, part)
    for left in nodes:
        free = [i for i, room in enumerate(left) if room + ROUNDING >= share]
        if len(free) >= number:
            for i in free[:number]:
                left[i] -= share
            return True
    return False
