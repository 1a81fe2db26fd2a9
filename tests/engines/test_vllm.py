"""Stock vLLM 0.32 on an export: from chat messages and pictures to the same tokens as moonflow's own engine."""

from __future__ import annotations

import pytest

from tests.engines.chats import ask, assert_same
from tests.engines.server import serving

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]


def test_chats_are_read_and_answered_as_by_moonflow(export, asked, answers, tmp_path):
    with serving("vllm", export, tmp_path / "vllm.log") as url:
        assert_same(asked, ask(url, asked), answers)
