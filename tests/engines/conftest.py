"""One export, its questions and moonflow's own answers to them, for all engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.rollout.protocol import Completion
from tests.engines.checkpoint import write_export
from tests.engines.questions import Question, own_answers, questions
from tests.tiny_folders import tiny_tokenizer


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export") / "export", seed=4)


@pytest.fixture(scope="session")
def asked() -> list[Question]:
    return questions(tiny_tokenizer())


@pytest.fixture(scope="session")
def answers(export: Path, asked: list[Question]) -> list[Completion]:
    """64 tokens each; not the same ones over and over, which any engine would get right."""
    answers = own_answers(export, [question.request for question in asked])
    assert all(len(answer.token_ids) == 64 and len(set(answer.token_ids)) > 32 for answer in answers)
    assert len({tuple(answer.token_ids) for answer in answers}) == len(answers)
    return answers
