"""In how many bits a checkpoint keeps its numbers, and which it multiplies: from config.json's quantization_config.

Bits per weight include the scales that are stored beside a group of weights. Weight-only formats (GPTQ, AWQ, MXFP4,
bitsandbytes' 4 bits) are unpacked and multiplied as bf16. Embeddings and the output head stay in 16 bits in all of
these formats. A checkpoint in float32 counts as 16 bits too: vLLM casts it down unless told otherwise.
"""

from dataclasses import dataclass
from typing import Any, TypeGuard

from proxy.accounting.model_shape import Arithmetic

PLAIN_BITS = 16.0
SCALE_BITS = 16.0
_KV_CACHE_BITS = (("fp8", 8.0), ("int8", 8.0), ("nvfp4", 4.5), ("int4", 4.5), ("float32", 32.0))
"""Beginnings of the engine's names for the format of its cache (--kv-cache-dtype); 4 bits need scales."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Bits per number.

    attention, mlp, experts: per weight of these parts. cached: per number of the key-value cache.
    arithmetic: what the matrix units multiply.
    """

    attention: float = PLAIN_BITS
    mlp: float = PLAIN_BITS
    experts: float = PLAIN_BITS
    cached: float = PLAIN_BITS
    arithmetic: Arithmetic = "bf16"


def precision_of(config: dict[str, Any], kv_cache_dtype: str = "auto") -> Precision:
    """The precision a config declares. kv_cache_dtype: the engine's own setting, which goes first unless it is auto.

    A method that is not known here counts as its `bits`, or as 16 where it names none.
    """
    given = config.get("quantization_config")
    told: dict[str, Any] = given if isinstance(given, dict) else {}
    bits, arithmetic = _weights(told)
    only_experts = told.get("quant_method") == "mxfp4"
    plain_attention = only_experts or _keeps_attention(told)
    return Precision(
        attention=PLAIN_BITS if plain_attention else bits,
        mlp=PLAIN_BITS if only_experts else bits,
        experts=bits,
        cached=_cache_bits(told, kv_cache_dtype),
        arithmetic=arithmetic,
    )


def _weights(told: dict[str, Any]) -> tuple[float, Arithmetic]:
    method = str(told.get("quant_method", "")).lower()
    if method == "compressed-tensors":
        return _compressed(told)
    if method == "mxfp4":
        return 4 + 8 / 32, "bf16"
    if method == "bitsandbytes":
        return (8.0, "int8") if told.get("load_in_8bit") else (4.5, "bf16")
    if method.startswith("modelopt"):
        return (4.5, "fp4") if "FP4" in str(told.get("quant_algo", "FP4")).upper() else (8.0, "fp8")
    if "fp8" in method:
        return 8.0, "fp8"
    bits = told.get("bits", told.get("w_bit", told.get("nbits")))
    return (
        (_grouped(bits, told.get("group_size", told.get("q_group_size"))), "bf16") if _whole(bits) else (16.0, "bf16")
    )


def _compressed(told: dict[str, Any]) -> tuple[float, Arithmetic]:
    """The scheme of the first group of layers; further groups are exceptions such as a few layers in more bits."""
    groups = told.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    bits = weights.get("num_bits") if isinstance(weights, dict) else None
    if not isinstance(first, dict) or not isinstance(weights, dict) or not _whole(bits):
        return PLAIN_BITS, "bf16"
    inputs = first.get("input_activations")
    input_bits = inputs.get("num_bits") if isinstance(inputs, dict) else None
    floats = weights.get("type") == "float"
    arithmetic: Arithmetic = "bf16"
    if input_bits == 8:
        arithmetic = "fp8" if floats else "int8"
    elif input_bits == 4:
        arithmetic = "fp4"
    scale = 8.0 if floats and bits == 4 else SCALE_BITS
    return _grouped(bits, weights.get("group_size"), scale), arithmetic


def _grouped(bits: int, group: object, scale: float = SCALE_BITS) -> float:
    return bits + (scale / group if isinstance(group, int) and group > 0 else 0.0)


def _whole(bits: object) -> TypeGuard[int]:
    return isinstance(bits, int) and not isinstance(bits, bool) and 1 <= bits <= 32


def _keeps_attention(told: dict[str, Any]) -> bool:
    """Whether a pattern over all layers takes attention out of quantisation; single layers by number do not count."""
    lists = (told.get(key) for key in ("modules_to_not_convert", "ignore", "exclude_modules"))
    names = [str(name) for given in lists if isinstance(given, list) for name in given]
    return any("attn" in name and not any(c.isdigit() for c in name) for name in names)


def _cache_bits(told: dict[str, Any], kv_cache_dtype: str) -> float:
    if kv_cache_dtype != "auto":
        name = kv_cache_dtype.lower()
        return next((bits for begin, bits in _KV_CACHE_BITS if name.startswith(begin)), PLAIN_BITS)
    scheme = told.get("kv_cache_scheme")
    if isinstance(scheme, dict) and _whole(scheme.get("num_bits")):
        return float(scheme["num_bits"])
    return 8.0 if str(told.get("kv_cache_quant_algo", "")).upper() == "FP8" else PLAIN_BITS
