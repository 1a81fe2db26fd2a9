"""The files of a checkpoint folder, named as transformers and serving engines look for them (source: the released
checkpoint)."""

from __future__ import annotations

import re
from pathlib import Path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Which file holds which tensor, where the weights are in several files."""


def weights_file(number: int, files: int) -> str:
    """File ``number``, counted from 0, of weights that are in so many files."""
    return f"model-{number + 1:05d}-of-{files:05d}.safetensors" if files > 1 else WEIGHTS


CONFIG, GENERATION, PROCESSOR = "config.json", "generation_config.json", "preprocessor_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

REMOTE = Path(__file__).parents[1] / "codec" / "remote"
"""Where the code is that a checkpoint carries along, for programs that do not have ours."""

REMOTE_FILES = (
    "processing_kimi_k25.py",
    "image_files.py",
    "video_files.py",
    "media_structure.py",
    "media_errors.py",
    "chat_template.jinja",
)
FILES = (CONFIG, GENERATION, PROCESSOR, *REMOTE_FILES, *TOKENIZER_FILES)
"""What a folder that can be served holds in addition to its weights."""

_LICENCE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|THIRD[_-]PARTY[_-]NOTICES?)([._-][\w.-]*)?", re.IGNORECASE)


def is_licence(name: str) -> bool:
    """Whether a file of that name says under which terms the others may be used: LICENSE, NOTICE.txt and the like."""
    return _LICENCE.fullmatch(name) is not None and not name.endswith(".safetensors")
