"""The verdicts and their grounds are right, by a program that reads nothing but the judge's prompt."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from model.codec.judge_prompt import pair_prompt, read_verdict, rubric_prompt
from model.data.families import FAMILIES, judging
from model.data.families.family import SPLITS
from model.data.families.judging import satisfied
from model.data.families.judging.drafts import PLEAS
from model.data.families.judging.wishes import KINDS
from model.data.samples.sample import Sample, Split
from model.evals.answer_room import need_more
from model.evals.suites import SUITES
from model.rl.judges.judge import ANSWER_TOKENS
from model.rl.rewards import says, score
from tests.corpus import small_tokenizer
from tests.samples import make_sample

COUNT = 12 * len(KINDS)
PAIR, RUBRIC, LIST = "judge_pair", "judge_rubric", "judge_list"


def sections(prompt: str) -> dict[str, str]:
    """Heading -> what is quoted under it; "Rubric" -> its line."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in prompt.split("\n"):
        if line.startswith("|"):
            found.setdefault(heading, []).append(line[1:])
        elif line.startswith("Rubric: "):
            found["Rubric"] = [line[8:]]
        else:
            heading = line.rstrip(":")
    return {name: "\n".join(lines) for name, lines in found.items()}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def told(question: str) -> tuple[str, str]:
    """The field that a question asks for, and its value in the records."""
    *records, asked = question.split("\n")
    first = asked.split("? ")[0].split(". ")[0]
    fields = {
        (line.split(": ")[0], pair.split("=")[0]): pair.split("=")[1]
        for line in records
        for pair in line.split(": ")[1].split("; ")
    }
    named = [
        (name, field)
        for name, field in fields
        if f'"{name}"' in asked and re.search(rf"\b{field}\b", first.replace(f'"{name}"', ""))
    ]
    name, field = max(named, key=lambda pair: len(pair[1]))  # "phone code" is asked for, and not "code"
    return field, fields[name, field]


def meets(kind: str, rubric: str, question: str, answer: str) -> bool:
    """Whether an answer meets a rubric, as a reader of English finds."""
    named = re.findall(r'"([^"]+)"', rubric)
    field, value = told(question)
    if kind == "begin":
        return words(answer)[:1] == [named[0].lower()]
    if kind == "end":
        return answer[-len(named[0]) :] == named[0]
    if kind == "brackets":
        left, right = named[0]
        inside = answer.partition(left)[2]
        return right in inside[1:] and inside.partition(right)[0].strip() != ""
    if kind in ("name", "unit"):
        needle, hay = words(named[0]), words(answer)
        return any(hay[i : i + len(needle)] == needle for i in range(len(hay)))
    if kind == "reason":
        return f"because {field}={value}".lower() in answer.lower()
    if kind == "short":
        (most,) = re.findall(r"\d", rubric)
        return answer.count(" ") < int(most)
    if kind == "capitals":
        return not re.search("[a-z]", answer)
    needle, hay = words(value), words(answer)
    return any(hay[i : i + len(needle)] == needle for i in range(len(hay)))


def check_grounds(kind: str, asked: str, found: str, part: dict[str, str], answer: str) -> bool:
    """The verdict that follows from the grounds alone; they must stand in the prompt as they are copied."""
    field, value = told(part["Question"])
    if kind == "relevant":
        assert asked == f"{field}={value}"
        asked = value
    assert asked in part["Rubric"] or kind == "relevant"
    if kind == "short":
        first, *others = answer.split(" ")
        listed = [f"1{first}", *(f"{number} {word}" for number, word in enumerate(others, 2))][: int(asked) + 1]
        assert found == "".join(listed)
        return len(listed) <= int(asked)
    assert answer.startswith(found)
    if kind == "begin":
        assert len(words(found)) == 1
        return found == asked
    if kind == "end":
        return found == answer and found.endswith(asked)
    if kind == "brackets":
        return found.endswith(asked[1]) and asked[0] in found[:-1]
    if kind == "reason":
        return found.endswith(f"because {field}={value}")
    if kind == "capitals":
        return found == answer and not re.search("[a-z]", found)
    return words(found)[-len(words(asked)) :] == words(asked)


def read_asked(kind: str, lines: list[str], part: dict[str, str]) -> str:
    """Take the lines before an answer's; "" if there are none. A record is the question's, with what is asked."""
    if kind == "relevant":
        record = lines.pop(0).removeprefix("record:")
        assert record in part["Question"].split("\n") and lines[0].removeprefix("asked:") in record
        assert f'"{record.split(": ")[0]}"' in part["Rubric"]
    return lines.pop(0).removeprefix("asked:") if lines[0].startswith("asked:") else ""


def check_judged(sample: Sample) -> tuple[str, dict[str, str]]:
    """Read what the reference writes: each answer's grounds and verdict are true. Returns the kind and the prompt."""
    kind, prompt = sample.key.split("-")[1], sample.messages[0]["content"]
    part, judged = sections(prompt), sample.messages[-1]["content"]
    lines = judged.split("\n")
    asked = read_asked(kind, lines, part)
    answers = {name.removeprefix("Answer").strip() or "found": text for name, text in part.items() if "Answer" in name}
    for name, answer in answers.items():
        ground, verdict = lines.pop(0), lines.pop(0)
        truth = meets(kind, part["Rubric"], part["Question"], answer)
        assert ground.startswith(f"{name}:") and (verdict == "yes") == truth, (prompt, judged)
        assert check_grounds(kind, asked, ground.partition(":")[2], part, answer) == truth, (prompt, judged)
    assert lines == ([sample.answer] if len(answers) == 2 else []) and read_verdict(judged, [sample.answer])
    assert sample.reward == "last_line" and score("last_line", judged, sample.answer) == 1.0
    return kind, part


@pytest.mark.parametrize("split", SPLITS)
def test_of_a_pair_the_better_answer_alone_meets_the_rubric(split: Split) -> None:
    seen = Counter[tuple[str, str]]()
    for index in range(COUNT):
        sample = FAMILIES["judge_pair"].sample(1, split, index)
        kind, part = check_judged(sample)
        found = [meets(kind, part["Rubric"], part["Question"], part[f"Answer {name}"]) for name in "AB"]
        assert found == [sample.answer == "A", sample.answer == "B"]
        again = pair_prompt(part["Question"], part["Answer A"], part["Answer B"], part["Rubric"])
        assert sample.messages[:-1] == again
        seen[kind, sample.answer] += 1
    assert len(seen) == 2 * len(KINDS), "of each kind both verdicts are there"


@pytest.mark.parametrize("split", SPLITS)
def test_an_answer_meets_its_rubric_if_the_verdict_says_so(split: Split) -> None:
    seen = Counter[tuple[str, str]]()
    for index in range(COUNT):
        sample = FAMILIES["judge_rubric"].sample(1, split, index)
        kind, part = check_judged(sample)
        met = meets(kind, part["Rubric"], part["Question"], part["Answer"])
        assert sample.answer == ("yes" if met else "no")
        assert sample.messages[:-1] == rubric_prompt(part["Question"], part["Answer"], part["Rubric"])
        seen[kind, sample.answer] += 1
    assert len(seen) == 2 * len(KINDS)


@pytest.mark.parametrize("split", SPLITS)
def test_a_rubric_of_several_wishes_gets_a_verdict_on_each_and_one_on_all(split: Split) -> None:
    seen = Counter[str]()
    for index in range(COUNT):
        sample = FAMILIES[LIST].sample(1, split, index)
        part, lines = sections(sample.messages[0]["content"]), sample.messages[-1]["content"].split("\n")
        assert sample.messages[:-1] == rubric_prompt(part["Question"], part["Answer"], part["Rubric"])
        rubrics = [each for each in re.split(r"(?<=[^.]\.) (?=[A-Z\"])", part["Rubric"])]
        kinds, verdicts = sample.key.split("-")[1:-1], []
        for kind, rubric in zip(kinds, rubrics, strict=True):
            asked = read_asked(kind, lines, part)
            found, verdict = lines.pop(0).removeprefix("found:"), lines.pop(0)
            truth = meets(kind, rubric, part["Question"], part["Answer"])
            assert (verdict == "yes") == truth == check_grounds(kind, asked, found, part, part["Answer"]), sample
            verdicts.append(verdict)
        seen.update(verdicts)
        assert lines == [sample.answer] == ["no" if "no" in verdicts else "yes"] and 2 <= len(kinds) <= 5
    assert 0.4 < seen["yes"] / seen.total() < 0.6


@pytest.mark.parametrize("split", SPLITS)
def test_no_constant_and_no_length_tells_the_verdict(split: Split) -> None:
    """Over all kinds: a wish for a reason makes answers longer, one for few words shorter."""
    verdicts, longer, lengths = Counter[str](), 0, list[tuple[int, str]]()
    for index in range(count := 60 * len(KINDS)):
        pair, rubric = (FAMILIES[name].sample(2, split, index) for name in (PAIR, RUBRIC))
        part = sections(pair.messages[0]["content"])
        verdicts.update([pair.answer, rubric.answer])
        longer += (len(part["Answer A"]) > len(part["Answer B"])) == (pair.answer == "A")
        lengths.append((len(sections(rubric.messages[0]["content"])["Answer"]), rubric.answer))
    assert all(0.45 < verdicts[verdict] / count < 0.55 for verdict in ("A", "B", "yes", "no"))
    assert 0.4 < longer / count < 0.62
    best = max(sum((length > bound) == (verdict == "yes") for length, verdict in lengths) for bound in range(0, 120, 5))
    assert max(best, count - best) / count < 0.62


@pytest.mark.parametrize("name", [PAIR, RUBRIC, LIST])
def test_a_verdict_fits_into_the_tokens_that_a_judge_may_write(name: str) -> None:
    tokenizer = small_tokenizer()
    longest = max(
        len(tokenizer.encode(FAMILIES[name].sample(3, "eval", index).messages[-1]["content"])) for index in range(COUNT)
    )
    assert longest < SUITES[name].max_new_tokens <= ANSWER_TOKENS


def test_rl_asks_no_judge_whose_verdicts_its_room_would_cut_off() -> None:
    assert need_more([family.name for family in judging.FAMILIES], 64) == [LIST, PAIR, RUBRIC]


@pytest.mark.parametrize("split", SPLITS)
def test_an_open_question_has_three_rubrics_whose_truth_a_program_knows(split: Split) -> None:
    kinds, fulfilled = Counter[str](), 0
    for index in range(COUNT):
        sample = FAMILIES["open_answer"].sample(1, split, index)
        question, answer = sample.messages[0]["content"], sample.messages[1]["content"]
        rubrics, wished = sample.rubric.split("\n"), [wish["kind"] for wish in sample.answer["wishes"]]
        assert len(rubrics) == len(set(wished)) == 3 and told(question)[1] == sample.answer["says"]
        for said in (answer, "Well, it is *blue* people, because so it is!", ""):
            expected = [said and meets(*pair, question, said) for pair in zip(wished, rubrics, strict=True)]
            assert [bool(each) for each in expected] == satisfied(sample, said), (question, said)
        assert says(question, sample.answer) == 0.0, "to repeat the question is no answer"
        kinds.update(wished)
        fulfilled += sum(satisfied(sample, answer))
    assert set(kinds) == set(KINDS) - {"relevant"} and 0.4 < fulfilled / 3 / COUNT < 0.6
    assert satisfied(make_sample(answer={"wishes": 3}), "x") == []


def test_training_never_shows_what_is_held_out_and_some_answers_speak_to_their_judge() -> None:
    wordings = [texts for kind in KINDS.values() for texts in (kind.requests, kind.rubrics)]
    held_out = [texts[-1] for texts in wordings if texts and "{x}" not in texts[-1]] + [
        PLEAS[-1],
        "Thanks",
        "Open with",
    ]
    shown = {
        split: "\n".join(
            FAMILIES[name].sample(0, split, index).messages[0]["content"]
            for name in ("judge_pair", "judge_rubric", "open_answer")
            for index in range(300)
        )
        for split in SPLITS
    }
    assert not [text for text in held_out if text in shown["train"]]
    assert not [text for text in held_out if text not in shown["eval"]]
    assert all(f"so {plea}" in shown["train"] for plea in PLEAS[:-1])
