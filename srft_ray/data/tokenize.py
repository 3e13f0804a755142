"""Text to token ids: prompt templates and demonstrations."""

from typing import Any

from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from srft_ray.config.schema import DataSection, ModelSection
from srft_ray.data.rows import Row
from srft_ray.errors import UserError, first_line, require


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """Raises UserError if there is no tokenizer, or it has no end-of-sequence token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    except Exception as error:
        raise UserError(
            f"No tokenizer could be loaded from model.path {model.path}: {first_line(error)}."
        ) from error
    eos = (
        tokenizer.eos_token_id
    )  # where a tokenizer has none transformers gives it its family's, even as a token too many
    known = (
        eos is not None
        and eos
        < AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        .get_text_config()
        .vocab_size
    )
    require(
        known,
        f"The tokenizer of {model.path} has no eos token that the model knows, so that no response could ever end: set eos_token in its "
        "tokenizer_config.json.",
    )
    # what transformers makes of a model directory without tokenizer files has no vocabulary
    require(
        len(tokenizer("1 + 1", add_special_tokens=False).input_ids) > 0,
        f"The tokenizer of {model.path} has no vocabulary: put the model's "
        "tokenizer files, such as tokenizer.json, beside its weights.",
    )
    return tokenizer


class Template:
    """Renders rows to token ids with the tokenizer's chat template or a plain one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, section: DataSection) -> None:
        self.tokenizer, self.system_prompt = tokenizer, section.system_prompt
        self.chat = section.template == "chat" or (
            section.template == "auto" and tokenizer.chat_template is not None
        )
        plain = "{system_prompt}\n\n{prompt}\n" if section.system_prompt else "{prompt}\n"
        self.text = plain if section.template == "auto" else section.template
        require(
            not self.chat or tokenizer.chat_template is not None,
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
        """(rendered prompt, its token ids)."""
        if not self.chat:
            last = row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"]
            text = self.text.replace("{system_prompt}", self.system_prompt or "").replace("{prompt}", last)
            ids = self.tokenizer(text).input_ids
            return text, ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids
        messages: list[dict[str, Any]] = (
            row.prompt if isinstance(row.prompt, list) else [{"role": "user", "content": row.prompt}]
        )
        if self.system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        try:
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except (
            TemplateError
        ) as error:  # templates refuse roles that they do not know or that do not alternate
            raise UserError(
                f"The tokenizer's chat template refuses a prompt ({error}): correct it, or set data.template to a text "
                "with {prompt}."
            ) from error
        return text, self.tokenizer(text, add_special_tokens=False).input_ids

    def demonstration(self, text: str, prompt: str) -> list[int]:
        """Its token ids and the end-of-sequence token; without the `<think>` that it begins with if the prompt has already opened one."""
        if prompt.rstrip().endswith("<think>"):
            text = text.removeprefix("<think>").lstrip("\n")
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
