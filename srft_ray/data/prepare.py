"""Prepares a data set once: reads, tokenizes, drops what is over-long, and stores rows for access by number.

Afterwards every group of the stream is a pure function of (seed, position).
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from srft_ray.config.formats import data_format
from srft_ray.config.resolve import TokenLimits
from srft_ray.config.schema import DataSection
from srft_ray.data.rows import Row, read_rows
from srft_ray.data.store import BATCH, SCHEMA, Counts, PreparedData
from srft_ray.data.tokenize import Template
from srft_ray.errors import require


def prepare(
    section: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    limits: TokenLimits,
    folder: Path,
    seed: int,
    created: list[Path] | None = None,
) -> PreparedData:
    """Prepares the data set, or finds it prepared in `folder`. What it had to create is added to `created`.

    UserError: bad rows (see `read_rows`), an over-long row with data.overlong=error, or nothing left.
    """
    template = Template(tokenizer, section)
    target = folder / f"{_fingerprint(section, template, limits, seed)}.arrow"
    record = target.with_suffix(".json")
    if not record.exists():
        new = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
        folder.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}")
        try:
            counts = _write(part, read_rows(section, seed), template, limits, section.overlong == "error")
            part.replace(target)
        except BaseException:
            remove([*new, part])
            raise
        record.write_text(json.dumps(dataclasses.asdict(counts)))
        if created is not None:
            created += [*new, target, record]
    return PreparedData(str(target), Counts(**json.loads(record.read_text())))


def remove(paths: Sequence[Path]) -> None:
    """Removes files, and folders that are empty then, the last first."""
    for path in reversed(paths):
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def _write(path: Path, rows: Iterable[Row], template: Template, limits: TokenLimits, strict: bool) -> Counts:
    counts = Counts()
    prepared = filter(None, (_tokenize(row, template, limits, counts, strict) for row in rows))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        while batch := list(islice(prepared, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, SCHEMA))
    require(
        counts.kept > 0,
        f"All {counts.rows} rows were dropped: their prompts are above {limits.prompt} tokens; raise model.max_length or "
        "lower rollout.max_new_tokens.",
    )
    return counts


def _tokenize(
    row: Row, template: Template, limits: TokenLimits, counts: Counts, strict: bool
) -> dict[str, Any] | None:
    counts.rows += 1
    text, prompt_ids = template.prompt(row)
    if len(prompt_ids) > limits.prompt:
        counts.overlong_prompts += 1
        return _reject(strict, f"prompt of {len(prompt_ids)} tokens", limits.prompt, counts.rows)
    demonstrations = []
    for demonstration in row.demonstrations:
        ids = template.demonstration(demonstration, text)
        length = len(prompt_ids) + len(ids)
        if length > limits.sequence:
            counts.overlong_demonstrations += 1
            _reject(strict, f"prompt with demonstration of {length} tokens", limits.sequence, counts.rows)
            continue
        demonstrations.append({"text": demonstration, "ids": ids})
        counts.longest_demonstration = max(counts.longest_demonstration, length)
        counts.demonstration_tokens += len(ids)
    counts.kept += 1
    counts.demonstrations += len(demonstrations)
    counts.without_answer += not row.reference
    counts.longest_prompt = max(counts.longest_prompt, len(prompt_ids))
    counts.prompt_tokens += len(prompt_ids)
    metadata = json.dumps(row.metadata, default=str)  # Parquet holds dates, JSON does not
    return {
        "prompt": text,
        "prompt_ids": prompt_ids,
        "reference": row.reference,
        "metadata": metadata,
        "demonstrations": demonstrations,
    }


def _reject(strict: bool, what: str, limit: int, number: int) -> None:
    require(
        not strict,
        f"Row {number} has a {what}, above the limit of {limit}: raise model.max_length, lower rollout.max_new_tokens, or set "
        "data.overlong=drop.",
    )


def _fingerprint(section: DataSection, template: Template, limits: TokenLimits, seed: int) -> str:
    """Changes with anything that changes the prepared rows: the source, the template, the tokenizer, the limits."""
    of = template.tokenizer
    parts: list[Any] = [
        dataclasses.asdict(section),
        dataclasses.asdict(limits),
        of.name_or_path,
        of.chat_template,
        len(of),
        of.eos_token_id,
    ]
    if data_format(section) == "tasks":
        parts.append(seed)
    else:
        path = Path(section.path).expanduser()
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        parts += [(str(f.resolve()), f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.exists()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
