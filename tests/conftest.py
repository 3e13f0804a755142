"""A tiny model, and the rows and configs that tests are made of. transformers is imported where a fixture
needs it."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported

POSITIONS = 512
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ROWS = [
    {
        "prompt": f"What is {n} + {n}?",
        "answer": str(2 * n),
        "demonstration": f"{n} + {n} = {2 * n}\n#### {2 * n}",
    }
    for n in range(8)
]


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def base_config(tmp_path: Path, tiny_model: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """Values for `make_config` of a small CPU run in `tmp_path`, whose data are `ROWS`; `sections` change
    single keys."""
    data = tmp_path / "data.jsonl"
    if not data.exists():
        write_jsonl(data, ROWS)
    values: dict[str, Any] = {
        "run": {"name": "run", "dir": str(tmp_path / "runs"), "device": "cpu"},
        "model": {"path": str(tiny_model), "max_length": 128},
        "data": {"path": str(data)},
        "rollout": {"num_rollouts": 2, "max_new_tokens": 32},
        "learner": {"micro_batch_tokens": 512},
        "trainer": {"steps": 2, "groups_per_step": 4, "max_failures": 0},
    }
    for name, keys in sections.items():
        values[name] = {**values.get(name, {}), **keys}
    return values


def make_tokenizer(eos: bool = True, chat_template: str | None = None) -> Any:
    """Bytes as tokens: any text round-trips, nothing is merged, no special token is added."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = ["<pad>", "<eos>", "<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", **({"eos_token": "<eos>"} if eos else {})}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=chat_template, clean_up_tokenization_spaces=False, **special
    )


def write_model(folder: Path, tied: bool = True, hidden: int = 64, layers: int = 2) -> Path:
    """A Qwen2, of 80,000 parameters unless said otherwise (heads of 32 as vLLM needs), with its tokenizer, in
    float32."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=hidden,
                intermediate_size=hidden * 3 // 2,
                num_hidden_layers=layers,
                num_attention_heads=hidden // 32,
                num_key_value_heads=1,
                max_position_embeddings=POSITIONS,
                tie_word_embeddings=tied,
                initializer_range=0.2,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=tokenizer.bos_token_id,
            )
        )
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)  # zero at first, and in no trained model
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with tied embeddings and 512 positions."""
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_model`, with an output matrix of its own."""
    return write_model(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="session")
def user_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verifier of one's own, `USER_FILE`."""
    from tests.judges import USER_FILE

    path = tmp_path_factory.mktemp("user") / "scorer.py"
    path.write_text(USER_FILE)
    return path


@pytest.fixture
def user(user_file: Path) -> Iterator[Callable[..., Any]]:
    """Makes judges that ask it, and ends them."""
    from srft_ray.verify import VerifierPool

    with contextlib.ExitStack() as stack:
        yield lambda function="score", **options: stack.enter_context(
            contextlib.closing(
                VerifierPool("", f"{user_file}:{function}", **{"timeout_s": 0.5, "memory_mb": 256, **options})
            )
        )


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer() -> Any:
    """With a chat template, `CHAT_TEMPLATE`."""
    return make_tokenizer(chat_template=CHAT_TEMPLATE)
