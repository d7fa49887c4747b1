"""Token ids to text as they come: whole characters only, stop sequences across token boundaries.

This module knows no model and no schedule. A `TextTable` is made once per tokenizer, a `TextStream` once per row.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from typing import Any

from inference_svc.toolcalls import CLOSE, OPEN

_BROKEN = "\ufffd"


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (Radford et al. 2019), turned round."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    extra = (b for b in range(256) if b not in set(plain))
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(extra)}


class TextTable:
    """What each token of a tokenizer stands for.

    Byte-level tokenizers, which most models have, decode by table: a token is its bytes. For others the tokenizer's own
    decoder is asked, with enough context to know about spaces.

    Args:
        tokenizer: a fast tokenizer of Transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        # Tool calls are read from the text, so their marks belong to it even where the tokenizer calls them special.
        marks = {index for index, token in added.items() if token.content in (OPEN, CLOSE)}
        self.special: frozenset[int] = (
            frozenset(tokenizer.all_special_ids) | {index for index, token in added.items() if token.special}
        ) - marks
        decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
        self.bytes: list[bytes] | None = None
        if decoder.get("type") == "ByteLevel" and not getattr(tokenizer, "clean_up_tokenization_spaces", False):
            self.bytes = self._table()

    def _table(self) -> list[bytes]:
        alphabet = _byte_alphabet()
        added = self._tokenizer.added_tokens_decoder
        table = []
        for index, token in enumerate(self._tokenizer.convert_ids_to_tokens(list(range(len(self._tokenizer))))):
            if index in self.special or token is None:
                table.append(b"")
            elif index in added or any(character not in alphabet for character in token):
                table.append(token.encode())
            else:
                table.append(bytes(alphabet[character] for character in token))
        return table

    def text(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of some tokens on their own; special ones are left out unless asked for."""
        wanted = list(ids) if special else [index for index in ids if index not in self.special]
        decoded: str = self._tokenizer.decode(wanted)
        return decoded

    def stream(self) -> TextStream:
        """A decoder for one row."""
        return ByteStream(self.bytes) if self.bytes is not None else DecoderStream(self)


class TextStream:
    """Text of a row as its tokens come."""

    def push(self, token: int) -> str:
        """Text that `token` completes; empty while a character is open."""
        raise NotImplementedError

    def close(self) -> str:
        """What is left open at the end, as replacement characters."""
        raise NotImplementedError


class ByteStream(TextStream):
    """For byte-level tokenizers: bytes by table, characters by the standard decoder."""

    def __init__(self, table: list[bytes]) -> None:
        self._table = table
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token: int) -> str:
        """See `TextStream.push`."""
        return self._decode(self._table[token]) if token < len(self._table) else ""

    def close(self) -> str:
        """See `TextStream.close`."""
        return self._decode(b"", True)


class DecoderStream(TextStream):
    """For other tokenizers: decode from a few tokens back, so that the decoder sees whether a word goes on."""

    def __init__(self, table: TextTable) -> None:
        self._table = table
        self._ids: list[int] = []
        self._anchor = self._read = 0

    def push(self, token: int) -> str:
        """See `TextStream.push`."""
        self._ids.append(token)
        known = self._table.text(self._ids[self._anchor : self._read])
        full = self._table.text(self._ids[self._anchor :])
        if len(full) <= len(known) or full.endswith(_BROKEN):
            return ""
        self._anchor, self._read = self._read, len(self._ids)
        return full[len(known) :]

    def close(self) -> str:
        """See `TextStream.close`."""
        known = self._table.text(self._ids[self._anchor : self._read])
        return self._table.text(self._ids[self._anchor :])[len(known) :]


class StopFinder:
    """Looks for stop sequences in a text that comes in pieces and holds back what may become one.

    Args:
        sequences: none empty. The match that begins first wins, of those the longest.
        include: leave the match in the text.
    """

    def __init__(self, sequences: Sequence[str], *, include: bool = False) -> None:
        self._sequences = tuple(sorted(set(sequences), key=len, reverse=True))
        self._include = include
        self._held = ""

    def push(self, piece: str) -> tuple[str, str]:
        """Text that is free to go, and the sequence that matched or an empty string."""
        text = self._held + piece
        found, match = len(text), ""
        for sequence in self._sequences:
            if (at := text.find(sequence)) >= 0 and at < found:
                found, match = at, sequence
        if match:
            self._held = ""
            return text[: found + len(match) * self._include], match
        keep = max((self._overlap(text, sequence) for sequence in self._sequences), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def close(self) -> str:
        """What is still held back; it did not become a match."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, sequence: str) -> int:
        """Length of the longest end of `text` that begins `sequence`."""
        for length in range(min(len(text), len(sequence) - 1), 0, -1):
            if sequence.startswith(text[-length:]):
                return length
        return 0
