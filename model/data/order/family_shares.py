"""The families' shares: of the samples that prepare_data makes, and of the tokens that each stage reads.

Source: the classes of data are K2.5's, the shares ours. ``mixtures`` says which of them belong together.
"""

from __future__ import annotations

from model.data.order.shares import Mixture

# Shares of samples of a pre-training of minutes. Copying (recall, fact_qa) needs the most different samples.
TEXT_SAMPLES: Mixture = {
    "recall": 5,
    "fact_qa": 4,
    "fact_prose": 2,
    "stdlib_text": 1.5,
    "stdlib_code": 1.5,
    "reasoning_gym": 2,
    "array_tool": 3,
    "image_program": 0.75,  # as many as zero_vision_sft reads once
    "wide_search": 3,
    "sub_search": 1,
}

IMAGE_SAMPLES: Mixture = {
    "digit_string": 6,
    "digit_count": 6,
    "grounding": 2,
    "ocr_line": 1.5,
    "photo": 1,
    "chart": 1.5,
    "interleaved": 1.5,
    "array_tool_image": 0.3,
    "image_program_image": 0.2,
    "video_digits": 0.8,
    "video_clip": 0.4,
}

LONG_SAMPLES: Mixture = {"needle": 5, "video_needle": 3}

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

# Shares of samples of a pre-training of an hour. Reading needs the most different ones.
BROAD_TEXT_SAMPLES: Mixture = {
    "code_window": 20,
    "prose_window": 12,
    "stdlib_text": 0.5,
    "stdlib_code": 0.5,
    "recall": 25,
    "fact_qa": 15,
    "fact_prose": 2,
    "reasoning_gym": 4,
    "array_tool": 5,
    "image_program": 7,
    "wide_search": 4,
    "sub_search": 4,
    "thinking": 3,
    "coding": 2,
    "dialogue": 2,
}

BROAD_IMAGE_SAMPLES: Mixture = {
    "ocr_text": 36,
    "scene_box": 28,
    "scene_caption": 17,
    "digit_string": 22,
    "digit_tally": 16,
    "digit_count": 3,
    "grounding": 6,
    "ocr_line": 4,
    "chart": 9,
    "photo": 4,
    "interleaved": 3,
    "array_tool_image": 1,
    "image_program_image": 1,
    "narrow_program_image": 2,  # hand-made trajectories are few
    "video_digits": 5.5,
    "video_clip": 1.5,
}

BROAD_LONG_SAMPLES: Mixture = {"needle": 2, "video_needle": 3}  # joint_pretrain reads the short videos

# In minutes, each of these families would be learned only in part. Reading gets the most.
BROAD_VISION: Mixture = {
    "ocr_text": 5,
    "scene_box": 4,
    "scene_caption": 2.5,
    "digit_string": 2,
    "digit_tally": 1.5,
    "digit_count": 0.5,
    "grounding": 1,
    "ocr_line": 0.6,
    "chart": 1.5,
    "photo": 0.6,
    "interleaved": 1,
    "video_needle": 0.4,
    "video_digits": 1.2,
    "video_clip": 0.3,
}

# Reading, which is learned early, gives way to what is learned slowly: where things are, and how many.
PLACES_VISION: Mixture = {
    "ocr_text": 2.5,
    "scene_box": 5,
    "scene_caption": 3,
    "digit_string": 3,
    "digit_tally": 3,
    "digit_count": 0.3,
    "grounding": 1,
    "ocr_line": 0.3,
    "chart": 1.5,
    "photo": 0.6,
    "interleaved": 1,
    "video_needle": 0.4,
    "video_digits": 1.5,
    "video_clip": 0.3,
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

# What was learned in short contexts stays in the mixture: code, prose, and all of vision.
BROAD_LONG_TEXT: Mixture = {
    "code_window": 2,
    "prose_window": 1.5,
    "recall": 1,
    "fact_qa": 2,
    "reasoning_gym": 0.5,
    "array_tool": 1.5,
    "wide_search": 3,
    "sub_search": 0.5,
    "needle": 3,
}

BROAD_LONG_VISION: Mixture = {**PLACES_VISION, "video_needle": 5}

TRAJECTORIES: Mixture = {
    "array_tool": 2.5,
    "image_program": 2,
    "wide_search": 5,
    "sub_search": 1,
    "fact_qa": 1,
    "reasoning_gym": 0.5,
}

# Image programs get the most: visual tool use is what this stage is to wake.
BROAD_TRAJECTORIES: Mixture = {
    "image_program": 5,
    "array_tool": 2,
    "wide_search": 4,
    "sub_search": 1,
    "fact_qa": 1,
    "reasoning_gym": 0.5,
    "thinking": 1,
    "coding": 1.5,
    "dialogue": 1,
}

# A cold start for RL under length budgets: most of it thinks, half of that in the short style and half in the long one.
# All of broad's trajectories keep a share, so that nothing is lost.
FREE_SAMPLES: Mixture = {"free_arithmetic": 40, "free_reading": 30}

THINKING_TRAJECTORIES: Mixture = {
    "free_arithmetic": 7,
    "free_reading": 5,
    "thinking": 1,
    "image_program": 1,
    "array_tool": 0.5,
    "wide_search": 0.5,
    "sub_search": 0.3,
    "fact_qa": 0.3,
    "reasoning_gym": 0.2,
    "coding": 0.5,
    "dialogue": 0.5,
}

# What teaches a judge, and answers open questions in any form, for RL with that judge. A quarter keeps what broad has.
JUDGED_SAMPLES: Mixture = {"judge_pair": 25, "judge_rubric": 25, "judge_list": 30, "open_answer": 10}

JUDGED_TRAJECTORIES: Mixture = {
    "judge_pair": 6,
    "judge_rubric": 5,
    "judge_list": 8,
    "open_answer": 2,
    "image_program": 1,
    "array_tool": 0.7,
    "wide_search": 0.7,
    "sub_search": 0.4,
    "fact_qa": 0.7,
    "reasoning_gym": 0.2,
    "thinking": 0.3,
    "coding": 0.5,
    "dialogue": 0.5,
}

# A cold start for PARL. Four fifths of what is read is work in the offline world: of single agents, of sub-agents, of
# orchestrators that have no other tools, and putting sub-agents' notes in order. Of those that can choose, a twentieth
# of each family and N delegates, so that RL finds the syntax there, and decides by itself when and how widely to use
# it. All of broad's families keep a share, so that nothing is lost; wide_search, of which half delegates, a small one.
WORLD_SAMPLES: Mixture = {
    "world_wide": 14,
    "world_deep": 6,
    "world_document": 6,
    "world_bulk": 4,
    "world_easy": 6,
    "world_part": 14,
    "world_notes": 14,
}

SWARM_TEXT_SAMPLES: Mixture = WORLD_SAMPLES | {name: share / 4 for name, share in BROAD_TEXT_SAMPLES.items()}

SWARM_TRAJECTORIES: Mixture = {
    "world_wide": 7,
    "world_deep": 1.5,
    "world_document": 1,
    "world_bulk": 1.5,
    "world_easy": 2,
    "world_part": 5.5,
    "world_notes": 4,
    "image_program": 1.5,
    "array_tool": 0.8,
    "wide_search": 0.3,
    "sub_search": 0.4,
    "fact_qa": 0.4,
    "reasoning_gym": 0.2,
    "thinking": 0.4,
    "coding": 0.6,
    "dialogue": 0.4,
}
