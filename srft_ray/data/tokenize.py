"""Text to token ids: prompt templates and demonstrations."""
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from srft_ray.config import DataSection, ModelSection
from srft_ray.data.rows import Row
from srft_ray.errors import UserError

PLAIN_TEMPLATE = "{prompt}\n"


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """Raises UserError if there is no tokenizer, or it has no end-of-sequence token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        raise UserError(f"No tokenizer could be loaded from model.path {model.path}: {str(error).splitlines()[0]}") from error
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id >= _vocabulary(model):
        raise UserError(f"The tokenizer of {Path(model.path)} has no eos token that the model knows, so that no response could ever end: "
                        "set eos_token in its tokenizer_config.json.")
    if not tokenizer("1 + 1", add_special_tokens=False).input_ids:  # what transformers makes of a model directory without tokenizer files
        raise UserError(f"The tokenizer of {model.path} has no vocabulary: put the model's tokenizer files, such as tokenizer.json, "
                        "beside its weights.")
    return tokenizer


def _vocabulary(model: ModelSection) -> int:
    """Tokens that the model has. transformers gives a tokenizer without eos token its family's, even as a token too many."""
    return AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code).get_text_config().vocab_size


class Template:
    """Renders rows to token ids with the tokenizer's chat template or a plain one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, section: DataSection) -> None:
        self.tokenizer, self.system_prompt = tokenizer, section.system_prompt
        self.chat = section.template == "chat" or (section.template == "auto" and tokenizer.chat_template is not None)
        self.text = PLAIN_TEMPLATE if section.template == "auto" else section.template
        if section.template == "auto" and section.system_prompt and not self.chat:
            self.text = "{system_prompt}\n\n" + PLAIN_TEMPLATE
        self._check(section)

    def _check(self, section: DataSection) -> None:
        if self.chat and self.tokenizer.chat_template is None:
            raise UserError("data.template=chat, but the tokenizer has no chat template: use a text with {prompt} instead.")
        if not self.chat and "{prompt}" not in self.text:
            raise UserError(f"data.template {section.template!r} must be auto, chat, or a text that contains {{prompt}}.")
        if not self.chat and (section.system_prompt is not None) != ("{system_prompt}" in self.text):
            raise UserError("data.system_prompt and {system_prompt} in data.template go together: give both or neither.")

    def prompt(self, row: Row) -> tuple[str, list[int]]:
        """(rendered prompt, its token ids)."""
        if not self.chat:
            text = self.text.replace("{system_prompt}", self.system_prompt or "").replace("{prompt}", _last_user_text(row.prompt))
            return text, _without_eos(self.tokenizer(text).input_ids, self.tokenizer.eos_token_id)
        messages: list[dict[str, Any]] = row.prompt if isinstance(row.prompt, list) else [{"role": "user", "content": row.prompt}]
        if self.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        try:
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:  # templates refuse roles that they do not know or that do not alternate
            raise UserError(f"The tokenizer's chat template refuses a prompt ({error}): correct it, or set data.template to a text "
                            "with {prompt}.") from error
        return text, self.tokenizer(text, add_special_tokens=False).input_ids

    def demonstration(self, text: str, prompt: str) -> list[int]:
        """Token ids of a demonstration, its end-of-sequence token included.

        Where the prompt's template already opens `<think>`, a demonstration that opens it again loses the second one.
        """
        if prompt.rstrip().endswith("<think>"):
            text = text.removeprefix("<think>").lstrip("\n")
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]


def _last_user_text(prompt: str | list[dict[str, str]]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _without_eos(ids: list[int], eos: int) -> list[int]:
    return ids[:-1] if ids and ids[-1] == eos else ids
