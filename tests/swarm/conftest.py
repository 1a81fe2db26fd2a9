"""The same tokenizer and scripted engine as in tests/rl."""

from __future__ import annotations

from tests.rl.conftest import data_folder, scripted, speak, tokenizer, toolset

__all__ = ["data_folder", "scripted", "speak", "tokenizer", "toolset"]
