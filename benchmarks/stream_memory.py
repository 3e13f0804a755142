"""Memory needed to prepare a data set and to read it in the seeded order, with 10,000 and with 1,000,000
rows.

    python benchmarks/stream_memory.py [--rows 10000 1000000]

Each size is measured in a process of its own. Only anonymous memory counts, because the pages of the mapped
file belong to the page cache. Linux only.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

MODEL = Path(__file__).resolve().parents[1] / "examples/tiny/base"


def anonymous_mb() -> float:
    return (
        next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("RssAnon")
        )
        / 1024
    )


def measure(rows: int) -> None:
    from srft_ray.config.resolve import TokenLimits
    from srft_ray.config.schema import DataSection, ModelSection
    from srft_ray.data.prepare import prepare
    from srft_ray.data.store import shuffled
    from srft_ray.data.tokenize import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        with path.open("w") as file:
            for number in range(rows):
                file.write(
                    json.dumps(
                        {
                            "prompt": f"What is {number} + 1?",
                            "answer": str(number + 1),
                            "demonstration": f"#### {number + 1}",
                        }
                    )
                    + "\n"
                )
        tokenizer = load_tokenizer(ModelSection(path=str(MODEL)))
        before, started, peak = anonymous_mb(), time.perf_counter(), 0.0
        data = prepare(DataSection(path=str(path)), tokenizer, TokenLimits(256, 512), Path(folder), 0)
        prepared, seconds = anonymous_mb(), time.perf_counter() - started
        for position in range(20_000):
            data.row(shuffled(position, rows, 0)[1])
            if position % 1000 == 0:
                peak = max(peak, anonymous_mb())
        print(
            f"{rows:>9,} rows: prepared in {seconds:.0f} s with {prepared - before:.0f} MiB more; "
            f"20,000 rows read in the seeded order with {peak - before:.0f} MiB more than before preparing",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[10_000, 1_000_000],
        help="sizes of the data set in rows (default 10000 1000000)",
    )
    for size in parser.parse_args().rows:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(size,))
        process.start()
        process.join()
