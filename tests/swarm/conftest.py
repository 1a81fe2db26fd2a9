"""The same tokenizer and scripted engine as in tests/rl."""

from __future__ import annotations

from tests.rl.conftest import checkpoint, data_folder, scripted, speak, tokenizer

__all__ = ["checkpoint", "data_folder", "scripted", "speak", "tokenizer"]
