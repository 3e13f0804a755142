"""Published benchmarks: which sets there are, how many rows each has, and which suites they make."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """One set.

    Attributes:
        title: in tables.
        aliases: what its file or folder is called, in lower case without other characters.
        rows: how many it has.
        samples: responses for each prompt in the papers' tables, the k of avg@k.
        is_choice: multiple choice; its answers are letters.
        known: beginnings of the checksums of copies that were compared with their source.
    """

    title: str
    aliases: tuple[str, ...]
    rows: int
    samples: int = 1
    is_choice: bool = False
    known: tuple[str, ...] = ()


BENCHMARKS = {
    "aime24": Benchmark(
        "AIME24",
        ("aime24", "aime2024"),
        30,
        32,
        known=("92c589548f2f3091",),
    ),
    "aime25": Benchmark(
        "AIME25",
        ("aime25", "aime2025"),
        30,
        32,
    ),
    "amc": Benchmark(
        "AMC",
        (
            "amc",
            "aimovalidationamc",
            "amc83",
            "amc22amc23",
        ),
        83,
        32,
    ),
    "amc23": Benchmark(
        "AMC23",
        ("amc23", "amc2023"),
        40,
        32,
        known=("1c9e5750ff67938c",),
    ),
    "math500": Benchmark(
        "MATH-500",
        ("math500", "math"),
        500,
        known=("9fdbecf698459c68",),
    ),
    "minerva": Benchmark(
        "Minerva",
        ("minerva", "minervamath"),
        272,
        known=("7cd1434e977ee834",),
    ),
    "olympiad": Benchmark(
        "Olympiad",
        (
            "olympiad",
            "olympiadbench",
            "olympiadbenchmath",
            "oetomathsencomp",
        ),
        675,
    ),
    "arc_c": Benchmark(
        "ARC-C",
        ("arcc", "arcchallenge"),
        1172,
        1,
        True,
        ("4260b45bf7fee3a0",),
    ),
    "gpqa_diamond": Benchmark(
        "GPQA-D",
        ("gpqadiamond", "gpqad", "gpqa"),
        198,
        1,
        True,
    ),
    "mmlu_pro": Benchmark(
        "MMLU-Pro",
        ("mmlupro",),
        12032,
        1,
        True,
    ),
}
IN_DISTRIBUTION = (
    "aime24",
    "amc",
    "math500",
    "minerva",
    "olympiad",
)
OUT_OF_DISTRIBUTION = ("arc_c", "gpqa_diamond", "mmlu_pro")
SUITES = {
    "math": (
        "aime24",
        "aime25",
        "amc",
        "amc23",
        "math500",
        "minerva",
        "olympiad",
    ),
    "ood": OUT_OF_DISTRIBUTION,
    "paper": (*IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION),
    "all": tuple(BENCHMARKS),
}
