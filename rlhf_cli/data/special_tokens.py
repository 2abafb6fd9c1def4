"""Text that spells a special token stays text: only a template writes special tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import cached_property
from secrets import token_hex

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from rlhf_cli.data.bad_rows import BadRow

# Characters that Unicode keeps for a program's own use. A text may hold them all the same; what is between them in our
# marks it cannot know.
_HIDDEN, _WRITTEN, _END = "\ufdd0", "\ufdd1", "\ufdd2"
_SECRET_BYTES = 8


class SpecialTokens:
    """Tells the special tokens that a template writes from those that a message spells.

    `hide` is for a message before it is rendered, `ids` for what is rendered. Only where a message does spell one are
    ids made otherwise than the tokenizer makes them: with a copy of it that reads no special token in the text, and in
    place of each that the template wrote a token with a name that no message can have.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: str = "") -> None:
        """Keep a tokenizer's special tokens from messages.

        written: what a template writes; the added tokens in it are kept from messages, special or not."""
        added = tokenizer.added_tokens_decoder
        self._tokenizer = tokenizer
        self._tokens: list[tuple[int, AddedToken]] = [
            (token_id, token)
            for token_id, token in added.items()
            if token.content.strip() and (token.special or token.content in written)
        ]
        spellings = sorted((token.content for _, token in self._tokens), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, spellings)) or "(?!)")
        self._places = {token.content: place for place, (_, token) in enumerate(self._tokens)}
        # such a token is found in other spellings, too: those that the tokenizer's normaliser makes the same
        self._always = any(token.normalized for _, token in self._tokens)
        secret = token_hex(_SECRET_BYTES)  # no id depends on it
        self._hidden, self._written = f"{_HIDDEN}{secret}.", f"{_WRITTEN}{secret}."
        self._mark = re.compile(f"{self._hidden}([0-9]+){_END}")

    def hide(self, text: str) -> str:
        """Return a text with a mark in place of each special token that it spells."""
        return self._pattern.sub(lambda found: f"{self._hidden}{self._places[found.group()]}{_END}", text)

    def shown(self, text: str) -> str:
        """Return a text as it was before it was hidden."""
        return self._mark.sub(lambda found: self._tokens[int(found.group(1))][1].content, text)

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a rendered text: special tokens where the template wrote them, text where it is hidden.

        Raises BadRow where the tokenizer cannot be kept from reading a special token in a message.
        """
        if not self._always and self._hidden not in text:
            return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if self._apart is None:
            raise self._refused(text)
        tokenizer, own_ids = self._apart
        marked = self._pattern.sub(lambda found: self._name(self._places[found.group()]), text)
        ids = tokenizer.encode(self.shown(marked), add_special_tokens=False).ids
        forbidden = {token_id for token_id, _ in self._tokens} - {self._tokenizer.unk_token_id}
        if not forbidden.isdisjoint(ids):
            raise self._refused(text)
        return tuple(own_ids.get(token_id, token_id) for token_id in ids)

    def at_start(self, text: str) -> int | None:
        """Return the id of the token that a text begins with, if one of the special tokens stands there."""
        found = self._pattern.match(text)
        return None if found is None else self._tokens[self._places[found.group()]][0]

    def from_last(self, text: str) -> str:
        """Return a text from the last special token in it on; the whole text, where there is none."""
        starts = [found.start() for found in self._pattern.finditer(text)]
        return text[starts[-1] :] if starts else text

    def without_end(self, text: str, ends: Collection[int]) -> str:
        """Return an answer without the end token that it may spell at its end."""
        for token_id, token in self._tokens:
            if token_id in ends and text.endswith(token.content):
                return text.removesuffix(token.content)
        return text

    def _refused(self, text: str) -> BadRow:
        found = self._mark.search(text)
        what = self._tokens[int(found.group(1))][1].content if found else "a special token"
        return BadRow("text", f"spells {what}, which this tokenizer can only read as the special token")

    @cached_property
    def _apart(self) -> tuple[Tokenizer, dict[int, int]] | None:
        """A tokenizer that reads no special token but those with names of our own, and whose ids these stand for."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        described = json.loads(backend.to_str())
        ours = {token_id for token_id, _ in self._tokens}
        for token in described["added_tokens"]:
            token["special"] = token["special"] or token["id"] in ours
        described |= {"truncation": None, "padding": None}
        tokenizer = Tokenizer.from_str(json.dumps(described))
        tokenizer.encode_special_tokens = True  # as text
        own_ids = {}
        for place, (token_id, token) in enumerate(self._tokens):
            name = self._name(place)
            strips = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
            tokenizer.add_tokens([AddedToken(name, normalized=False, special=False, **strips)])
            name_id = tokenizer.token_to_id(name)
            assert name_id is not None
            own_ids[name_id] = token_id
        return tokenizer, own_ids

    def _name(self, place: int) -> str:
        return f"{self._written}{place}{_END}"
