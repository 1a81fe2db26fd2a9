"""The keys under which other programs write and read this network's config.json.

transformers has names of its own, and engines add hints. A key is read where it means the same as one of ours, and
refused where it asks for something that this network does not do.
"""

from __future__ import annotations

from typing import Any

# Key of the released vision_config -> the key under which serving engines' and transformers' config classes look for
# the same value, and silently take their own default if it is missing. A saved config.json has both.
VISION_ALIASES = {
    "vt_hidden_size": "hidden_size",
    "vt_num_hidden_layers": "num_hidden_layers",
    "vt_num_attention_heads": "num_attention_heads",
    "vt_intermediate_size": "intermediate_size",
    "init_pos_emb_height": "pos_emb_height",
    "init_pos_emb_width": "pos_emb_width",
    "init_pos_emb_time": "pos_emb_time",
}
VISION_FIXED = {"hidden_act": "gelu_pytorch_tanh", "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"}}

# Keys that transformers writes into any config.json, or that only steer how a program runs the same network.
# fmt: off
_UNREAD = frozenset((
    "_attn_implementation", "_attn_implementation_internal", "_commit_hash", "_name_or_path", "add_cross_attention",
    "auto_map", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "ep_size", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "id2label", "is_decoder", "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_router_logits", "output_scores", "prefix", "pretraining_tp", "problem_type",
    "pruned_heads",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tokenizer_class", "top_k", "top_p", "torchscript", "transformers_version", "typical_p", "unk_token_id",
    "use_bfloat16", "video_token_id", "vision_end_token_id", "vision_start_token_id",
))
# fmt: on


def read_keys(given: dict[str, Any], where: str, aliases: dict[str, str], fixed: dict[str, Any]) -> dict[str, Any]:
    """``given`` without what is not read: nulls, ``_UNREAD``, ``aliases`` (our key -> theirs) and ``fixed`` keys.

    Raises:
        ValueError: two names of one value disagree, or a fixed key has another value than the network's.
    """
    kept = {key: value for key, value in given.items() if value is not None and key not in _UNREAD}
    for key, alias in aliases.items():
        theirs = kept.pop(alias, None)
        if theirs is not None and kept.setdefault(key, theirs) != theirs:
            raise ValueError(f"{where}.{alias} is {theirs}, but {where}.{key} is {kept[key]}")
    for key, value in fixed.items():
        if kept.pop(key, value) != value:
            raise ValueError(f"{where}.{key} is {given[key]}, but this network has only {value}")
    return kept


def one_rope(given: dict[str, Any]) -> dict[str, Any]:
    """``given`` with its rotation in ``rope_theta`` and ``rope_scaling`` alone, read from these or from transformers'
    ``rope_parameters``, which holds both.

    Raises:
        ValueError: they disagree, or the rotation is neither plain nor YaRN.
    """
    said: list[tuple[str, dict[str, Any]]] = []
    for key in ("rope_scaling", "rope_parameters"):
        raw = given.pop(key, None)
        if isinstance(raw, dict):
            rope = {name: value for name, value in raw.items() if value is not None}
            kind = rope.pop("rope_type", rope.pop("type", "default"))
            rope.pop("type", None)
            if "rope_theta" in rope and given.setdefault("rope_theta", rope["rope_theta"]) != rope["rope_theta"]:
                raise ValueError(
                    f"text_config.{key}.rope_theta is {rope['rope_theta']}, but rope_theta is {given['rope_theta']}"
                )
            rope.pop("rope_theta", None)
            if kind not in ("default", "yarn"):
                raise ValueError(f"text_config.{key} is of type {kind!r}; this network has plain rotation and yarn")
            said.append((key, {"type": "yarn", **rope} if kind == "yarn" else {}))
        elif raw is not None:
            given["rope_scaling"] = raw  # a RopeScaling already
    if len(said) == 2 and said[0][1] != said[1][1]:
        raise ValueError(f"text_config.rope_scaling is {said[0][1]}, but rope_parameters is {said[1][1]}")
    if said and said[0][1]:
        given["rope_scaling"] = said[0][1]
    return given
