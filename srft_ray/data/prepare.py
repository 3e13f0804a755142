"""Prepares a data set once: reads, tokenizes, drops what is over-long, and stores rows for access by number.

Afterwards every group of the stream is a pure function of (seed, position).
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from srft_ray.config.formats import data_format
from srft_ray.config.resolve import TokenLimits
from srft_ray.config.schema import DataSection
from srft_ray.data.rows import Row, read_rows
from srft_ray.data.store import BATCH, SCHEMA, Counts, PreparedData
from srft_ray.data.tokenize import Template
from srft_ray.errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare(
    section: DataSection,
    tokenizer: "PreTrainedTokenizerBase",
    limits: TokenLimits,
    folder: Path,
    seed: int,
    created: list[Path] | None = None,
    key: str = "data",
) -> PreparedData:
    """Prepares the data set, or finds it prepared in `folder`.

    Args:
        limits: longest prompt, and longest prompt with demonstration, in tokens.
        seed: of generated tasks.
        created: files and folders that had to be created are added to it, parents first.
        key: the section's place in the config, for messages.

    Raises:
        UserError: bad rows (see `read_rows`), a prompt without tokens, an over-long row with
            data.overlong=error, or nothing left.
    """
    template = Template(tokenizer, section)
    target = folder / f"{_fingerprint(section, template, limits, seed)}.arrow"
    counts_file = target.with_suffix(".json")
    if not counts_file.exists():
        new_folders = [path for path in (*reversed(folder.parents), folder) if not path.exists()]
        preparation = _Preparation(template, limits, strict=section.overlong == "error")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _store(target, counts_file, preparation, read_rows(section, seed, key))
        except BaseException:
            remove(new_folders)
            raise
        if created is not None:
            created += [*new_folders, target, counts_file]
    return PreparedData(str(target), Counts(**json.loads(counts_file.read_text())))


def remove(paths: Sequence[Path]) -> None:
    """Removes files, and folders that are empty then, the last first."""
    for path in reversed(paths):
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


class _Preparation:
    """Turns rows into what is stored of them, and counts what it sees."""

    def __init__(self, template: Template, limits: TokenLimits, strict: bool) -> None:
        """`strict`: whether an over-long row is an error."""
        self.template = template
        self.limits = limits
        self.strict = strict
        self.counts = Counts()

    def stored(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        """What is stored of each row that is kept. Raises UserError: an empty prompt, or no row is kept."""
        for row in rows:
            self.counts.rows += 1
            text, prompt_ids = self.template.prompt(row)
            require(
                len(prompt_ids) > 0,
                f"The prompt of row {self.counts.rows} has no tokens (its text is {text!r}): remove the row, "
                "or choose a data.template that adds text.",
            )
            if len(prompt_ids) <= self.limits.prompt:
                yield self._stored(row, text, prompt_ids)
            else:
                self.counts.overlong_prompts += 1
                self._drop(f"prompt of {len(prompt_ids)} tokens", self.limits.prompt)
        require(
            self.counts.kept > 0,
            f"All {self.counts.rows} rows were dropped: their prompts are above {self.limits.prompt} tokens; "
            "raise model.max_length or lower rollout.max_new_tokens.",
        )

    def _stored(self, row: Row, text: str, prompt_ids: list[int]) -> dict[str, Any]:
        counts = self.counts
        demonstrations = self._demonstrations(row, text, len(prompt_ids))
        counts.kept += 1
        counts.without_answer += not row.reference
        counts.longest_prompt = max(counts.longest_prompt, len(prompt_ids))
        counts.prompt_tokens += len(prompt_ids)
        return {
            "prompt": text,
            "prompt_ids": prompt_ids,
            "reference": row.reference,
            "metadata": json.dumps(row.metadata, default=str),
            "demonstrations": demonstrations,
        }

    def _demonstrations(self, row: Row, prompt: str, prompt_length: int) -> list[dict[str, Any]]:
        """The demonstrations that are short enough together with their prompt of `prompt_length` tokens."""
        counts = self.counts
        kept = []
        for text in row.demonstrations:
            ids = self.template.demonstration(text, prompt)
            length = prompt_length + len(ids)
            if length > self.limits.sequence:
                counts.overlong_demonstrations += 1
                self._drop(f"prompt with demonstration of {length} tokens", self.limits.sequence)
                continue
            kept.append({"text": text, "ids": ids})
            counts.demonstrations += 1
            counts.longest_demonstration = max(counts.longest_demonstration, length)
            counts.demonstration_tokens += len(ids)
        return kept

    def _drop(self, what: str, limit: int) -> None:
        require(
            not self.strict,
            f"Row {self.counts.rows} has a {what}, above the limit of {limit}: raise model.max_length, lower "
            "rollout.max_new_tokens, or set data.overlong=drop.",
        )


def _store(target: Path, counts_file: Path, preparation: _Preparation, rows: Iterable[Row]) -> None:
    """Writes rows and counts; what exists under their names is always whole.

    Each is written under another name and renamed, which is atomic. That name holds the process id, because
    two processes may prepare the same data at a time. The counts come last: data without them are prepared
    anew.
    """
    part = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        _write_rows(part, preparation.stored(rows))
        part.replace(target)
        part.write_text(json.dumps(dataclasses.asdict(preparation.counts)))
        part.replace(counts_file)
    except BaseException:
        remove([part])
        raise


def _write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, SCHEMA))


def _fingerprint(section: DataSection, template: Template, limits: TokenLimits, seed: int) -> str:
    """Changes with all that changes the prepared rows: source, template, tokenizer and limits."""
    tokenizer = template.tokenizer
    parts: list[Any] = [
        dataclasses.asdict(section),
        dataclasses.asdict(limits),
        tokenizer.name_or_path,
        tokenizer.chat_template,
        _content(tokenizer),
        tokenizer.eos_token_id,
    ]
    if data_format(section) == "tasks":
        parts.append(seed)
    else:
        parts += file_stamps(Path(section.path).expanduser())
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _content(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the tokenizer does with a text; other files may lie at its path later."""
    return tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab())


def file_stamps(path: Path) -> list[tuple[str, int, int]]:
    """Path, time of the last change (ns) and size (bytes) of the file, or of all files in the folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stamps = []
    for file in files:
        if file.exists():
            stat = file.stat()
            stamps.append((str(file.resolve()), stat.st_mtime_ns, stat.st_size))
    return stamps
