"""The user's code in its process: what hangs, crashes or says nonsense costs one request."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.boundary.errors import MoonflowError
from model.rl.environment import Episode
from model.rl.tasks.own_tasks import OwnTasks
from model.rl.tasks.process import HANGS, TaskFailure, TaskProcess
from model.rl.tools.toolset import Toolset
from tests.rl.tasks.user_tasks import HERE, REST
from tests.samples import make_episode
from tests.waiting import happens


@pytest.fixture(scope="module")
def shared() -> Iterator[TaskProcess]:
    task = TaskProcess(f"{HERE}:Moody")
    yield task
    task.close()


@pytest.fixture
def moody(shared: TaskProcess) -> TaskProcess:
    shared.forgive()
    return shared


@pytest.mark.parametrize(
    ("response", "told"),
    [
        ("raise", r"Moody: verify raises KeyError: 'no such key\\nin two lines' \(line \d+ of user_tasks.py\)"),
        ("exit", "verify raises SystemExit: 1"),
        ("1.5", "the score 1.5: scores go from 0 to 1"),
        ("nan", "nan as score"),
        ("none", "None as score"),
        ("parts", "no 'score' among its parts fluency"),
        ("die", "its process ended with status 7"),
        ("hang", "verify hangs: it was ended after 1 s"),
    ],
)
def test_a_verifier_that_breaks_is_one_line_and_judges_the_next_answer(
    moody: TaskProcess, response: str, told: str
) -> None:
    sample = moody.prompt(1, "train", 5)
    with pytest.raises(TaskFailure, match=told) as caught:
        moody.verify(sample, response)
    assert "\n" not in str(caught.value)
    assert moody.verify(sample, "print") == {"score": 1.0}


def test_a_task_may_leave_the_verdict_to_a_built_in_reward() -> None:
    async def scored(tasks: OwnTasks, name: str, said: str) -> Episode:
        with Toolset() as toolset:
            return await tasks.scored(
                make_episode(response=said), tasks[f"{HERE}:{name}"].prompt(1, "eval", 1), toolset
            )

    with OwnTasks([f"{HERE}:Near", f"{HERE}:Tested"]) as tasks:
        near = asyncio.run(scored(tasks, "Near", "(30, 40)"))
        assert near.reward == pytest.approx(2 / 3) and not near.correct
        assert near.metrics == pytest.approx({"part/precision": 1.0, "part/recall": 0.5})
        with pytest.raises(TaskFailure, match="reward 'points' cannot judge by its answer .it must be 2 numbers"):
            tasks[f"{HERE}:Near"].prompt(1, "eval", 2)
        assert asyncio.run(scored(tasks, "Tested", "f = lambda n: n + 1")).correct


def test_prompts_are_the_same_in_a_new_process(moody: TaskProcess) -> None:
    before = [moody.prompt(1, "train", n) for n in range(3)]
    with pytest.raises(TaskFailure):
        moody.verify(before[0], "die")
    assert [moody.prompt(1, "train", n) for n in range(3)] == before
    assert len({sample.key for sample in [*before, moody.prompt(2, "train", 0), moody.prompt(1, "eval", 0)]}) == 5


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_hanging_verifier_has_started_ends_with_it(moody: TaskProcess, tmp_path: Path) -> None:
    sample, note = moody.prompt(1, "train", 5), tmp_path / "pids"
    with pytest.raises(TaskFailure, match="hangs"):
        moody.verify(sample, f"hang with a child {note}")
    own, child = map(int, note.read_text().split())
    assert happens(lambda: not alive(own) and not alive(child))


def test_a_task_that_hangs_again_and_again_is_not_waited_for(moody: TaskProcess) -> None:
    sample = moody.prompt(1, "train", 5)
    for _ in range(HANGS):
        with pytest.raises(TaskFailure, match="ended after 1 s"):
            moody.verify(sample, "hang")
    begun = time.monotonic()
    with pytest.raises(TaskFailure, match=f"it has hung {HANGS} times"):
        moody.verify(sample, "fine")
    assert time.monotonic() - begun < 1.0
    moody.forgive()
    assert moody.verify(sample, "fine") == {"score": 1.0}


def test_closing_does_not_wait_for_what_hangs() -> None:
    task = TaskProcess(f"{HERE}:HangsVerdict")
    task.about.__dict__["timeout_s"] = REST
    sample, failures = task.prompt(0, "train", 0), list[Exception]()

    def ask() -> None:
        try:
            task.verify(sample, "?")
        except Exception as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    begun = time.monotonic()
    task.close()
    asking.join()
    assert time.monotonic() - begun < REST / 2 and isinstance(failures[0], TaskFailure)


def test_no_task_and_a_module_that_hangs_or_exits_are_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hanging_module.py").write_text(f"import time\ntime.sleep({REST})\n")
    (tmp_path / "exiting_module.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(MoonflowError, match="hanging_module:T does not start: it was ended after 3 s"):
        TaskProcess("hanging_module:T", start_s=3.0)
    with pytest.raises(MoonflowError, match="exiting_module:T: it raises SystemExit: 3"):
        TaskProcess("exiting_module:T")
    with pytest.raises(MoonflowError, match="has no Nobody"):
        TaskProcess(f"{HERE}:Nobody")


def test_a_task_ends_with_the_step_that_is_killed_in_the_middle_of_a_hang(tmp_path: Path) -> None:
    note, script = tmp_path / "pids", tmp_path / "step.py"
    script.write_text(
        textwrap.dedent(f"""
        import threading
        from model.rl.tasks.process import TaskProcess

        if __name__ == "__main__":
            task = TaskProcess("{HERE}:Moody")
            task.about.__dict__["timeout_s"] = {REST}
            task.verify(task.prompt(0, "train", 0), "hang with a child {note}")
        """)
    )
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, str(script)], env=environment, cwd=tmp_path) as step:
        assert happens(lambda: note.is_file() and len(note.read_text().split()) == 2, seconds=60)
        step.kill()
    own, child = map(int, note.read_text().split())
    assert happens(lambda: not alive(own) and not alive(child), seconds=20)
