"""Prepared data: what the template makes of a row, what is dropped, and rows by number in a seeded order."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from srft_ray.config.resolve import TokenLimits
from srft_ray.config.schema import DataSection
from srft_ray.data import prepare as module
from srft_ray.data.prepare import prepare
from srft_ray.data.rows import Row
from srft_ray.data.store import BATCH, PreparedData, shuffled
from srft_ray.data.tokenize import Template
from srft_ray.errors import UserError
from tests.conftest import make_tokenizer, write_jsonl

WIDE = TokenLimits(prompt=1000, sequence=2000)
MESSAGES = [
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "second"},
    {"role": "user", "content": "third"},
]


def section(path: Path | str = "x", **keys: Any) -> DataSection:
    return DataSection(path=str(path), **keys)


def prompt(tokenizer: Any, row_prompt: Any = "Hi {prompt}?", **keys: Any) -> str:
    """The rendered prompt, after checking that its ids are those of the text."""
    text, ids = Template(tokenizer, section(**keys)).prompt(Row(row_prompt, "", []))
    assert tokenizer.decode(ids) == text
    return text


def prepared(
    tmp_path: Path, tokenizer: Any, rows: list[Any], limits: TokenLimits = WIDE, seed: int = 0, **keys: Any
) -> PreparedData:
    return prepare(
        section(write_jsonl(tmp_path / "d.jsonl", rows), **keys),
        tokenizer,
        limits,
        tmp_path / "prepared",
        seed,
    )


def test_the_plain_template(tokenizer: Any):
    assert prompt(tokenizer) == "Hi {prompt}?\n"
    assert prompt(tokenizer, MESSAGES) == "third\n"
    assert prompt(tokenizer, system_prompt="Be brief.") == "Be brief.\n\nHi {prompt}?\n"


def test_a_template_of_ones_own(tokenizer: Any, chat_tokenizer: Any):
    assert prompt(tokenizer, template="Q: {prompt} A:") == "Q: Hi {prompt}? A:"
    assert (
        prompt(chat_tokenizer, template="{system_prompt}|{prompt}|{x}", system_prompt="S")
        == "S|Hi {prompt}?|{x}"
    )


@pytest.mark.parametrize("template", ["auto", "chat"])
def test_the_chat_template(chat_tokenizer: Any, template: str):
    assert prompt(chat_tokenizer, template=template) == "[user]Hi {prompt}?\n[assistant]"
    assert (
        prompt(chat_tokenizer, MESSAGES, template=template)
        == "[user]first\n[assistant]second\n[user]third\n[assistant]"
    )
    assert (
        prompt(chat_tokenizer, template=template, system_prompt="S")
        == "[system]S\n[user]Hi {prompt}?\n[assistant]"
    )
    own = [{"role": "system", "content": "own"}, MESSAGES[0]]
    assert (
        prompt(chat_tokenizer, own, template=template, system_prompt="S")
        == "[system]own\n[user]first\n[assistant]"
    )


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"template": "chat"}, "the tokenizer has no chat template"),
        ({"template": "hello"}, "that contains {prompt}"),
        ({"template": "{prompt}", "system_prompt": "S"}, "go together"),
        ({"template": "{system_prompt}{prompt}"}, "go together"),
    ],
)
def test_templates_that_cannot_be(tokenizer: Any, keys: dict[str, Any], wanted: str):
    with pytest.raises(UserError, match=wanted):
        Template(tokenizer, section(**keys))


def test_a_chat_template_that_refuses_a_prompt():
    picky = make_tokenizer(chat_template="{{ raise_exception('roles\nmust alternate') }}")
    with pytest.raises(UserError, match="roles"):
        prompt(picky)


def test_a_demonstration_ends_with_eos_and_starts_with_no_special_token():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        special_tokens=[("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)],
    )
    template = Template(tokenizer, section())
    text, ids = template.prompt(Row("p", "", []))
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "p", "Ċ"]
    assert tokenizer.convert_ids_to_tokens(template.demonstration("ab", text)) == ["a", "b", "<eos>"]


@pytest.mark.parametrize(
    ("before", "given", "wanted"),
    [
        ("[assistant]<think>\n", "<think>\nso</think>4", "so</think>4"),
        ("[assistant]<think>\n", "so</think>4", "so</think>4"),
        ("[assistant]<think>", "<think>so <think> again", "so <think> again"),
        ("[assistant]", "<think>\nso</think>4", "<think>\nso</think>4"),
        ("<think> [assistant]", "<think>so", "<think>so"),
    ],
)
def test_a_think_tag_that_the_prompt_has_opened_is_not_opened_again(
    tokenizer: Any, before: str, given: str, wanted: str
):
    ids = Template(tokenizer, section()).demonstration(given, before)
    assert tokenizer.decode(ids[:-1]) == wanted and ids[-1] == tokenizer.eos_token_id


def test_the_chat_templates_think_tag_reaches_the_stored_demonstration(tmp_path: Path):
    tokenizer = make_tokenizer(chat_template="{{ messages[-1]['content'] + '<think>\n' }}")
    row = prepared(tmp_path, tokenizer, [{"prompt": "p", "demonstration": "<think>\nd"}]).row(0)
    assert row["prompt"] == "p<think>\n" and tokenizer.decode(row["demonstrations"][0]["ids"]) == "d<eos>"


def test_a_stored_row(tmp_path: Path, tokenizer: Any):
    record = {"prompt": "é?", "answer": 4, "demonstrations": ["one", "two"], "metadata": {"a": [1, None]}}
    assert prepared(tmp_path, tokenizer, [record]).row(0) == {
        "prompt": "é?\n",
        "prompt_ids": tokenizer("é?\n").input_ids,
        "reference": "4",
        "metadata": {"a": [1, None]},
        "demonstrations": [
            {"text": text, "ids": [*tokenizer(text).input_ids, tokenizer.eos_token_id]}
            for text in ("one", "two")
        ],
    }


# With one token a byte: a prompt has one token more than its text (the line end), so has a demonstration
# (eos).
MIXED = [
    {"prompt": "p" * 9, "answer": "1", "demonstration": "d" * 9},  # both just fit
    {"prompt": "p" * 10, "answer": "1", "demonstration": "d"},  # the prompt does not
    {"prompt": "p" * 9, "answer": "1", "demonstration": "d" * 10},  # the demonstration does not
    {
        "prompt": "p" * 4,
        "demonstrations": ["d" * 15, "d" * 14, "d"],
    },  # the first of three does not; no answer
    {"prompt": "p", "answer": "1"},  # no demonstration
]
LIMITS = TokenLimits(prompt=10, sequence=20)


def test_overlong_rows_are_dropped_and_counted(tmp_path: Path, tokenizer: Any):
    data = prepared(tmp_path, tokenizer, MIXED, LIMITS)
    counts = data.counts
    assert (counts.rows, counts.kept, counts.overlong_prompts, counts.overlong_demonstrations) == (5, 4, 1, 2)
    assert (counts.demonstrations, counts.without_answer) == (3, 1)
    assert (counts.longest_prompt, counts.longest_demonstration) == (10, 20)
    assert (counts.prompt_tokens, counts.demonstration_tokens) == (10 + 10 + 5 + 2, 10 + 15 + 2)
    assert [len(row["prompt_ids"]) for row in data.rows()] == [10, 10, 5, 2]
    assert [[len(d["ids"]) for d in row["demonstrations"]] for row in data.rows()] == [[10], [], [15, 2], []]


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        (LIMITS, "Row 2 has a prompt of 11 tokens, above the limit of 10"),
        (TokenLimits(11, 20), "Row 3 has a prompt with demonstration of 21 tokens, above the limit of 20"),
    ],
)
def test_overlong_rows_are_an_error_if_wanted(
    tmp_path: Path, tokenizer: Any, limits: TokenLimits, wanted: str
):
    with pytest.raises(UserError, match=wanted):
        prepared(tmp_path, tokenizer, MIXED, limits, overlong="error")
    assert not list(tmp_path.rglob("*.arrow*"))


def test_nothing_left(tmp_path: Path, tokenizer: Any):
    with pytest.raises(UserError, match="All 5 rows were dropped: their prompts are above 1 tokens"):
        prepared(tmp_path, tokenizer, MIXED, TokenLimits(1, 20))


def test_a_prompt_without_tokens_is_refused(tmp_path: Path, tokenizer: Any):
    """Nothing stands before its first response token, so that training on it would use another column's
    logits."""
    rows = [{"prompt": "p"}, {"prompt": [{"role": "user", "content": ""}]}]
    with pytest.raises(UserError, match="The prompt of row 2 has no tokens") as caught:
        prepared(tmp_path, tokenizer, rows, template="{prompt}")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.arrow*"))


def test_rows_by_number_are_the_rows_in_reading_order(tmp_path: Path, tokenizer: Any):
    size = 2 * BATCH + 75
    records = [{"prompt": "p" * 30 if n % 7 == 3 else str(n), "answer": str(n)} for n in range(size)]
    data = prepared(tmp_path, tokenizer, records, LIMITS)
    kept = [str(n) for n in range(size) if n % 7 != 3]
    assert data.counts.kept == len(kept) > BATCH
    in_order = list(data.rows())
    assert [row["reference"] for row in in_order] == kept
    for index in (*range(len(kept) - 1, 0, -37), 0, BATCH - 1, BATCH):
        assert data.row(index) == in_order[index]
        assert tokenizer.decode(data.row(index)["prompt_ids"]) == f"{kept[index]}\n"


@pytest.mark.parametrize("rows", [1, 2, 97])
def test_each_epoch_is_a_permutation(rows: int):
    for seed in (0, 1):
        for epoch in range(3):
            order = [shuffled(epoch * rows + place, rows, seed) for place in range(rows)]
            assert {e for e, _ in order} == {epoch}
            assert sorted(index for _, index in order) == list(range(rows))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(shuffled(epoch * 97 + place, 97, seed)[1] for place in range(97))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16 and tuple(range(97)) not in orders


def test_the_order_is_a_function_of_position_rows_and_seed():
    positions = [500, 3, 96, 97, 0, 3]
    first = [shuffled(p, 97, 5) for p in positions]
    for seed in range(9):  # push the others out of the cache
        shuffled(0, 50, seed)
    assert [shuffled(p, 97, 5) for p in reversed(positions)] == first[::-1]
    assert [shuffled(p, 4, 7) for p in range(8)] == [
        (0, 0),
        (0, 2),
        (0, 1),
        (0, 3),
        (1, 2),
        (1, 0),
        (1, 3),
        (1, 1),
    ]


RECORDS = [{"prompt": f"say {n}", "answer": str(n), "demonstration": "d"} for n in range(3)]


def test_preparing_again_reads_nothing(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    source = section(write_jsonl(tmp_path / "d.jsonl", RECORDS))
    first = prepare(source, tokenizer, WIDE, tmp_path / "prepared", 0)
    monkeypatch.setattr(module, "read_rows", lambda *_: pytest.fail("the source was read again"))
    assert prepare(source, tokenizer, WIDE, tmp_path / "prepared", 0) == first
    assert (
        prepare(source, tokenizer, WIDE, tmp_path / "prepared", 1) == first
    )  # the seed shuffles, it does not prepare
    assert sorted(p.suffix for p in (tmp_path / "prepared").iterdir()) == [".arrow", ".json"]


def test_whatever_changes_the_rows_prepares_anew(tmp_path: Path, tokenizer: Any, chat_tokenizer: Any):
    source, folder = write_jsonl(tmp_path / "d.jsonl", RECORDS), tmp_path / "prepared"
    files = [
        prepare(section(source, **keys), with_tokenizer, limits, folder, 0).file
        for keys, with_tokenizer, limits in (
            ({}, tokenizer, WIDE),
            ({"template": "Q {prompt}"}, tokenizer, WIDE),
            ({"system_prompt": "S"}, tokenizer, WIDE),
            ({"answer_field": "prompt"}, tokenizer, WIDE),
            ({}, tokenizer, TokenLimits(999, 2000)),
            ({}, tokenizer, TokenLimits(1000, 1999)),
            ({}, chat_tokenizer, WIDE),
        )
    ]
    write_jsonl(source, RECORDS[:2])
    files.append(prepare(section(source), tokenizer, WIDE, folder, 0).file)
    assert len(set(files)) == len(files) == 8


def test_a_tokenizer_that_changed_in_its_place_prepares_anew(tmp_path: Path, tokenizer: Any):
    source = section(write_jsonl(tmp_path / "d.jsonl", RECORDS))
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["s"], vocabulary["a"] = vocabulary["a"], vocabulary["s"]
    changed = copy.deepcopy(tokenizer)
    changed._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(content))
    before, after = (prepare(source, one, WIDE, tmp_path / "prepared", 0) for one in (tokenizer, changed))
    assert before.row(0)["prompt_ids"] != after.row(0)["prompt_ids"]


def test_a_preparation_that_failed_is_not_taken_for_one(tmp_path: Path, tokenizer: Any):
    folder = tmp_path / "prepared"
    with pytest.raises(UserError):
        prepare(section(write_jsonl(tmp_path / "d.jsonl", [*RECORDS, 3])), tokenizer, WIDE, folder, 0)
    assert not folder.exists()


def test_dates_in_the_metadata_of_parquet_rows(tmp_path, tokenizer):
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    day = datetime.datetime(2026, 11, 21)
    rows = [{"prompt": "p", "answer": "1", "demonstration": "d", "metadata": {"day": day}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    found = prepare(section(tmp_path / "d.parquet"), tokenizer, WIDE, tmp_path / "prepared", 0)
    assert found.row(0)["metadata"] == {"day": "2026-11-21 00:00:00"}
