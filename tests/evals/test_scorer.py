from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.boundary.errors import MoonflowError, Unavailable
from model.codec.image import ImageConfig
from model.data.batches.folder import DataFolder
from model.data.families.programs import KINDS
from model.data.samples.sample import Sample
from model.evals import scorer
from model.evals.score import KindScore, Score, interval, score_of, standard_error, summarise
from model.evals.scorer import Evaluation, chance_level, reference_answer
from model.evals.suites import SUITES, Suite, available, held_out
from model.network.config import preset
from model.network.initial import new_model
from model.rl.environment import Episode, judged
from model.rl.tools.toolset import Toolset
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from tests.evals.reciter import Reciter, teach
from tests.samples import make_episode, make_sample
from tests.tiny_folders import eval_samples, write_data_folder

IMAGES = ImageConfig()


@pytest.fixture(scope="module")
def toolset() -> Iterator[Toolset]:
    with Toolset() as tools:
        yield tools


@pytest.fixture
def summed(toolset: Toolset) -> Callable[..., Score]:
    """The score of a suite from its tasks and episodes, which are judged first."""

    def score(samples: list[Sample], episodes: list[Episode]) -> Score:
        pairs = zip(samples, episodes, strict=True)
        return summarise(samples, [asyncio.run(judged(episode, sample, toolset)) for sample, episode in pairs])

    return score


def episode(response: str, finish_reason: str = "answer", **metrics: float) -> Episode:
    return make_episode(response=response, finish_reason=finish_reason, metrics=metrics)


def number(answer: int) -> Sample:
    return make_sample(answer=answer, reward="number")


def test_a_near_count_is_wrong_but_near_text_counts_in_part(summed):
    text = make_sample(answer="abcd", reward="edit")
    assert summed([number(3)], [episode("4")]).value == 0.0
    assert summed([text], [episode("abcx")]).value == 0.75


def test_an_episode_without_an_answer_scores_zero(summed):
    score = summed([number(3), number(3)], [episode("3"), episode("3", "length")])
    assert (score.value, score.answered, score.n, score.tokens) == (0.5, 0.5, 2, 2)


def test_figures_are_means_over_episodes():
    score = summarise([number(3)] * 2, [episode("3", **{"parallelism": 4.0}), episode("3", **{"parallelism": 1.0})])
    assert score.figures == {"parallelism": 2.5}


@pytest.mark.parametrize(("values", "expected"), [
    ([1.0, 0.0, 0.0, 0.0], math.sqrt(0.25 * 0.75 / 4)), ([0.5, 0.7, 0.9], 0.2 / math.sqrt(3)), ([1.0, 1.0], 0.0),
])  # fmt: skip
def test_standard_error(values: list[float], expected: float):
    assert standard_error(values) == pytest.approx(expected)


def wilson(correct: float, n: int) -> tuple[float, float]:
    """The score interval of Wilson (1927): the p with |correct / n - p| = z sqrt(p (1 - p) / n)."""
    z = 1.959963984540054
    middle, spread = (correct + z * z / 2) / (n + z * z), z * math.sqrt(correct * (n - correct) / n + z * z / 4)
    return middle - spread / (n + z * z), middle + spread / (n + z * z)


@pytest.mark.parametrize(("correct", "n"), [(0, 64), (64, 64), (1, 2), (41, 64)])
def test_the_interval_of_right_and_wrong_is_wilsons(correct: int, n: int):
    values = [1.0] * correct + [0.0] * (n - correct)
    assert interval(values) == pytest.approx(wilson(correct, n), abs=1e-12)


def test_the_interval_of_closeness_is_students_and_stays_in_its_bounds():
    low, high = interval([0.2, 0.4, 0.6])
    assert (low, high) == pytest.approx((0.0, 0.4 + 4.302652729911275 * 0.2 / math.sqrt(3)))  # t(0.975, 2)
    assert interval([0.5]) == (0.0, 1.0)


@pytest.mark.parametrize(("value", "n"), [(0.5, 2), (0.25, 8), (0.9, 64)])
def test_the_interval_of_closeness_that_is_all_alike_is_wilsons(value: float, n: int):
    low, high = interval([value] * n)
    assert (low, high) == pytest.approx(wilson(value * n, n), abs=1e-12) and low < value < high
    for bound in (low, high):
        assert abs(value - bound) == pytest.approx(1.959963984540054 * math.sqrt(bound * (1 - bound) / n))
    assert interval([0.1 + 0.2, 0.3]) == pytest.approx(wilson(0.6, 2)), "but for rounding alike"


def test_right_answers_are_counted_strictly(summed):
    text = Sample("k", "ocr_line", "knowledge", "image", "s", answer="abcd", reward="edit")
    score = summed([text] * 3, [episode("abcd"), episode("abcx"), episode("abcd", "length")])
    assert (score.correct, score.n) == (1, 3) and score.interval[0] < score.value < score.interval[1]


def test_image_programs_have_a_score_of_each_kind_and_other_tasks_have_none(summed):
    """Of 20 tasks, five kinds have two: the second of each is answered wrongly, without a call."""
    for family in ("image_program", "image_program_image"):
        samples = eval_samples(family, 20)
        done = [episode(reference_answer(s), tool_calls=2.0) for s in samples[:15]] + [episode("x", tool_calls=0.0)] * 5
        found = summed(samples, done).kinds
        assert list(found) == [kind.name for kind in KINDS]
        assert list(found.values()) == [KindScore(0.5, 0.5, 2)] * 5 + [KindScore(1.0, 1.0, 1)] * 10
        broken = make_episode(finish_reason="failed", failure="f")
        assert list(summed(samples[:1], [broken]).kinds.values()) == [KindScore(0.0, 0.0, 1)]
    assert summed([number(3)], [episode("3")]).kinds == {}
    odd = make_sample(key="image_program-<b>-0", family="image_program", answer=3, reward="number")
    assert summed([odd], [episode("3")]).kinds == {}, "only known kinds become names of metrics"


def test_chance_is_the_best_constant_answer(toolset):
    assert asyncio.run(chance_level([number(n) for n in (1, 2, 2, 3)], toolset)) == 0.5


def test_chance_of_programs_is_measured_by_running_them(toolset):
    """Each is the reference of one task: the second passes all of its own tests and half of the first one's."""

    def task(program: str, tests: dict[str, str]) -> Sample:
        return make_sample(messages=[{"role": "assistant", "content": program}], answer=tests, reward="tests")

    same, half = task("def f(x):\n    return x", {"f(2)": "2", "f(3)": "3"}), {"f(2)": "4", "f(0)": "0"}
    samples = [same, task("def f(x):\n    return 2 * x", half), make_sample(answer="none", reward="tests")]
    assert asyncio.run(chance_level(samples, toolset)) == pytest.approx((1 + 0.5 + 0) / 3)


def test_the_tool_call_rate_is_the_share_of_episodes_that_called():
    done = [episode("3", tool_calls=calls) for calls in (0.0, 1.0, 3.0)] + [make_episode(finish_reason="failed")]
    found = summarise([number(3)] * 4, done)
    assert found.tool_calls == 0.5 and found.figures["tool_calls"] == pytest.approx(4 / 3)


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_every_suite_fits_its_family(suite, summed, toolset):
    """The reference answer earns the full score; chance does not."""
    samples = [suite.task(sample) for sample in eval_samples(suite.family, 12)]
    perfect = summed(samples, [episode(reference_answer(sample)) for sample in samples])
    assert perfect.value == 1.0
    assert asyncio.run(chance_level(samples, toolset)) < 1.0


def test_a_task_that_breaks_scores_zero_and_is_counted_until_too_many_do(tokenizer):
    """One verifier meets an answer it cannot read, one prompt is empty; the others are scored."""
    suite, main = SUITES["fact_qa"], Reciter()
    samples = list(eval_samples("fact_qa", 6))
    for sample in samples:
        teach(main, sample, tokenizer)
    samples[1] = replace(samples[1], reward="table_f1", answer="no table")
    samples[4] = replace(samples[4], messages=[])
    with Toolset() as toolset:

        def scored(share: float) -> Score:
            evaluation = Evaluation(tokenizer, IMAGES, toolset, temperature=0.0, seed=0, max_failed_episodes=share)
            return asyncio.run(evaluation.score(main, main, {suite.name: samples}, [suite], 512))[suite.name]

        score = scored(0.5)
        assert (score.value, score.answered, score.n, score.failed) == (4 / 6, 4 / 6, 6, 2)
        assert score.figures == {"tool_calls": 0.0}
        with pytest.raises(MoonflowError, match=r"2 of 6 episodes failed.*fact_qa/.*AttributeError"):
            scored(0.3)
        assert 0.0 < asyncio.run(chance_level(samples, toolset)) < 1.0


class Seen:
    """Writes down what a watch is told."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.suites: dict[str, list[Episode]] = {}

    def ended(self, suite: Suite, episode: Episode) -> None:
        self.ends.append(suite.name)

    def finished(self, suite: Suite, episodes: list[Episode]) -> None:
        self.suites[suite.name] = episodes


def test_a_watch_sees_every_episode_and_suite_until_something_that_all_need_is_gone(tokenizer):
    names = ("fact_qa", "reasoning_gym")
    suites = [SUITES[name] for name in names]
    tasks = {name: eval_samples(name, 3) for name in names}
    main, seen = Reciter(), Seen()
    for sample in (*tasks["fact_qa"], *tasks["reasoning_gym"]):
        teach(main, sample, tokenizer)
    with Toolset() as toolset:
        evaluation = Evaluation(tokenizer, IMAGES, toolset, temperature=0.0, seed=0)
        found = asyncio.run(evaluation.episodes(main, main, tasks, suites, 512, seen))
        assert seen.suites == found and sorted(seen.ends) == [name for name in names for _ in range(3)]
        assert summarise(tasks["fact_qa"], found["fact_qa"]).value == 1.0
        gone, seen = Gone(main, after=3), Seen()
        with pytest.raises(Unavailable, match="the engine is gone"):
            asyncio.run(evaluation.episodes(gone, gone, tasks, suites, 512, seen))
        assert list(seen.suites) == ["fact_qa"]


class Crowd:
    """An engine that counts the requests which wait for it at the same time."""

    def __init__(self, engine: Reciter) -> None:
        self.engine, self.now, self.most = engine, 0, 0

    async def generate(self, requests: list[Request]) -> list[Completion]:
        self.now += len(requests)
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= len(requests)
        return await self.engine.generate(requests)

    async def update_weights(self, checkpoint: Path) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "max_batch", "most"), [("fact_qa", 1, 2), ("fact_qa", 4, 6), ("array_tool", 1, 2), ("array_tool", 4, 2)]
)
def test_a_bounded_number_of_episodes_is_under_way_and_each_keeps_its_place(
    name: str, max_batch: int, most: int, tokenizer, monkeypatch
):
    """Or thousands of prompts are in memory, and a sandbox session waits until all other first turns are done."""
    monkeypatch.setattr(scorer, "IN_FLIGHT", 2)
    tasks, main = {name: eval_samples(name, 8)}, Reciter()
    for sample in tasks[name]:
        teach(main, sample, tokenizer)
    crowd = Crowd(main)
    with Toolset() as toolset:
        evaluation = Evaluation(tokenizer, IMAGES, toolset, temperature=0.0, seed=0, max_batch=max_batch)
        found = asyncio.run(evaluation.episodes(crowd, crowd, tasks, [SUITES[name]], 512))
    assert crowd.most == most
    assert [episode.response for episode in found[name]] == [str(sample.answer) for sample in tasks[name]]


class Gone:
    """An engine that is unreachable after some calls."""

    def __init__(self, engine: Reciter, after: int) -> None:
        self.engine, self.left = engine, after

    async def generate(self, requests: list[Request]) -> list[Completion]:
        self.left -= 1
        if self.left < 0:
            await asyncio.sleep(0.01)
            raise Unavailable("the engine is gone")
        return await self.engine.generate(requests)

    async def update_weights(self, checkpoint: Path) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    "name", ["fact_qa", "digit_string", "array_tool", "sub_search", "wide_search_single", "wide_search_swarm"]
)
def test_who_follows_the_reference_trajectories_scores_one(name: str, tokenizer):
    """Through the real environment: limits leave room, tools return what the references show, swarms run at once."""
    suite, main, sub = SUITES[name], Reciter(), Reciter()
    samples = eval_samples(suite.family, 24)
    wanted = {"wide_search_single": "serial", "wide_search_swarm": "swarm"}.get(name)
    samples = [sample for sample in samples if wanted in (None, sample.environment.get("mode"))][:4]
    tools = {"single": ["search"], "swarm": ["search", "create_subagent", "assign_task"]}
    for sample in samples:
        teach(main, replace(sample, tools=tools.get(suite.mode, sample.tools)), tokenizer)
    if suite.mode == "swarm":
        for sample in samples:
            teach_sub_agents(sub, sample, tokenizer)
    with Toolset() as toolset:
        evaluation = Evaluation(tokenizer, IMAGES, toolset, temperature=0.0, seed=0)
        score = asyncio.run(evaluation.score(main, sub, {name: samples}, [suite], 512))[name]
    assert (score.value, score.answered, score.n) == (1.0, 1.0, len(samples))
    if suite.mode == "swarm":
        assert score.figures["parallelism"] >= 2
        assert score.figures["critical_steps"] == 5  # create; assign and the longest sub-agent's 2; answer


def teach_sub_agents(engine: Reciter, sample: Sample, tokenizer) -> None:
    calls = [call for message in sample.messages for call in message.get("tool_calls", [])]
    system = next(call["arguments"]["system_prompt"] for call in calls if call["name"] == "create_subagent")
    for prompt in (call["arguments"]["prompt"] for call in calls if call["name"] == "assign_task"):
        value = sample.environment["records"][prompt.lower()]
        messages = [
            {"role": "system", "content": system}, {"role": "user", "content": prompt},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "search", "arguments": {"query": prompt}}]},
            {"role": "tool", "tool_call_id": "functions.search:0", "content": value},
            {"role": "assistant", "content": value},
        ]  # fmt: skip
        task = replace(sample, messages=messages, tools=["search"], media={})
        teach(engine, task, tokenizer)


def test_an_untrained_model_is_scored_and_alike_every_time_at_once_or_in_parts(tokenizer):
    """Sampled, so that each task needs its own seed; the parts end where the kinds of a suite and its figures mix."""
    config = preset("tiny")
    model = new_model(config, seed=0).eval()
    names = ["digit_string", "image_program", "video_digits", "wide_search_swarm"]
    suites = [replace(SUITES[name], max_new_tokens=6) for name in names]
    tasks = {suite.name: eval_samples(suite.family, 3) for suite in suites}
    with Toolset() as toolset:
        evaluation = Evaluation(tokenizer, IMAGES, toolset, temperature=1.0, seed=0)

        def outcomes(asked, before=None):
            chosen = [suite for suite in suites if suite.name in asked]
            engine = EmbeddedEngine(model)
            return asyncio.run(evaluation.outcomes(engine, engine, asked, chosen, 256, None, before))

        first, second = outcomes(tasks), outcomes(tasks)
        part = outcomes({name: samples[:2] for name, samples in tasks.items()})
        whole = outcomes({name: tasks[name][2:] for name in names[1:]}, part)
    assert first == second
    scores = {name: score_of(found) for name, found in first.items()}
    assert all(score.value < 0.5 and score.n == 3 for score in scores.values())
    assert {name: score_of(whole[name]) for name in names[1:]} == {name: scores[name] for name in names[1:]}
    assert whole["digit_string"] == part["digit_string"] == first["digit_string"][:2]


def test_held_out_tasks_come_from_the_eval_shards(data_folder):
    suite = SUITES["digit_count"]
    samples = held_out(data_folder, suite, 2)
    assert [sample.family for sample in samples] == ["digit_count"] * 2
    assert {suite.name for suite in available(data_folder)} >= {
        "digit_count",
        "wide_search_swarm",
        "wide_search_single",
    }


def test_held_out_samples_that_cannot_be_read_are_passed_over_until_they_are_too_many(tmp_path, caplog):
    """Two samples of 40 may be broken."""
    data = DataFolder(write_data_folder(tmp_path / "data", count=40))
    suite, shard = SUITES["fact_qa"], tmp_path / "data/eval/fact_qa-00000.tar"
    keys = [sample.key for sample in held_out(data, suite, 40)]
    content = bytearray(shard.read_bytes())

    def spoil(number: int) -> None:
        content[content.index(b"{", content.index(f"{keys[number]}.json".encode()))] = ord("!")
        shard.write_bytes(content)

    spoil(3), spoil(1)
    assert [sample.key for sample in held_out(data, suite, 4)] == [keys[n] for n in (0, 2, 4, 5)]
    assert [f"{keys[number]}.json" in line for number, line in zip((1, 3), caplog.messages, strict=True)] == [True] * 2
    spoil(2)
    with pytest.raises(MoonflowError, match=f"3 of 40 held-out samples of fact_qa .* more than 5%.*{keys[3]}"):
        held_out(data, suite, 4)
    shard.unlink()
    with pytest.raises(MoonflowError, match="cannot be read"):
        held_out(data, suite, 4)


def test_a_data_folder_without_held_out_tasks_is_refused(data_folder):
    data_folder.index = {"families": {"stdlib_text": {"train": [], "eval": []}}}
    with pytest.raises(MoonflowError, match="no held-out tasks"):
        available(data_folder)
