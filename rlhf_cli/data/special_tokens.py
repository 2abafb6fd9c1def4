"""Text that spells a special token stays text: only a chat template writes special tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import cached_property
from secrets import token_hex

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from rlhf_cli.data.bad_rows import BadRow

# Noncharacters that Unicode reserves for internal use. A text may contain them too, but it cannot
# contain the random string that our marks have between them.
_HIDDEN, _WRITTEN, _END = "\ufdd0", "\ufdd1", "\ufdd2"


class SpecialTokens:
    """Distinguishes special tokens that a template writes from those that a message spells.

    `hide` prepares a message for rendering, and `ids` tokenises the rendered text. Where no message
    spells a special token, the tokenizer itself makes the ids. Otherwise a copy of it does, which
    reads no special token in the text. There, each special token that the template wrote is
    replaced by a token whose name no message can contain.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: str = "") -> None:
        """Collect the special tokens, and all added tokens that a template has `written`."""
        self._tokenizer = tokenizer
        self._tokens: list[tuple[int, AddedToken]] = [
            (token_id, token)
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.content.strip() and (token.special or token.content in written)
        ]
        spellings = sorted((token.content for _, token in self._tokens), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, spellings)) or "(?!)")
        self._numbers = {token.content: number for number, (_, token) in enumerate(self._tokens)}
        # The tokenizer's normaliser may turn other spellings into such a token, too.
        self._always_separate = any(token.normalized for _, token in self._tokens)
        secret = token_hex(8)  # no token id depends on it
        self._hidden, self._written = f"{_HIDDEN}{secret}.", f"{_WRITTEN}{secret}."
        self._mark = re.compile(f"{self._hidden}([0-9]+){_END}")

    def hide(self, text: str) -> str:
        """Replace each special token that a text spells by a mark."""
        return self._pattern.sub(lambda match: f"{self._hidden}{self._numbers[match[0]]}{_END}", text)

    def _reveal(self, text: str) -> str:
        return self._mark.sub(lambda match: self._tokens[int(match[1])][1].content, text)

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a rendered text, in which hidden special tokens are text.

        Raises BadRow where the tokenizer cannot read a special token in a message as text.
        """
        if not self._always_separate and self._hidden not in text:
            return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if self._separating is None:
            raise self._refusal(text)
        tokenizer, original_ids = self._separating
        renamed = self._pattern.sub(lambda match: self._name(self._numbers[match[0]]), text)
        ids = tokenizer.encode(self._reveal(renamed), add_special_tokens=False).ids
        forbidden = {token_id for token_id, _ in self._tokens} - {self._tokenizer.unk_token_id}
        if not forbidden.isdisjoint(ids):
            raise self._refusal(text)
        return tuple(original_ids.get(token_id, token_id) for token_id in ids)

    def first_id(self, text: str) -> int | None:
        """Return the id of the special token that a text begins with; None if there is none."""
        match = self._pattern.match(text)
        return None if match is None else self._tokens[self._numbers[match[0]]][0]

    def from_last(self, text: str) -> str:
        """Return a text from its last special token on; all of it where there is none."""
        starts = [match.start() for match in self._pattern.finditer(text)]
        return text[starts[-1] :] if starts else text

    def without_end(self, text: str, end_ids: Collection[int]) -> str:
        """Remove the end token that a response may spell at its end."""
        for token_id, token in self._tokens:
            if token_id in end_ids and text.endswith(token.content):
                return text.removesuffix(token.content)
        return text

    def _refusal(self, text: str) -> BadRow:
        match = self._mark.search(text)
        what = self._reveal(match[0]) if match else "a special token"
        return BadRow("text", f"spells {what}, which this tokenizer can only read as the special token")

    @cached_property
    def _separating(self) -> tuple[Tokenizer, dict[int, int]] | None:
        """A tokenizer that reads special tokens only by our names, and the ids they stand for."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        description = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
        ours = {token_id for token_id, _ in self._tokens}
        for token in description["added_tokens"]:
            token["special"] = token["special"] or token["id"] in ours
        tokenizer = Tokenizer.from_str(json.dumps(description))
        tokenizer.encode_special_tokens = True  # as text
        original_ids = {}
        for number, (token_id, token) in enumerate(self._tokens):
            strips = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
            tokenizer.add_tokens([AddedToken(self._name(number), normalized=False, special=False, **strips)])
            named_id = tokenizer.token_to_id(self._name(number))
            assert named_id is not None
            original_ids[named_id] = token_id
        return tokenizer, original_ids

    def _name(self, number: int) -> str:
        return f"{self._written}{number}{_END}"
