"""Text to token ids: prompt templates and demonstrations."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from srft_ray.config.schema import DataSection, ModelSection
from srft_ray.data.rows import Row
from srft_ray.errors import UserError, first_line, require
from srft_ray.imports import large_imports

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = "{prompt}\n"
PLAIN_TEMPLATE_WITH_SYSTEM_PROMPT = "{system_prompt}\n\n{prompt}\n"


def load_tokenizer(model: ModelSection) -> "PreTrainedTokenizerBase":
    """The model's tokenizer.

    Raises:
        UserError: there is none, or it has no vocabulary or no end-of-sequence token.
    """
    with large_imports():
        from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        raise UserError(
            f"No tokenizer could be loaded from model.path {model.path}: {first_line(error)}."
        ) from error
    # A tokenizer that names no eos token gets that of its family from transformers; the model lacks its id.
    eos = tokenizer.eos_token_id
    require(
        eos is not None and eos < _vocabulary_size(model),
        f"The tokenizer of {model.path} has no eos token that the model knows, so that no response could "
        "ever end: set eos_token in its tokenizer_config.json.",
    )
    # What transformers makes of a model directory without tokenizer files has no vocabulary.
    require(
        len(tokenizer("1 + 1", add_special_tokens=False).input_ids) > 0,
        f"The tokenizer of {model.path} has no vocabulary: put the model's "
        "tokenizer files, such as tokenizer.json, beside its weights.",
    )
    return tokenizer


def token_pieces(tokenizer: "PreTrainedTokenizerBase") -> Callable[[Sequence[int]], list[str]]:
    """Gives the text of each single token, as a page shows it; each is decoded once."""
    known: dict[int, str] = {}

    def pieces(ids: Sequence[int]) -> list[str]:
        for token in ids:
            if token not in known:
                known[token] = tokenizer.decode([token])
        return [known[token] for token in ids]

    return pieces


def _vocabulary_size(model: ModelSection) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    return config.get_text_config().vocab_size


class Template:
    """Renders rows to token ids with the tokenizer's chat template or a plain one."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", section: DataSection) -> None:
        """Raises UserError if template, system prompt and tokenizer do not fit together."""
        self.tokenizer = tokenizer
        self.system_prompt = section.system_prompt
        has_chat_template = tokenizer.chat_template is not None
        self.chat = section.template == "chat" or (section.template == "auto" and has_chat_template)
        self.text = section.template
        if section.template == "auto":
            self.text = PLAIN_TEMPLATE_WITH_SYSTEM_PROMPT if section.system_prompt else PLAIN_TEMPLATE
        require(
            not self.chat or has_chat_template,
            "data.template=chat, but the tokenizer has no chat template: use a text with {prompt} instead.",
        )
        require(
            self.chat or "{prompt}" in self.text,
            f"data.template {section.template!r} must be auto, chat, or a text that contains {{prompt}}.",
        )
        require(
            self.chat or (section.system_prompt is not None) == ("{system_prompt}" in self.text),
            "data.system_prompt and {system_prompt} in data.template go together: give both or neither.",
        )

    def prompt(self, row: Row) -> tuple[str, list[int]]:
        """(rendered prompt, its token ids).

        Raises:
            UserError: the tokenizer's chat template refuses the row's messages.
        """
        return self._chat_prompt(row) if self.chat else self._plain_prompt(row)

    def _plain_prompt(self, row: Row) -> tuple[str, list[int]]:
        last = row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"]
        text = self.text.replace("{system_prompt}", self.system_prompt or "").replace("{prompt}", last)
        ids = self.tokenizer(text).input_ids
        # Some tokenizers end every text with eos; a prompt goes on.
        ends = bool(ids) and ids[-1] == self.tokenizer.eos_token_id
        return text, ids[:-1] if ends else ids

    def _chat_prompt(self, row: Row) -> tuple[str, list[int]]:
        is_conversation = isinstance(row.prompt, list)
        messages = row.prompt if is_conversation else [{"role": "user", "content": row.prompt}]
        if self.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        try:
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:  # templates refuse unknown roles, and roles that do not alternate
            raise UserError(
                f"The tokenizer's chat template refuses a prompt ({error}): correct it, or set data.template "
                "to a text with {prompt}."
            ) from error
        return text, self.tokenizer(text, add_special_tokens=False).input_ids

    def demonstration(self, text: str, prompt: str) -> list[int]:
        """Token ids of a demonstration and the end-of-sequence token.

        If the rendered prompt has already opened a `<think>`, the one that the text begins with is left out.
        """
        if prompt.rstrip().endswith("<think>"):
            text = text.removeprefix("<think>").lstrip("\n")
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
