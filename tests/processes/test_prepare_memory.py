"""The memory of preparing data, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

MEMORY = """
import json, sys, types
from pathlib import Path
from unittest.mock import MagicMock
class Tokenizer:
    chat_template, eos_token_id, name_or_path, is_fast = None, 0, "bytes", False
    def get_vocab(self): return {}
    def __len__(self): return 256
    def __call__(self, text, **_): return types.SimpleNamespace(input_ids=list(text.encode()))
sys.modules["transformers"] = MagicMock()  # takes seconds and memory to import
from srft_ray.config.schema import DataSection
from srft_ray.config.resolve import TokenLimits
from srft_ray.data.prepare import prepare
from srft_ray.data.store import shuffled
def mebibytes(key):
    return int(dict(line.split(":") for line in open("/proc/self/status"))[key].split()[0]) / 1024
folder, sizes = Path(sys.argv[1]), []
for rows in map(int, sys.argv[2:]):
    source = folder / f"{rows}.jsonl"
    with source.open("w") as file:
        file.writelines(f'{{"prompt": "{n:0300}", "answer": "{n}", "demonstration": "It is {n}."}}\\n' for n
        in range(rows))
    data = prepare(DataSection(path=str(source)), Tokenizer(), TokenLimits(999, 999), folder / "prepared", 0)
    sizes.append(mebibytes("VmHWM"))  # the peak; ru_maxrss would begin with the parent's
    for position in range(0, rows, 10):
        index = shuffled(position, rows, 0)[1]
        assert data.row(index)["reference"] == str(index)
    sizes.append(mebibytes("RssAnon"))  # without the pages of the file
print(json.dumps(sizes))
"""


def test_memory_does_not_grow_with_the_data_set(tmp_path: Path):
    command = [sys.executable, "-c", MEMORY, str(tmp_path), "1000", "16000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    preparing_few, reading_few, preparing_many, reading_many = json.loads(done.stdout)
    stored = max(file.stat().st_size for file in (tmp_path / "prepared").glob("*.arrow")) / 2**20
    print(
        f"{preparing_few=:.0f} {preparing_many=:.0f} {reading_few=:.0f} {reading_many=:.0f} {stored=:.0f} MiB"
    )
    assert preparing_many - preparing_few < 8 and reading_many - reading_few < 8 < stored / 2
