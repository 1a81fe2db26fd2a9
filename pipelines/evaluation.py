"""``moonflow evaluate``: the held-out suites on any checkpoint, in this process or on a server that has it.

Tasks, episodes and scores are those of the evaluate step (``model.evals``); nothing is written to a store or to MLflow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rich.console import Console

from components.evaluate.config import evaluated_tasks
from components.prepare_data.config import HELD_OUT_SEED
from model.boundary.errors import MoonflowError
from model.checkpoint.file_names import CONFIG
from model.checkpoint.load import load_image_config, load_model
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.evals.drawn import chosen, drawn, obstacle
from model.evals.own_suites import own_chance, own_prompts, own_suite
from model.evals.scorer import Evaluation, chance_levels, measuring_engine
from model.evals.suites import Suite, available, held_out
from model.network.config import load_config
from model.network.served import as_served
from model.rl.tasks.names import short_name
from model.rl.tasks.own_tasks import OwnTasks
from model.rl.tasks.process import TaskFailure
from model.rl.tasks.task import TaskSample
from model.rl.tools.toolset import Toolset
from model.rollout.endpoint import Endpoint, find_endpoint
from model.rollout.protocol import RolloutEngine
from pipelines.checkpoint_source import Source, located
from pipelines.evaluation_table import Reporter, Results, say

FEWEST = 2  # tasks of a suite (``Suite.tasks``)


def evaluate(
    given: str, names: Sequence[str], count: int | None, url: str, *, as_json: bool, own: Sequence[str] = ()
) -> bool:
    """Run the suites and print their scores; returns whether they were finished, and not stopped by Ctrl-C.

    Args:
        given: the checkpoint, see ``pipelines.checkpoint_source``.
        names: of the suites; empty: all.
        count: tasks of each suite; None: as many as the run's evaluate step has, or the default.
        url: of the server that has the checkpoint; "": it is loaded here.
        as_json: print one JSON object instead of the table.
        own: the user's tasks, as ``module:name``, each a suite that is run whatever ``names`` are.

    Raises:
        MoonflowError: bad input, or an engine that is gone; what was finished by then is printed.
    """
    asked = evaluated_tasks(", ".join(own))
    suites = chosen(names, [short_name(name) for name in asked])
    if count is not None and count < FEWEST:
        raise MoonflowError(f"--tasks is {count}: give {FEWEST} or more")
    endpoint = asyncio.run(find_endpoint(url)) if url else None
    swarm = any(suite.mode == "swarm" for suite in suites)
    with OwnTasks(asked) as own_tasks:
        with located(given, weights=endpoint is None, swarm=swarm) as source:
            wanted = count or source.config.samples
            tasks = _tasks(source, suites, wanted)
        return _measured(source, endpoint, suites, tasks, own_tasks, wanted, as_json=as_json)


def _measured(
    source: Source, endpoint: Endpoint | None, suites: list[Suite], tasks: dict[str, list[Sample]], own: OwnTasks,
    wanted: int, *, as_json: bool,
) -> bool:  # fmt: skip
    """Run what can be run of the suites and of the user's tasks, and print it; whether it was finished."""
    stderr, passed_over, ours = Console(stderr=True), dict[str, str](), set(tasks)
    for task in own:
        suites = [*suites, own_suite(task)]
        try:
            tasks[task.short_name] = list(own_prompts(task, wanted, source.config.max_failed_episodes))
        except TaskFailure as failure:
            tasks[task.short_name], passed_over[task.short_name] = [], str(failure)
    subject = _Subject(source, endpoint, own)
    found = {suite.name: subject.obstacle(suite, tasks[suite.name]) for suite in suites}
    passed_over = {name: why for name, why in found.items() if why} | passed_over
    tasks = {name: samples for name, samples in tasks.items() if name not in passed_over}
    if not tasks:
        reasons = "; ".join(f"{name}: {why}" for name, why in passed_over.items())
        raise MoonflowError(f"no suite can be run: {reasons}")
    results = Results({"checkpoint": source.title, **subject.about}, tasks, passed_over)
    for key, value in results.about.items():
        say(stderr, f"{key}: {value}")
    notes = [f"{name} is passed over: {why}" for name, why in passed_over.items()]
    for suite in suites:
        if suite.name in tasks and (there := len(tasks[suite.name])) < suite.tasks(wanted):
            holder = "the run's data" if suite.name in ours else "the task"
            notes.append(f"{suite.name}: {holder} has {there} of {suite.tasks(wanted)} tasks")
    for note in (*source.notes, *notes):
        say(stderr, f"note: {note}")
    stopped, broken = False, None
    try:
        with Reporter(results, stderr) as reporter:
            subject.run([suite for suite in suites if suite.name in tasks], results, reporter)
        if not results.whole:
            first = next(line for lines in results.failures.values() for line in lines)
            raise MoonflowError(f"every episode failed; the first: {first}")
    except KeyboardInterrupt:
        stopped = True
    except MoonflowError as error:
        broken = error
    if results.whole and results.scores:
        if as_json:
            print(results.as_json())
        else:
            results.show(Console())
    if broken is not None:
        raise broken
    return not stopped


def _tasks(source: Source, suites: Sequence[Suite], count: int) -> dict[str, list[Sample]]:
    """Suite name -> tasks, in the order of the suites; of the run's data, as far as it has them."""
    if source.data is None:
        return {suite.name: drawn(suite, count, HELD_OUT_SEED) for suite in suites}
    there = available(source.data)
    return {suite.name: held_out(source.data, suite, count) if suite in there else [] for suite in suites}


class _Subject:
    """A checkpoint, and the engine that speaks for it."""

    def __init__(self, source: Source, endpoint: Endpoint | None, own: OwnTasks) -> None:
        self._source, self._endpoint, self._own = source, endpoint, own
        self._tokenizer, self._images = Tokenizer.load(source.folder), load_image_config(source.folder)
        text = load_config(source.folder / CONFIG).text_config
        self._vocabulary, self._context = text.vocab_size, text.max_position_embeddings
        if endpoint is not None and endpoint.context is not None:
            self._context = min(self._context, endpoint.context)

    @property
    def about(self) -> dict[str, str]:
        """The engine and the origin of the tasks, in words."""
        drawn_from = f"drawn from the generators, seed {HELD_OUT_SEED}"
        config = self._source.config
        how = f"embedded, experts {config.expert_precision}" if self._endpoint is None else str(self._endpoint)
        data = self._source.data
        return {"engine": how, "tasks": drawn_from if data is None else f"of the run's data, {data.path}"}

    def obstacle(self, suite: Suite, samples: Sequence[Sample]) -> str:
        """Why the suite is passed over; "" if it is not."""
        if not samples:
            return "the run's data has no tasks of it"
        return obstacle(
            suite, samples, self._tokenizer, self._images,
            context=self._context, vocabulary=self._vocabulary, videos=self._endpoint is None,
            documents=self._endpoint is None or self._endpoint.api != "chat",
        )  # fmt: skip

    def run(self, suites: Sequence[Suite], results: Results, reporter: Reporter) -> None:
        """Run the episodes of all suites."""
        config = self._source.config
        engine, sub_engine, context = self._engines()
        with Toolset(sandbox=config.sandbox) as toolset:
            evaluation = Evaluation(
                self._tokenizer, self._images, toolset, config.temperature, config.seed,
                own=self._own, max_batch=config.max_batch,
            )  # fmt: skip
            prompts = {
                task: [sample for sample in results.tasks[task.short_name] if isinstance(sample, TaskSample)]
                for task in self._own
                if task.short_name in results.tasks
            }
            own = [task.short_name for task in prompts]
            ours = {name: samples for name, samples in results.tasks.items() if name not in own}
            results.chance = asyncio.run(chance_levels(ours, toolset))
            results.chance |= {task.short_name: own_chance(task, asked, toolset) for task, asked in prompts.items()}
            asyncio.run(evaluation.episodes(engine, sub_engine, results.tasks, suites, context, reporter))

    def _engines(self) -> tuple[RolloutEngine, RolloutEngine, int]:
        """What is measured, what speaks for its sub-agents, and the tokens that both can see."""
        source, config = self._source, self._source.config
        if self._endpoint is not None:
            remote = self._endpoint.engine(self._tokenizer, self._images)
            return remote, remote, self._context
        model = as_served(load_model(source.folder), config.expert_precision)
        engine = measuring_engine(model, config.max_batch)
        if source.sub_agents is None:
            return engine, engine, self._context
        frozen = as_served(load_model(source.sub_agents), config.expert_precision)
        context = min(self._context, frozen.config.text_config.max_position_embeddings)
        return engine, measuring_engine(frozen, config.max_batch), context
