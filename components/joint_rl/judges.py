"""The judge that joint RL asks: a checkpoint in this process, or a server (source: ours)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from components.joint_rl.config import PARENT, SERVERS, Config
from components.runtime.step import StepContext
from model.checkpoint.load import load_model
from model.codec.tokenizer import Tokenizer
from model.data.batches.folder import DataFolder
from model.rl.environment import Scoring
from model.rl.groups import Group
from model.rl.judges.judge import Judge
from model.rl.judges.reward import UNREAD, JudgedReward
from model.rollout.chat_engine import ChatEngine
from model.rollout.embedded import EmbeddedEngine
from model.rollout.endpoint import AT_ONCE, AtMost, find_endpoint
from model.rollout.keys import JUDGE_KEY

VERDICT_S = 120.0  # seconds that one attempt may take: a server that hangs shall not hold a round for long (ours)
SERVER_TOKENS = 2_048  # of a server's answer, at most: its model may think before the verdict (ours)


def with_judge(
    config: Config, inputs: Mapping[str, str], context: StepContext, data: DataFolder, verify: Scoring
) -> Scoring:
    """``verify``, and on top of it the judge that ``config.judge`` names, if it names one.

    Raises:
        Transient: no server answers.
        MoonflowError: there is no such checkpoint or server.
    """
    if not config.judge:
        return verify
    most = config.prompts_per_iteration * config.samples_per_prompt
    judge = _judge(inputs["parent"] if config.judge == PARENT else config.judge, context, data, most)
    return JudgedReward(judge, verify, config.judge_weight, config.judge_rubrics == "several", context.warn)


def _judge(source: str, context: StepContext, data: DataFolder, most: int) -> Judge:
    if source.startswith(SERVERS):
        # By messages: a server's model may have any tokenizer, and its own template keeps its control tokens.
        found = asyncio.run(find_endpoint(source, key=JUDGE_KEY))
        engine = ChatEngine(
            found.url, found.model, data.tokenizer, data.image_config, timeout_s=VERDICT_S, key=JUDGE_KEY
        )
        # Servers refuse a prompt that leaves less room than is asked for: it has half of the context that they tell.
        most = SERVER_TOKENS if found.context is None else min(SERVER_TOKENS, found.context // 2)
        return Judge(AtMost(engine, AT_ONCE), data.tokenizer, most=most)
    folder = context.fetch(source)
    model = load_model(folder).eval()
    room = model.config.text_config.max_position_embeddings
    return Judge(EmbeddedEngine(model.to(context.ranks.device), most), Tokenizer.load(folder), room)


@dataclass
class UnreadRounds:
    """Warns, once, of a round in which no verdict could be read. It is a ``model.rl.trainer.Watch``.

    Such a judge adds nothing to any reward, and training goes on as if there were none.
    """

    warn: Callable[[str], None]
    told: bool = False

    def __call__(self, t: int, groups: Sequence[Group]) -> None:
        metrics = [episode.metrics for group in groups for episode in group.episodes]
        unread = [figures[UNREAD] for figures in metrics if UNREAD in figures]
        if unread and all(unread) and not self.told:
            self.told = True
            self.warn(
                f"in round {t} none of the judge's {len(unread)} verdicts could be read, and right answers earned no "
                "reward of it: the log says why of the first ones, judge/unread counts them in each round"
            )
