"""An assistant turn, read token by token: what a stream can show as soon as it is sure (source: the chat template)."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.boundary import strict_json
from model.codec.chat import ToolCall, call_id, parse_call
from model.codec.tokenizer import Tokenizer


@dataclass(frozen=True)
class Delta:
    """A part of the turn; exactly one field is set."""

    content: str = ""
    reasoning: str = ""
    call: ToolCall | None = None


class TurnReader:
    """Turns a completion's tokens into deltas, which together are the turn.

    A malformed tool call, or one where no tool was offered, is kept as content. So is a call with arguments that JSON
    cannot express, such as NaN and 1e999, because a replacement value would change the call. A stop text ends the
    content before it and sets ``stopped``; further tokens are ignored.
    """

    def __init__(
        self, tokenizer: Tokenizer, thinking: bool, offers_tools: bool, calls: int, stops: Sequence[str] = ()
    ) -> None:
        """
        Args:
            thinking: the prompt ended within ``<think>``.
            offers_tools: read tool calls; else they are text.
            calls: how many calls the conversation has had, so that ids are counted over all of it.
            stops: texts that end the content.
        """
        self._tokenizer = tokenizer
        self._offers_tools = offers_tools
        self._calls = calls
        self._stops = stops
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._reasons = thinking
        self._begun = thinking  # has anything been written? ``<think>`` opens the reasoning only at the very start
        self._held = ""  # content that may be the beginning of a stop text
        self._section: list[int] | None = None  # tokens of a tool call section, not yet read
        self.stopped = False
        name = tokenizer.token_id
        self._think, self._unthink = name("<think>"), name("</think>")
        self._open, self._close = name("<|tool_calls_section_begin|>"), name("<|tool_calls_section_end|>")
        self._call, self._called = name("<|tool_call_begin|>"), name("<|tool_call_end|>")

    def feed(self, token: int) -> Iterator[Delta]:
        """What is certain with this token."""
        if self.stopped or token == self._tokenizer.im_end_id:
            return
        if self._section is not None:
            yield from self._read_section(token)
        elif token < self._tokenizer.ranks:
            self._begun = True
            yield from self._text(self._bytes.decode(self._tokenizer.token_bytes(token)))
        else:
            yield from self._special(token)
            self._begun = True

    def finish(self) -> Iterator[Delta]:
        """What was held back, once no more tokens come."""
        if self.stopped:
            return
        yield from self._text(self._bytes.decode(b"", final=True))
        if self._section:
            yield from self._text(self._tokenizer.decode(self._section))
            self._section = None
        if self._held:
            yield Delta(content=self._held)
            self._held = ""

    def _special(self, token: int) -> Iterator[Delta]:
        yield from self._text(self._bytes.decode(b"", final=True))
        self._bytes.reset()
        if token == self._think and not self._begun:
            self._reasons = True
        elif token == self._unthink and self._reasons:
            self._reasons = False
        elif token == self._open and self._offers_tools and not self._reasons:
            self._section = [token]
        else:
            yield from self._text(self._tokenizer.token_bytes(token).decode())

    def _read_section(self, token: int) -> Iterator[Delta]:
        assert self._section is not None
        self._section.append(token)
        if token == self._called:
            try:
                begin = self._section.index(self._call)
                if self._section[:begin] not in ([self._open], []):
                    raise ValueError("there is text between the calls")
                call = parse_call(self._section[begin + 1 : -1], self._tokenizer)
                strict_json.read(strict_json.write(call.arguments))  # the caller will send it back
            except ValueError:
                # What follows in this section depends on the broken call; it is text as well.
                broken, self._section = self._section, None
                yield from self._text(self._tokenizer.decode(broken))
                return
            # Text before the section can no longer become a stop text.
            if self._held:
                yield Delta(content=self._held)
                self._held = ""
            yield Delta(call=ToolCall(call_id(call.name, self._calls), call.name, call.arguments))
            self._calls += 1
            self._section = []
        elif token == self._close:
            rest, self._section = self._section, None
            if rest != [token]:
                yield from self._text(self._tokenizer.decode(rest))

    def _text(self, text: str) -> Iterator[Delta]:
        if not text or self.stopped:
            return
        if self._reasons:
            yield Delta(reasoning=text)
            return
        if not self._stops:
            yield Delta(content=text)
            return
        self._held += text
        found = [position for position in (self._held.find(stop) for stop in self._stops) if position >= 0]
        if found:
            self.stopped = True
            sure, self._held = self._held[: min(found)], ""
        else:
            keep = max(_overlap(self._held, stop) for stop in self._stops)
            sure, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if sure:
            yield Delta(content=sure)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
