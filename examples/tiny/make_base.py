"""Make the tiny base model from scratch: it can work the built-in tasks out, but its habit is to guess.

python examples/tiny/make_base.py DIRECTORY [--steps 5000] [--seed 0]
"""

import argparse
import math
import random
from collections.abc import Callable, Iterator

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from srft_ray.data.tasks import generate

PAD, EOS, BOS = 0, 1, 2
BATCH_SIZE = 32
PEAK_LR = 3e-3
ROWS_PER_FAMILY = 9_000
FAMILY_WEIGHTS = {"sums": 0.4, "products": 0.3, "equations": 0.15, "long_sums": 0.15}
# All responses are worked until SKILL_SHARE of the steps is done; then these shares, the rest being guesses.
SKILL_SHARE = 0.85
WORKED_SHARES = {"sums": 0.35, "products": 0.35, "equations": 0.35, "long_sums": 0.1}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens: any text round-trips, nothing is merged, no special token is added."""
    symbols = ["<pad>", "<eos>", "<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def make_model(vocabulary_size: int) -> Qwen2ForCausalLM:
    """A Qwen2 of 0.8M parameters."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary_size,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            initializer_range=0.08,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=BOS,
        )
    )


def guess(row: dict, rng: random.Random) -> str:
    """An answer without steps, near the right one and seldom equal to it."""
    answer = int(row["answer"])
    return f"#### {answer + round(rng.gauss(0, max(4, abs(answer) / 8)))}"


def make_batches(encode: Callable[[str], list[int]], steps: int, rng: random.Random) -> Iterator[list]:
    """Yield, for each step, a list of (prompt ids, response ids)."""
    rows = {family: list(generate(family, "train", ROWS_PER_FAMILY, seed=0)) for family in FAMILY_WEIGHTS}
    for step in range(steps):
        learning_skill = step < SKILL_SHARE * steps
        batch = []
        for family in rng.choices(list(FAMILY_WEIGHTS), list(FAMILY_WEIGHTS.values()), k=BATCH_SIZE):
            row = rng.choice(rows[family])
            worked = learning_skill or rng.random() < WORKED_SHARES[family]
            response = row["demonstration"] if worked else guess(row, rng)
            batch.append((encode(row["prompt"] + "\n"), [*encode(response), EOS]))
        yield batch


def batch_loss(model: Qwen2ForCausalLM, batch: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Mean cross-entropy of the response tokens; padding is on the right, where causal attention never
    looks."""
    width = max(len(prompt) + len(response) for prompt, response in batch)
    ids_BT = torch.full((len(batch), width), PAD)
    labels_BT = torch.full((len(batch), width), -100)
    for ids_T, labels_T, (prompt, response) in zip(ids_BT, labels_BT, batch, strict=True):
        end = len(prompt) + len(response)
        ids_T[:end] = torch.tensor(prompt + response)
        labels_T[len(prompt) : end] = torch.tensor(response)
    logits_BTV = model(ids_BT).logits
    return torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten()
    )


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm up over the first 100 steps, then follow a cosine to zero."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(model: Qwen2ForCausalLM, encode: Callable[[str], list[int]], steps: int, seed: int) -> None:
    """Train `model` in place."""
    model.set_attn_implementation("eager")  # on a CPU, twice as fast at these lengths
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    for step, batch in enumerate(make_batches(encode, steps, random.Random(seed))):
        with torch.autocast("cpu", torch.bfloat16):
            loss = batch_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}  loss {loss.item():.3f}", flush=True)


def main() -> None:
    """Train the base model and write it with its tokenizer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", help="where the model is written")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    train(model, tokenizer.encode, arguments.steps, arguments.seed)
    model.save_pretrained(arguments.directory)
    tokenizer.save_pretrained(arguments.directory)


if __name__ == "__main__":
    main()
