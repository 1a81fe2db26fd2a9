"""``quantization_config`` of config.json, in the keys of compressed-tensors (source: the released config)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Keys of compressed-tensors that ask for nothing if they have one of these values. Anything else in them would change
# what the stored numbers mean, or what the model computes, and is refused.
_NOTHING_OF_WEIGHTS: dict[str, tuple[Any, ...]] = {
    "actorder": (None, False),
    "block_structure": (None,),
    "dynamic": (None, False),
    "scale_dtype": (None,),
    "zp_dtype": (None,),
}
_NOTHING_OF_GROUP: dict[str, tuple[Any, ...]] = {"format": (None, "pack-quantized")}
_NOTHING: dict[str, tuple[Any, ...]] = {
    "kv_cache_scheme": (None,),
    "sparsity_config": (None, {}),
    "transform_config": (None, {}),
}
# Keys about how the scales were found, or about the program that wrote the file.
_UNREAD = frozenset(("global_compression_ratio", "observer", "observer_kwargs", "version"))


def _without(given: Any, nothing: dict[str, tuple[Any, ...]]) -> Any:
    """``given`` without the keys that ask for nothing.

    Raises:
        ValueError: such a key asks for something.
    """
    if not isinstance(given, dict):
        return given
    for key in nothing.keys() & given.keys():
        if not any(type(given[key]) is type(value) and given[key] == value for value in nothing[key]):
            raise ValueError(f"quantization_config: {key} is {str(given[key])[:60]!r}, which this network does not do")
    return {key: value for key, value in given.items() if key not in nothing and key not in _UNREAD}


class QuantizedWeights(BaseModel):
    """How a group's weights are stored: the only way that ``model.network.quantization`` reads and writes."""

    model_config = ConfigDict(extra="forbid")

    num_bits: Literal[4] = 4
    type: Literal["int"] = "int"
    symmetric: Literal[True] = True
    strategy: Literal["group"] = "group"
    group_size: Literal[32] = Field(default=32, description="neighbouring inputs that share a scale")

    @model_validator(mode="before")
    @classmethod
    def _other_keys(cls, given: Any) -> Any:
        return _without(given, _NOTHING_OF_WEIGHTS)


class QuantizationGroup(BaseModel):
    """Which modules are quantised; weights only."""

    model_config = ConfigDict(extra="forbid")

    targets: list[str] = ["Linear"]
    weights: QuantizedWeights = QuantizedWeights()
    input_activations: None = None
    output_activations: None = None

    @model_validator(mode="before")
    @classmethod
    def _other_keys(cls, given: Any) -> Any:
        return _without(given, _NOTHING_OF_GROUP)


class QuantizationConfig(BaseModel):
    """``quantization_config`` of the released config: INT4 routed experts, everything else as it is."""

    model_config = ConfigDict(extra="forbid")

    quant_method: Literal["compressed-tensors"] = "compressed-tensors"
    format: Literal["pack-quantized"] = "pack-quantized"
    config_groups: dict[str, QuantizationGroup] = {"group_0": QuantizationGroup()}
    ignore: list[str] = [
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    ]
    quantization_status: Literal["compressed"] = "compressed"

    @model_validator(mode="before")
    @classmethod
    def _other_keys(cls, given: Any) -> Any:
        return _without(given, _NOTHING)
