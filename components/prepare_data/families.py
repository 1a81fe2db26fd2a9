"""Which families prepare_data makes, by their shares of the samples (ours). Checks of parameters read it too."""

from __future__ import annotations

# Shares of `text_samples` and of `image_samples`. Copying (recall, fact_qa) needs the most different samples.
TEXT_WEIGHTS = {
    "recall": 5, "fact_qa": 4, "fact_prose": 2, "stdlib_text": 1.5, "stdlib_code": 1.5, "reasoning_gym": 2,
    "array_tool": 3, "wide_search": 3, "sub_search": 1,
}  # fmt: skip
IMAGE_WEIGHTS = {
    "digit_string": 6, "digit_count": 6, "grounding": 2, "ocr_line": 1.5, "photo": 1, "chart": 1.5,
    "interleaved": 1.5, "array_tool_image": 0.3, "video_digits": 0.8, "video_clip": 0.4,
}  # fmt: skip
LONG_WEIGHTS = {"needle": 5, "video_needle": 3}  # shares of `long_samples`
PREPARED = (*TEXT_WEIGHTS, *IMAGE_WEIGHTS, *LONG_WEIGHTS)
"""Each of them gets held-out samples too."""
