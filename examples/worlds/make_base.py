"""Make the base model of the world "strings" from scratch, in some minutes of one core.

python examples/worlds/make_base.py DIRECTORY [--steps 1400] [--seed 0]
"""

import argparse
import math
import random
from collections.abc import Iterator

import torch
from strings import KNOWN, LETTERS, OPERATIONS, Band, changed, direct, draw_chain, draw_sum, guess, worked
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PAD, EOS, BOS = 0, 1, 2
# Space and line end are written as byte-level tokenizers write them.
SPACE, LINE_END = "Ġ", "Ċ"
SYMBOLS = ["<pad>", "<eos>", "<bos>", *LETTERS, *OPERATIONS, ":", "+", "=", SPACE, LINE_END]
IDS = {symbol: number for number, symbol in enumerate(SYMBOLS)}
BATCH_SIZE = 64
PEAK_LR = 3e-3
SUM_SHARE = 0.25
DEPTH_SHARES = {1: 0.15, 2: 0.3, 3: 0.3, 4: 0.15, 5: 0.1}
# Careless steps in worked texts: the longer the chain, the more there are.
ERRORS = {1: 0.0, 2: 0.02, 3: 0.05, 4: 0.2, 5: 0.25}
# All texts are worked until SKILL_SHARE of the steps is done; then this share, the rest being guesses.
SKILL_SHARE = 0.8
WORKED_SHARE = 0.2


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Characters as tokens."""
    core = Tokenizer(models.BPE(vocab=IDS, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def make_model() -> Qwen2ForCausalLM:
    """A Qwen2 of 0.45M parameters."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=32,
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=4,
            num_attention_heads=3,  # of 32 each, the smallest that vLLM has on CPU
            num_key_value_heads=3,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.08,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=BOS,
        )
    )


def text(rng: random.Random, worked_share: float) -> tuple[str, str]:
    """A prompt and a response of the base model's training."""
    if rng.random() < SUM_SHARE:
        problem = draw_sum(rng)
        return problem.prompt, direct(problem.answer)
    depth = rng.choices(list(DEPTH_SHARES), list(DEPTH_SHARES.values()))[0]
    problem = draw_chain(Band((depth,)), rng)
    if depth > 1 and rng.random() > worked_share:
        return problem.prompt, guess(rng)
    states = []
    now = problem.prompt.partition(":")[2]
    for operation in problem.operations:
        now = KNOWN[operation](now)
        if rng.random() < ERRORS[depth]:
            now = changed(now, rng)
        states.append(now)
    return problem.prompt, worked(problem.operations, states)


def batches(steps: int, rng: random.Random) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Yields, for each step, pairs of prompt ids and response ids."""
    for step in range(steps):
        worked_share = 1.0 if step < SKILL_SHARE * steps else WORKED_SHARE
        pairs = [text(rng, worked_share) for _ in range(BATCH_SIZE)]
        yield [(encode(f"{prompt}\n"), [*encode(response), EOS]) for prompt, response in pairs]


def encode(characters: str) -> list[int]:
    """As the tokenizer does."""
    return [IDS[symbol] for symbol in characters.replace(" ", SPACE).replace("\n", LINE_END)]


def batch_loss(model: Qwen2ForCausalLM, batch: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Mean cross-entropy of the response tokens; causal attention never looks at the padding on the right."""
    width = max(len(prompt) + len(response) for prompt, response in batch)
    ids_BT = torch.full((len(batch), width), PAD)
    labels_BT = torch.full((len(batch), width), -100)
    for ids_T, labels_T, (prompt, response) in zip(ids_BT, labels_BT, batch, strict=True):
        end = len(prompt) + len(response)
        ids_T[:end] = torch.tensor(prompt + response)
        labels_T[len(prompt) : end] = torch.tensor(response)
    logits_BTV = model(ids_BT).logits
    return torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm up over the first 100 steps, then follow a cosine to zero."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(model: Qwen2ForCausalLM, steps: int, seed: int) -> None:
    """Trains the model in place."""
    model.set_attn_implementation("eager")  # on a CPU, faster at these lengths
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    for step, batch in enumerate(batches(steps, random.Random(seed))):
        loss = batch_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}  loss {loss.item():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", help="where the model is written")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    model = make_model()
    train(model, arguments.steps, arguments.seed)
    model.save_pretrained(arguments.directory)
    make_tokenizer().save_pretrained(arguments.directory)


if __name__ == "__main__":
    main()
