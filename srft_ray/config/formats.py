"""The format of a data source, as the config or the source's name tells it."""

from pathlib import Path

from srft_ray.config.schema import DataSection
from srft_ray.errors import require

SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".pq": "parquet"}


def data_format(section: DataSection) -> str:
    """jsonl, json, parquet, hf or tasks. Raises UserError if `format: auto` cannot tell."""
    if section.format != "auto":
        return section.format
    path = Path(section.path).expanduser()
    if path.is_dir():
        return "parquet" if any(path.glob("*.parquet")) else "hf"
    known = SUFFIXES.get(path.suffix.lower())
    require(
        known is not None,
        f"The format of data.path {path} cannot be told from its name: set data.format to jsonl, json, "
        "parquet, hf or tasks.",
    )
    return known
