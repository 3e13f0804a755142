"""Rows come out of every source alike, and what is wrong with a source is said with its place."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srft_ray.config.formats import data_format
from srft_ray.config.schema import DataSection
from srft_ray.data.rows import Row, read_rows, to_row
from srft_ray.errors import UserError
from tests.conftest import write_jsonl

RECORDS = [{"prompt": f"say {n}", "answer": str(n), "demonstration": f"it is {n} é"} for n in range(5)]
EXPECTED = [Row(f"say {n}", str(n), [f"it is {n} é"]) for n in range(5)]
GSM8K = {
    "question": "How many?",
    "answer": "In April 48/2 = <<48/2=24>>24 clips.\nTogether 48+24 = <<48+24=72>>72.\n#### 72",
}


def read(path: Path, **keys: Any) -> list[Row]:
    return list(read_rows(DataSection(path=str(path), **keys)))


def message(path: Path, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def row(record: dict[str, Any], **keys: Any) -> Row:
    return to_row(record, DataSection(path="x", **keys), "x line 1")


def arrow_stream(path: Path, records: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(records)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def hf_dataset(folder: Path, records: list[dict[str, Any]], shards: int = 1) -> Path:
    """The layout of `Dataset.save_to_disk`."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    size = -(-len(records) // shards)
    for i, name in enumerate(names):
        arrow_stream(folder / name, records[i * size : (i + 1) * size])
    (folder / "state.json").write_text(
        json.dumps(
            {"_data_files": [{"filename": name} for name in names], "_fingerprint": "1f", "_split": None}
        )
    )
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}, "citation": ""}))
    return folder


def hf_splits(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    """The layout of `DatasetDict.save_to_disk`."""
    for name, records in splits.items():
        hf_dataset(folder / name, records)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def test_jsonl(tmp_path: Path):
    assert read(write_jsonl(tmp_path / "d.jsonl", RECORDS)) == EXPECTED
    assert read(write_jsonl(tmp_path / "d.txt", RECORDS), format="jsonl") == EXPECTED


def test_jsonl_with_blank_lines_and_without_a_last_newline(tmp_path: Path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + "\n\n".join(json.dumps(r, ensure_ascii=False) for r in RECORDS).encode()
    )
    assert read(path) == EXPECTED


def test_json(tmp_path: Path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(RECORDS, indent=1))
    assert read(path) == EXPECTED


def test_parquet_file_and_directory(tmp_path: Path):
    table = pa.Table.from_pylist(RECORDS)
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=2)
    assert read(tmp_path / "d.parquet") == EXPECTED
    folder = tmp_path / "parts"
    folder.mkdir()
    pq.write_table(table.slice(3), folder / "part-1.parquet")
    pq.write_table(table.slice(0, 3), folder / "part-0.parquet")
    assert read(folder) == EXPECTED


@pytest.mark.parametrize("shards", [1, 3])
def test_a_dataset_on_disk(tmp_path: Path, shards: int):
    assert read(hf_dataset(tmp_path / "d", RECORDS, shards)) == EXPECTED


def test_a_dataset_on_disk_with_what_map_cached_beside_it(tmp_path: Path):
    folder = hf_dataset(tmp_path / "d", RECORDS)
    arrow_stream(folder / "cache-0123456789abcdef.arrow", RECORDS[:2])
    assert read(folder) == EXPECTED


def test_a_dataset_dict_on_disk_gives_its_training_split(tmp_path: Path):
    folder = hf_splits(tmp_path / "d", test=RECORDS[:1], train=RECORDS)
    assert read(folder) == EXPECTED
    assert read(folder / "test") == EXPECTED[:1]


def test_a_dataset_dict_without_a_training_split(tmp_path: Path):
    text = message(hf_splits(tmp_path / "d", test=RECORDS, extra=RECORDS))
    assert "test, extra" in text and str(tmp_path / "d" / "test") in text


@pytest.mark.parametrize(
    ("name", "wanted"), [("a.jsonl", "jsonl"), ("a.ndjson", "jsonl"), ("a.JSON", "json"), ("a.pq", "parquet")]
)
def test_the_format_is_told_from_the_name(name: str, wanted: str):
    assert data_format(DataSection(path=name)) == wanted
    assert data_format(DataSection(path=name, format="hf")) == "hf"


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"prompt": "p", "question": "q", "problem": "r"}, "p"),
        ({"problem": "r", "question": "q"}, "q"),
        ({"problem": "r"}, "r"),
        ({"prompt": None, "question": "q"}, "q"),
    ],
)
def test_the_usual_prompt_fields(fields: dict[str, Any], wanted: str):
    assert row(fields).prompt == wanted


@pytest.mark.parametrize("name", ["answer", "reference", "ground_truth"])
def test_the_usual_answer_fields(name: str):
    assert row({"prompt": "p", name: "a"}).reference == "a"


@pytest.mark.parametrize("name", ["demonstration", "demonstrations", "solution", "response"])
def test_the_usual_demonstration_fields(name: str):
    assert row({"prompt": "p", name: "d"}).demonstrations == ["d"]


def test_named_and_dotted_fields():
    record = {
        "prompt": "wrong",
        "q": {"text": "p"},
        "reward_model": {"style": "rule", "ground_truth": {"target": 0}},
        "traces": {"r1": ["d", "e"]},
    }
    mapped = row(
        record,
        prompt_field="q.text",
        answer_field="reward_model.ground_truth.target",
        demonstration_field="traces.r1",
    )
    assert mapped == Row("p", "0", ["d", "e"])


def test_chat_messages():
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert row({"prompt": prompt}).prompt == prompt
    conversation = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "d"}]
    assert row({"prompt": prompt, "solution": conversation}).demonstrations == ["d"]
    assert row({"prompt": prompt, "solution": [conversation, conversation[1:]]}).demonstrations == ["d", "d"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(None, []), ("", []), ([], []), ("d", ["d"]), (["d"], ["d"]), (["d", "", "e", None], ["d", "e"])],
)
def test_none_one_or_several_demonstrations(given: Any, wanted: list[str]):
    assert row({"prompt": "p", "demonstrations": given}).demonstrations == wanted


def test_metadata_are_kept():
    assert row({"prompt": "p", "metadata": {"a": [1]}}).metadata == {"a": [1]}
    assert row({"prompt": "p", "metadata": "free text"}).metadata == {}


def test_gsm8k_answers_are_reference_and_demonstration():
    assert row(GSM8K) == Row("How many?", "72", ["In April 48/2 = 24 clips.\nTogether 48+24 = 72.\n#### 72"])


def test_gsm8k_with_demonstrations_of_another_model():
    assert row({**GSM8K, "solution": "own"}) == Row("How many?", "72", ["own"])


def test_a_missing_source(tmp_path: Path):
    assert message(tmp_path / "no.jsonl").startswith(f"data.path {tmp_path / 'no.jsonl'} does not exist")


@pytest.mark.parametrize(
    ("name", "content"), [("d.jsonl", ""), ("d.jsonl", "\n \n"), ("d.json", ""), ("d.json", "[]")]
)
def test_an_empty_file(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    assert message(tmp_path / name) == f"data.path {tmp_path / name} is empty: it holds no row."


def test_an_empty_table(tmp_path: Path):
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "d.parquet")
    assert "is empty" in message(tmp_path / "d.parquet")


def test_an_empty_directory(tmp_path: Path):
    assert "holds no .arrow file" in message(tmp_path)


def test_a_name_that_tells_no_format(tmp_path: Path):
    assert "set data.format to jsonl, json, parquet, hf or tasks" in message(
        write_jsonl(tmp_path / "d.txt", RECORDS)
    )


@pytest.mark.parametrize("format", ["jsonl", "json", "parquet"])
def test_a_directory_in_place_of_a_file(tmp_path: Path, format: str):
    assert str(tmp_path) in message(tmp_path, format=format)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (b'{"prompt": "p"', "is not valid JSON"),
        (b"prompt: p", "is not valid JSON: Expecting value at column 1"),
        (b'{"prompt": "\xff"}', "is not UTF-8"),
        (b'["p"]', "must be a JSON object with named fields, not a list"),
        (b'"p"', "not a str"),
        (b"{" + b'"a":{' * 99_999, "is not valid JSON"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", "is not valid JSON"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path: Path, line: bytes, wanted: str):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"prompt": "p"}\n\n' + line + b"\n")
    assert message(path).startswith(f"{path} line 3 ") and wanted in message(path)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (
            '[{"prompt": "p"},\n {"prompt" "p"}]',
            "line 2 is not valid JSON: Expecting ':' delimiter at column 12",
        ),
        ('{"prompt": "p"}', "must hold a JSON list of rows, not a dict"),
        ('[{"prompt": "p"}, 3]', "row 2 must be a JSON object"),
    ],
)
def test_bad_json_is_named(tmp_path: Path, content: str, wanted: str):
    (tmp_path / "d.json").write_text(content)
    assert message(tmp_path / "d.json").startswith(f"{tmp_path / 'd.json'} {wanted}")


def test_parquet_that_is_none(tmp_path: Path):
    (tmp_path / "d.parquet").write_text("no")
    assert message(tmp_path / "d.parquet").startswith(
        f"{tmp_path / 'd.parquet'} is not a readable Parquet file: "
    )


def test_parquet_with_damaged_pages(tmp_path: Path):
    path = tmp_path / "d.parquet"
    pq.write_table(
        pa.table({"prompt": [f"{n} {n * n}" for n in range(999)]}),
        path,
        compression="zstd",
        use_dictionary=False,
    )
    content = bytearray(path.read_bytes())
    content[60:200] = bytes(140)
    path.write_bytes(content)
    assert message(path).startswith(f"{path} is not a readable Parquet file: ")


def test_a_dataset_on_disk_that_is_cut_off(tmp_path: Path):
    file = hf_dataset(tmp_path / "d", RECORDS) / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-300])
    assert message(tmp_path / "d").startswith(f"{file} is not a readable Arrow file: ")


def test_a_missing_field_lists_those_that_are_there(tmp_path: Path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "p", "zeta": 1}, {"input": "p", "alpha": 1}])
    assert message(path) == (
        f"No prompt field 'prompt' or 'question' or 'problem' in {path} line 2; fields found: alpha, input. "
        "Set data.prompt_field."
    )


@pytest.mark.parametrize("role", ["prompt", "answer"])
def test_a_field_that_is_named_must_be_there(tmp_path: Path, role: str):
    path = write_jsonl(tmp_path / "d.jsonl", RECORDS)
    text = message(path, **{f"{role}_field": "meta.x"})
    assert text.startswith(
        f"No {role} field 'meta.x' in {path} line 1; fields found: answer, demonstration, prompt. "
        f"Correct data.{role}_field or the row."
    )


@pytest.mark.parametrize("missing", [{}, {"solution": None}, {"solution": ""}])
def test_a_row_may_lack_the_demonstration_whose_field_is_named(tmp_path: Path, missing: dict[str, Any]):
    records = [{"prompt": "p", "solution": "s"}, {"prompt": "q", **missing}]
    rows = read(write_jsonl(tmp_path / "d.jsonl", records), demonstration_field="solution")
    assert [row.demonstrations for row in rows] == [["s"], []]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [],
        3,
        {"role": "user"},
        ["u"],
        [{"content": "u"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
    ],
)
def test_a_prompt_is_a_text_or_messages(tmp_path: Path, prompt: Any):
    path = write_jsonl(tmp_path / "d.jsonl", [{"prompt": prompt}])
    assert f"The prompt in {path} line 1 must be a text or a list of messages" in message(path)


@pytest.mark.parametrize("demonstration", [3, {"text": "d"}, [{"role": "assistant"}], [["d"], 4]])
def test_a_demonstration_is_a_text_or_messages(tmp_path: Path, demonstration: Any):
    path = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "p", "demonstration": demonstration}])
    assert f"A demonstration in {path} line 1 must be a text or messages" in message(path)


def test_the_published_data_set_of_the_paper_needs_no_field_names():
    """A sample with the columns of OpenR1-Math-46k-8192: messages, `target`, `reward_model.ground_truth`."""
    sample = Path(__file__).resolve().parents[2] / "examples/data/openr1_format.jsonl"
    columns = {"data_source", "prompt", "target", "ability", "reward_model", "extra_info"}
    assert all(set(json.loads(line)) == columns for line in sample.read_text().splitlines())
    rows = read(sample)
    assert [found.reference for found in rows] == ["84", "7", "27", "9"]
    assert all(len(found.demonstrations) == 1 for found in rows)
    assert all(found.demonstrations[0].startswith("<think>\n") for found in rows)
    assert [message["role"] for message in rows[0].prompt] == ["system", "user"]
    assert rows[0].prompt[-1]["content"].startswith("A shop sells pens")
