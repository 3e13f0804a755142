"""Finds published benchmarks in a folder and checks that they are whole."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from srft_ray.data.benchmark_rows import Problem, read_problems
from srft_ray.data.benchmark_sets import BENCHMARKS, Benchmark
from srft_ray.errors import UserError, nearest, require

SUFFIXES = (
    ".json",
    ".jsonl",
    ".parquet",
    ".csv",
)
GENERIC = re.compile(r"(test|train|data|default|main)\b.*", re.IGNORECASE)  # names that tell no set


@dataclass(frozen=True)
class Found:
    """A set as it is on disk.

    Attributes:
        checksum: SHA-256 of questions, options and answers without white space, so that it does not depend on
            the file format.
    """

    name: str
    file: Path
    problems: list[Problem]
    checksum: str

    @property
    def benchmark(self) -> Benchmark:
        return BENCHMARKS[self.name]

    @property
    def is_known(self) -> bool:
        return self.checksum.startswith(self.benchmark.known) if self.benchmark.known else False


def find_benchmarks(
    folder: Path,
    names: Sequence[str],
    any_count: bool = False,
) -> dict[str, Found]:
    """The sets that are in the folder, in the order of `names`; those that are not there are left out.

    Args:
        any_count: whether a set may have another number of rows than was published.

    Raises:
        UserError: no such folder or set; a file cannot be read, or has another number of rows.
    """
    require(folder.is_dir(), f"--data {folder} is no folder: pass the one that holds the benchmarks' files.")
    for name in names:
        require(name in BENCHMARKS, f"There is no benchmark {name!r}: {nearest(name, BENCHMARKS)}")
    found = {}
    for name in names:
        source = _source(folder, name)
        if source is not None:
            found[name] = _read(name, *source, any_count)
    require(
        bool(found),
        f"{folder} holds none of the benchmarks {', '.join(names)}: name their files {names[0]}.jsonl and so "
        "on (JSON, JSONL, Parquet or CSV).",
    )
    return found


def _read(
    name: str,
    file: Path,
    source: str | None,
    any_count: bool,
) -> Found:
    benchmark = BENCHMARKS[name]
    problems = list(read_problems(file, benchmark.is_choice, source))
    require(
        any_count or len(problems) == benchmark.rows,
        f"{file} has {len(problems)} rows, but {benchmark.title} has {benchmark.rows}: pass the whole set, "
        "or --any-count to evaluate what is there.",
    )
    return Found(
        name,
        file,
        problems,
        checksum(problems),
    )


def checksum(problems: Sequence[Problem]) -> str:
    """SHA-256 of all that is asked and expected, without white space."""
    digest = hashlib.sha256()
    for problem in problems:
        for text in (problem.question, *problem.options, problem.answer):
            digest.update("".join(text.split()).encode(errors="replace") + b"\0")
    return digest.hexdigest()


def _source(folder: Path, name: str) -> tuple[Path, str | None] | None:
    """The file of a set, and the value of `data_source` of its rows if the file holds several sets."""
    aliases = BENCHMARKS[name].aliases
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES]
    own = [file for file in files if any(word in aliases for word in _words(file, folder))]
    if len(own) > 1:
        names = " and ".join(str(file.relative_to(folder)) for file in own[:2])
        raise UserError(f"{folder} holds {BENCHMARKS[name].title} twice ({names}): leave one of them there.")
    if own:
        return own[0], None
    mixed = (file for file in files if file.suffix == ".parquet" and file.name.startswith("valid"))
    for file in mixed:
        for source in _sources_in(file):
            if _plain(source) in aliases:
                return file, source
    return None


def _words(file: Path, folder: Path) -> Iterator[str]:
    """What may name the set: the file, and if its name says nothing, the folders that it is in."""
    yield _plain(file.stem)
    yield _plain(file.stem.removeprefix("valid."))
    yield _plain(file.stem.removesuffix(".test"))
    if GENERIC.fullmatch(file.stem):
        yield from map(_plain, file.relative_to(folder).parts[:-1])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _sources_in(file: Path) -> list[str]:
    """The different values of the column `data_source`, such as those of LUFFY's valid.all.parquet."""
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    if "data_source" not in parquet.schema_arrow.names:
        return []
    return sorted(set(parquet.read(["data_source"])["data_source"].to_pylist()))
