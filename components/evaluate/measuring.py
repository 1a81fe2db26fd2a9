"""Measures the checkpoints of a run as they would be served, beside the frozen sub-agents of a swarm (source: ours).

Models are loaded and engines started when the first checkpoint is measured: where only the gate decides again, none is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing

from components.evaluate.config import Config
from components.runtime.sampler import SGLangSampler, sglang_sampler
from components.runtime.step import StepContext
from components.runtime.steps import TRAINING_STEPS, UNTRAINED
from model.checkpoint.load import load_checked_config, load_model
from model.data.batches.folder import DataFolder
from model.data.samples.sample import Sample
from model.evals.score import Outcome
from model.evals.scorer import Evaluation, Watch, measuring_engine
from model.evals.suites import Suite
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from model.network.served import as_served
from model.rollout.protocol import RolloutEngine

SUB_AGENTS = "zero_vision_sft"  # the frozen sub-agents are those that PARL trains with


class Measuring:
    """Runs suites on one checkpoint after the other.

    Args:
        inputs: of the step: checkpoint -> URI.
        evaluation: how episodes are run.
        opened: closes the samplers.
    """

    def __init__(
        self, config: Config, inputs: Mapping[str, str], context: StepContext, data: DataFolder,
        evaluation: Evaluation, opened: ExitStack,
    ) -> None:  # fmt: skip
        self._config, self._inputs, self._context, self._data = config, inputs, context, data
        self._evaluation, self._opened = evaluation, opened
        self._trained = [step for step in TRAINING_STEPS if step in inputs]
        self._loaded: tuple[str, KimiK25] | None = None
        self._frozen: KimiK25 | None = None
        self._acting: SGLangSampler | None = None
        self._helping: SGLangSampler | None = None

    def model(self, step: str) -> KimiK25:
        """The checkpoint as it would be served; the one that was asked for last stays in memory."""
        if self._loaded is None or self._loaded[0] != step:
            self._loaded = None  # one at a time
            self._loaded = step, self._untrained() if step == UNTRAINED else self._served(step)
            if self._acting is None and self._config.endpoints:
                self._acting = self._sampler(self._config.endpoints, "policy")
            if self._acting is not None:
                asyncio.run(self._acting.publish(self._loaded[1]))
        return self._loaded[1]

    def outcomes(
        self,
        step: str,
        tasks: Mapping[str, Sequence[Sample]],
        suites: Sequence[Suite],
        watch: Watch | None = None,
        before: Mapping[str, Sequence[Outcome]] | None = None,
    ) -> dict[str, list[Outcome]]:
        """What becomes of tasks with a checkpoint (`model.evals.scorer.Evaluation.outcomes`)."""
        model, frozen, rows = self.model(step), self._sub_agents(), self._config.max_batch
        engine: RolloutEngine = measuring_engine(model, rows) if self._acting is None else self._acting.engine
        helper: RolloutEngine = measuring_engine(frozen, rows) if self._helping is None else self._helping.engine
        most = min(each.config.text_config.max_position_embeddings for each in (model, frozen))
        return asyncio.run(self._evaluation.outcomes(engine, helper, tasks, suites, most, watch, before))

    def _sub_agents(self) -> KimiK25:
        if self._frozen is None:
            self._frozen = self._served(SUB_AGENTS if SUB_AGENTS in self._inputs else self._trained[-1])
            if self._config.sub_agent_endpoints:
                self._helping = self._sampler(self._config.sub_agent_endpoints, "sub-agents")
                asyncio.run(self._helping.publish(self._frozen))
        return self._frozen

    def _served(self, step: str) -> KimiK25:
        return as_served(load_model(self._context.fetch(self._inputs[step])), self._config.expert_precision)

    def _untrained(self) -> KimiK25:
        """Random weights in the shape of a checkpoint."""
        shape = load_checked_config(self._context.fetch(self._inputs[self._trained[0]]))
        return new_model(shape, seed=self._config.seed).eval()

    def _sampler(self, addresses: str, name: str) -> SGLangSampler:
        made = sglang_sampler(self._config, addresses, self._context, self._data, name)
        return self._opened.enter_context(closing(made))
