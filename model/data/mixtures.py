"""Which families each stage reads, in shares of tokens (source: the classes are K2.5's, the shares ours)."""

from __future__ import annotations

Mixture = dict[str, float]

VISION: Mixture = {
    "digit_string": 7,
    "digit_count": 7,
    "grounding": 1,
    "ocr_line": 0.4,
    "photo": 0.5,
    "chart": 0.8,
    "interleaved": 2.5,
    "video_needle": 1.5,
    "video_digits": 0.3,
    "video_clip": 0.15,
}

TEXT: Mixture = {
    "recall": 4,
    "fact_qa": 2,
    "fact_prose": 0.4,
    "stdlib_text": 0.2,
    "stdlib_code": 0.2,
    "reasoning_gym": 0.5,
    "array_tool": 1,
    "sub_search": 1,
}

# What a pre-training of most of an hour learns; one of minutes would learn the half of each. Reading takes most.
BROAD_VISION: Mixture = {
    "ocr_text": 5,
    "scene_box": 4,
    "scene_caption": 2.5,
    "digit_string": 2,
    "digit_tally": 1.5,
    "digit_count": 0.5,
    "grounding": 1,
    "ocr_line": 0.6,
    "chart": 0.4,
    "photo": 0.3,
}

# What is read soon gives its place to what is found slowly: where things are, and how many.
PLACES_VISION: Mixture = {
    "ocr_text": 2.5,
    "scene_box": 5,
    "scene_caption": 3,
    "digit_string": 3,
    "digit_tally": 3,
    "digit_count": 0.3,
    "grounding": 1,
    "ocr_line": 0.3,
    "chart": 0.3,
    "photo": 0.3,
}

BROAD_TEXT: Mixture = {
    "code_window": 3,
    "prose_window": 2.5,
    "recall": 3,
    "fact_qa": 1.5,
    "array_tool": 0.7,
    "sub_search": 0.5,
    "reasoning_gym": 0.4,
    "fact_prose": 0.3,
}

LONG_TEXT: Mixture = {
    "recall": 1,
    "fact_qa": 2,
    "stdlib_code": 0.5,
    "reasoning_gym": 1,
    "array_tool": 1.5,
    "wide_search": 3,
    "sub_search": 0.5,
    "needle": 3,
}

LONG_VISION: Mixture = {**VISION, "video_needle": 5}

TRAJECTORIES: Mixture = {
    "array_tool": 2.5,
    "wide_search": 5,
    "sub_search": 1,
    "fact_qa": 1,
    "reasoning_gym": 0.5,
}


def blend(*parts: tuple[Mixture, float]) -> Mixture:
    """Mixtures joined so that each has its given share of the whole."""
    blended: Mixture = {}
    for mixture, share in parts:
        total = sum(mixture.values())
        for name, weight in mixture.items():
            blended[name] = blended.get(name, 0.0) + share * weight / total
    return blended
