"""Text from a model of transformers: by its own `generate`, or token by token for our beam search.

The model's `generate` decodes greedily. Beam search is ours for every model, because that of transformers divides by
another length penalty and stops by another rule, so that --beam would mean two things.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from bigbatch.models.hugging_face.library import library, quiet, silent


def generated(model: Any, prompt: Tensor, end: int, longest: int, **inputs: Tensor) -> list[list[int]]:
    """Has a model generate greedily: the likeliest token, again and again.

    Whatever else the model's own settings for generation ask for, such as a smallest length, is left aside: scores of
    different models are then comparable.

    Args:
        model: the model, in evaluation mode.
        prompt: (rows, tokens) what each text begins with.
        end: the token that ends a text.
        longest: number of tokens after which a text is cut.
        inputs: what `generate` is called with, the prompt among it.

    Returns:
        The tokens of each row, without prompt and end.
    """
    if longest < 1:
        return [[] for _ in prompt]
    plain = library().GenerationConfig(
        max_new_tokens=longest,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=int(prompt[0, 0]),
        decoder_start_token_id=int(prompt[0, 0]),
    )
    inputs.setdefault("attention_mask", torch.ones_like(prompt))
    own = model.generation_config
    model.generation_config = plain
    try:
        with quiet():
            texts = model.generate(**inputs, generation_config=plain)
    finally:
        model.generation_config = own
    rows = texts[:, prompt.shape[1] :].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


class Writing:
    """Writes targets token by token, and computes each token's keys and values only once.

    Args:
        model: a sequence-to-sequence model that `keeps` keys and values.
        source: (rows, source sequence) token numbers of what it reads.
        mask: (rows, source sequence) 0 at padding; None if there is none.
    """

    def __init__(self, model: Any, source: Tensor, mask: Tensor | None) -> None:
        self._model = model
        self._mask = torch.ones_like(source) if mask is None else mask
        with silent():
            states: Tensor = model.get_encoder()(input_ids=source, attention_mask=self._mask)[0]
        self._states = states
        made = [library().DynamicCache(config=model.config) for _ in range(2)]
        self._cache = library().EncoderDecoderCache(*made)
        self._begun = False

    def advance(self, tokens: Tensor) -> Tensor:
        """Takes the newest token of every row, (rows,), and predicts the next: (rows, vocabulary) logits."""
        with silent():
            called = self._model(
                decoder_input_ids=tokens[:, None],
                encoder_outputs=library().modeling_outputs.BaseModelOutput(last_hidden_state=self._states),
                attention_mask=self._mask,
                use_cache=True,
                **{str(keeps(self._model)): self._cache},
            )
        self._begun = True
        return logits_of(called)[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Keeps these rows, (rows,), in this order; a row can be kept several times."""
        self._states, self._mask = self._states[rows], self._mask[rows]
        if self._begun:
            self._cache.batch_select_indices(rows)


def logits_of(called: Any) -> Tensor:
    """The logits in what a model returned, which come first if it returned a tuple."""
    logits: Tensor = called[0] if isinstance(called, tuple) else called.logits
    return logits


def keeps(model: Any) -> str | None:
    """The argument of a model's forward that keeps keys and values, which transformers renamed; None if it has none."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in names), None)
