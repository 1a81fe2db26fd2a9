"""Models whose context was not extended ship without ``rope_scaling``: other rotary code, another softmax scale."""

from __future__ import annotations

import pytest

from tests.engines.chats import ask, assert_same
from tests.engines.checkpoint import write_export
from tests.engines.questions import own_answers
from tests.engines.server import serving

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_chats_are_answered_as_by_moonflow(engine, asked, tmp_path):
    export = write_export(tmp_path / "export", seed=12, rope_scaling=None)
    answers = own_answers(export, [question.request for question in asked])
    with serving(engine, export, tmp_path / f"{engine}.log") as url:
        assert_same(asked, ask(url, asked), answers)
