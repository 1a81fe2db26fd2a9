"""A judge: a model that reads a question, answers and a rubric, and gives a score (source: generative reward models of
the K2.5 paper, pairwise ranking of K2's critic; the forms are ours).

It speaks through any engine of rollouts, greedily: first what decides, then a verdict on the last line. The score is
the probability of that verdict after what stands before it: log-probs are those of the verdict's tokens. An engine that
knows none says 0 nats, so its verdicts are whole: 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from model.boundary.at_once import all_of
from model.boundary.errors import Unavailable
from model.boundary.untrusted_text import shown
from model.codec.chat import Message, encode_chat, parse_assistant
from model.codec.judge_prompt import MEETS, PAIR, pair_prompt, read_verdict, rubric_prompt
from model.codec.tokenizer import Tokenizer
from model.rollout.protocol import Completion, Request, RolloutEngine

ANSWER_TOKENS = 320  # more than the references of training have (ours)
SHOWN = 80  # characters of an answer without a verdict that are told (ours)


@dataclass(frozen=True)
class Judgement:
    """What a judge found.

    Attributes:
        score: in [0, 1]; None if its verdict could not be read.
        unread: why not, in one line; "" if it could.
    """

    score: float | None
    unread: str = ""


class Judge:
    """A model that judges.

    Args:
        engine: speaks for it.
        tokenizer: of the model; of a server that takes messages, any.
        context: tokens of prompt and answer together; None: not known.
        most: tokens of its answer: what it writes before the verdict, and the verdict.
    """

    def __init__(
        self, engine: RolloutEngine, tokenizer: Tokenizer, context: int | None = None, most: int = ANSWER_TOKENS
    ) -> None:
        self._engine, self._tokenizer, self._context, self._most = engine, tokenizer, context, most

    async def meets(self, question: str, answer: str, rubric: str) -> Judgement:
        """How far an answer meets a rubric: the probability that it does.

        Raises:
            Unavailable: the engine is gone.
        """
        return await self._ask(rubric_prompt(question, answer, rubric), MEETS)

    async def prefers(self, question: str, first: str, second: str, rubric: str) -> Judgement:
        """The probability that the first answer is better than the second by a rubric; 0.5 is a tie.

        Both orders are asked and averaged, so that a judge that likes one place best says nothing. Raises as `meets`.
        """
        orders = ((first, second), (second, first))
        forth, back = await all_of(self._ask(pair_prompt(question, *order, rubric), PAIR) for order in orders)
        if forth.score is None or back.score is None:
            return Judgement(None, forth.unread or back.unread)
        return Judgement((forth.score + 1.0 - back.score) / 2)

    async def _ask(self, messages: Sequence[Message], verdicts: tuple[str, str]) -> Judgement:
        """The probability of the first of two verdicts."""
        tokenizer = self._tokenizer
        prompt = encode_chat(messages, [], tokenizer, add_generation_prompt=True).ids
        if self._context is not None and len(prompt) + self._most > self._context:
            sizes = f"its prompt has {len(prompt)} tokens and its answer up to {self._most}"
            return Judgement(None, f"{sizes}, and it has room for {self._context}")
        request = Request(prompt, max_new_tokens=self._most, temperature=0.0, stop_token_ids=(tokenizer.im_end_id,))
        try:
            (completion,) = await self._engine.generate([request])
            return self._read(completion, verdicts)
        except Unavailable:
            raise
        except Exception as error:  # a server may answer any nonsense
            return Judgement(None, shown(f"{type(error).__name__}: {error}"))

    def _read(self, completion: Completion, verdicts: tuple[str, str]) -> Judgement:
        tokens, end = completion.token_ids, self._tokenizer.im_end_id
        if not all(0 <= token < self._tokenizer.vocab_size for token in tokens):
            return Judgement(None, "its answer has tokens that are not in its vocabulary")
        text = shown(self._tokenizer.decode(tokens)[-SHOWN:], SHOWN)  # a verdict is what it says last
        if completion.finish_reason != "stop":
            return Judgement(None, f"it said {text!r} and did not end")
        turn = parse_assistant(tokens, self._tokenizer)
        verdict = read_verdict(turn.content, verdicts) if turn.error is None and not turn.tool_calls else None
        if verdict is None:
            return Judgement(None, f"it said {text!r}, which ends with no verdict")
        if len(completion.logprobs) != len(tokens):
            return Judgement(None, "the log-probs of its answer are not one per token")
        said = completion.logprobs[self._begins(tokens, verdict) : len(tokens) - (tokens[-1:] == [end])]
        if not all(math.isfinite(value) for value in said):
            return Judgement(None, "the log-probs of its verdict are not finite")
        # The likeliest text is at least as likely as the other verdict, however much goes to texts that are none.
        probability = min(1.0, max(0.5, math.exp(min(0.0, math.fsum(said)))))
        return Judgement(probability if verdict == verdicts[0] else 1.0 - probability)

    def _begins(self, tokens: Sequence[int], verdict: str) -> int:
        """Where the fewest last tokens begin that spell the verdict; blanks around it are part of them."""
        end = self._tokenizer.im_end_id
        body = [token for token in tokens if token != end]
        for first in range(len(body) - 1, -1, -1):
            if read_verdict(self._tokenizer.decode(body[first:]), (verdict,)):
                return first
        return 0
