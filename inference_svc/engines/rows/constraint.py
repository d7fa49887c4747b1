"""Output that must have a form: JSON Schema, regular expression, choices or grammar, kept by llguidance.

A constraint says before each token which tokens may come. This module knows no model and no schedule.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor

from chatmill.errors import InvalidArgument
from inference_svc.generation import Constraint, ConstraintKind


class OutputConstraint:
    """One output on its way through a form.

    Args:
        matcher: of llguidance, at the start of the output.
        vocabulary_size: of the logits.
    """

    def __init__(self, matcher: LLMatcher, vocabulary_size: int) -> None:
        self._matcher, self._size = matcher, vocabulary_size

    def allowed(self) -> Tensor:
        """[vocabulary] bool: which tokens may come next; only end-of-turn tokens once the form is complete."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        flags = np.unpackbits(bits, bitorder="little", count=self._size)
        return torch.from_numpy(flags).bool()

    def take(self, token: int) -> bool:
        """Go on by a token; False if the form does not allow it."""
        return bool(self._matcher.consume_token(token)) and not self._matcher.is_error()


class ConstraintCompiler:
    """Makes constraints for one tokenizer.

    Args:
        tokenizer: a fast tokenizer of Transformers.
        vocabulary_size: of the model's logits, which may be more than the tokenizer's.
        end_ids: end-of-turn tokens.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int, end_ids: tuple[int, ...]) -> None:
        self._tokenizer, self._size, self._end_ids = tokenizer, vocabulary_size, end_ids
        self._prepared: LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint) -> OutputConstraint:
        """Ready for the first token. May take a second, the first time more: not on the event loop.

        Raises:
            InvalidArgument: field `constraint.<kind>`: llguidance does not accept it; the message is its own.
        """
        with self._lock:
            if self._prepared is None:
                # Thread-safe only once made; making it walks the whole vocabulary.
                self._prepared = from_tokenizer(self._tokenizer, n_vocab=self._size, eos_token=list(self._end_ids))
        field = f"constraint.{constraint.kind.value}"
        try:
            grammar = _grammar(constraint)
            error = LLMatcher.validate_grammar(grammar, self._prepared)
        except ValueError as refused:
            error = str(refused)
        if error:
            raise InvalidArgument.field(field, error.strip(), reason="BAD_CONSTRAINT")
        matcher = LLMatcher(self._prepared, grammar, log_level=0)
        if matcher.is_error():
            raise InvalidArgument.field(field, matcher.get_error().strip(), reason="BAD_CONSTRAINT")
        return OutputConstraint(matcher, self._size)


def _grammar(constraint: Constraint) -> str:
    grammar: str
    if constraint.kind is ConstraintKind.JSON_SCHEMA:
        # Free whitespace lets a model fill its whole budget with blanks.
        grammar = LLMatcher.grammar_from_json_schema(constraint.value, defaults={"whitespace_flexible": False})
    elif constraint.kind is ConstraintKind.REGEX:
        grammar = LLMatcher.grammar_from_regex(constraint.value)
    elif constraint.kind is ConstraintKind.CHOICES:
        options = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in constraint.choices)
        grammar = LLMatcher.grammar_from_lark(f"start: {options}")
    else:
        grammar = LLMatcher.grammar_from_lark(constraint.value)
    return grammar
