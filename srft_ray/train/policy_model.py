"""The trained model, asked for log-probs of given tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from srft_ray.models import LogitForm
from srft_ray.train.logprobs import PLAIN, ReferenceLogits, Scores, chunked_logprobs


class PolicyModel(nn.Module):
    """A causal language model that returns log-probs and entropies of given tokens instead of logits."""

    def __init__(self, model: nn.Module, logit_chunk_mb: float | None) -> None:
        super().__init__()
        self.model = model
        self.logit_chunk_mb = logit_chunk_mb
        self.form = LogitForm.of(model.config)
        self._uses_model_logits = False
        # The chunks run inside one call of the head, so that ZeRO-3 gathers its weight once on every rank,
        # however many chunks a rank has.
        head = model.get_output_embeddings()
        head.forward = partial(chunked_logprobs, head)

    def forward(
        self,
        input_ids_BL: Tensor,
        rows_N: Tensor,
        positions_N: Tensor,
        temperature: float,
        entropy_gradient: bool = False,
        references: Sequence[ReferenceLogits] = (),
        logits_only: bool = False,
        position_ids_BL: Tensor | None = None,
    ) -> Any:
        """Log-prob and entropy of token `positions_N` of row `rows_N`, given its context; float32, (N,).

        For each reference there is a further figure, KL(π‖reference) over the vocabulary, with gradient.
        With `logits_only` the result is this model's own ReferenceLogits instead. Rows are right-padded; with
        causal attention no real token sees the padding, so there is no attention mask. With position ids that
        begin again within a row, no token sees one before the last beginning.
        """
        if self._uses_model_logits:
            logits_NV = self.model(input_ids=input_ids_BL, use_cache=False).logits[rows_N, positions_N - 1]
            scores = Scores(PLAIN, temperature, entropy_gradient)
            return scores(logits_NV, input_ids_BL[rows_N, positions_N])
        decoder = self.model.get_decoder()
        head = self.model.get_output_embeddings()
        positions = {} if position_ids_BL is None else {"position_ids": position_ids_BL}
        hidden_BLH = decoder(input_ids=input_ids_BL, use_cache=False, **positions).last_hidden_state
        # The hidden state of a position predicts the token behind it.
        hidden_NH = hidden_BLH[rows_N, positions_N - 1]
        targets_N = None if logits_only else input_ids_BL[rows_N, positions_N]
        settings = (temperature, self.logit_chunk_mb, entropy_gradient, references, self.form)
        return head(hidden_NH, targets_N, *settings)

    @contextmanager
    def model_logits(self) -> Iterator[None]:
        """Within it, log-probs come from the model's own logits, all at once."""
        head = self.model.get_output_embeddings()
        chunked = head.__dict__.pop("forward")
        self._uses_model_logits = True
        try:
            yield
        finally:
            self._uses_model_logits = False
            head.forward = chunked
