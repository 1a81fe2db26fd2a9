"""Tasks as a user may write them, good and bad; named ``tests.rl.tasks.user_tasks:Name``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = "tests.rl.tasks.user_tasks"
REST = 60  # seconds: longer than any test waits


class Say:
    """Says a number; what it makes and judges is told by the response."""

    timeout_s = 5.0
    max_new_tokens = 6

    def prompt(self, seed: int, split: str, index: int) -> dict:
        return {"messages": [{"role": "user", "content": f"Say {index} of {seed}."}], "answer": index}

    def verify(self, response: str, prompt: dict) -> object:
        return {"score": response == str(prompt["answer"]), "length": len(response)}


class Even(Say):
    """Half of all responses are right."""

    def verify(self, response: str, prompt: dict) -> object:
        return {"score": len(response) % 2, "length": len(response)}


class Rubrics(Say):
    """All responses are right; rubrics say what else they should be."""

    max_new_tokens = 64

    def prompt(self, seed: int, split: str, index: int) -> dict:
        return super().prompt(seed, split, index) | {"rubric": "It is short.\nIt is kind.\nIt is true."}

    def verify(self, response: str, prompt: dict) -> object:
        return 1.0


class Moody(Say):
    """The response says how the verifier breaks."""

    timeout_s = 1.0

    def verify(self, response: str, prompt: dict) -> object:
        if response.startswith("hang with a child "):
            child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({REST})"])
            Path(response.split()[-1]).write_text(f"{os.getpid()} {child.pid}")
            time.sleep(REST)
        if response == "hang":
            time.sleep(REST)
        if response == "exit":
            sys.exit(1)
        if response == "die":
            os._exit(7)
        if response == "raise":
            raise KeyError("no such key\nin two lines")
        if response == "print":
            print("what a user prints does not disturb")
        return {"1.5": 1.5, "nan": float("nan"), "none": None, "text": "1", "parts": {"fluency": 1.0}}.get(
            response, 1.0
        )


class Sparse(Say):
    """Every other prompt raises."""

    def prompt(self, seed: int, split: str, index: int) -> dict:
        if index % 2 == 0:
            raise ValueError(f"there is no prompt {index}")
        return super().prompt(seed, split, index)


class Few(Say):
    """Three prompts to train on, none to evaluate."""

    def count(self, split: str) -> int:
        return 3 if split == "train" else 0


class RaisesPrompt(Say):
    def prompt(self, seed: int, split: str, index: int) -> dict:
        raise ValueError("no prompt at all")


class HangsPrompt(Say):
    timeout_s = 0.5

    def prompt(self, seed: int, split: str, index: int) -> dict:
        time.sleep(REST)
        return {}


class NoPrompts(Say):
    def count(self, split: str) -> int:
        return 0


class RaisesVerdict(Say):
    def verify(self, response: str, prompt: dict) -> object:
        raise RuntimeError("the judge is away")


class HangsVerdict(Say):
    timeout_s = 0.5

    def verify(self, response: str, prompt: dict) -> object:
        time.sleep(REST)
        return 1.0


class HighScore(Say):
    def verify(self, response: str, prompt: dict) -> object:
        return 2.0


class NoNumber(Say):
    def verify(self, response: str, prompt: dict) -> object:
        return float("nan")


class NeedsAnArgument:
    def __init__(self, size: int) -> None:
        self.size = size


class NoVerifier:
    def prompt(self, seed: int, split: str, index: int) -> dict:
        return {}


class Near:
    """A built-in reward judges. A third prompt has no answer that it could compare with."""

    reward = "points"

    def prompt(self, seed: int, split: str, index: int) -> dict:
        answer = [[30, 40], [90, 90]] if index < 2 else "nowhere"
        return {"messages": [{"role": "user", "content": "Point at the stars."}], "answer": answer}


class Tested(Near):
    reward = "tests"

    def prompt(self, seed: int, split: str, index: int) -> dict:
        return {"messages": [{"role": "user", "content": "Write f."}], "answer": {"f(1)": "2", "f(2)": "3"}}


class Sums(Near):
    """The library of the reward ``math`` judges; half of all answers are the same."""

    reward = "math"

    def prompt(self, seed: int, split: str, index: int) -> dict:
        answer = index if index % 2 else 0
        return {"messages": [{"role": "user", "content": f"What is {answer} + 0?"}], "answer": answer}


class WrongReward(Near):
    reward = "bleu"


class TwoJudges(Say):
    reward = "number"


class WrongAbility(Say):
    ability = "visual"


class WrongTimeout(Say):
    timeout_s = 0


class WrongCount(Say):
    def count(self, split: str) -> float:
        return 0.5


def made_by_a_function() -> Say:
    return Say()


an_object = Say()
no_task = np.zeros(3)
