"""The sizes of a model that decide what its work costs; where they are read from is another part's business."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

Arithmetic = Literal["bf16", "fp8", "int8", "fp4"]
"""The numbers that the matrix units multiply; weights that are only stored in fewer bits are multiplied as bf16."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the prior needs to know of a model.

    active_parameters: parameters multiplied per token (without the look-up of the input embedding).
    weight_bytes: all weights as they lie in memory, the experts of a mixture included.
    kv_bytes_per_token: what the cache keeps of one token over all layers: keys and values, or MLA's latent vector.
    attention_flops: FLOPs per pair of (prompt token, context token) over all layers: 4 * layers * heads * head_dim.

    head_parameters: of the active ones those of the output head; a prompt's tokens do not pass it, only its last.
    expert_bytes: of weight_bytes those in routed experts. touched: fraction of the experts that one token is sent to.
    window: length in tokens of sliding-window attention. windowed: fraction of the cache's layers that have it.
    absorbed_flops: FLOPs per pair of (decode position, context token) over all layers where they count beside the
    bytes read: MLA attends in the latent space, with many heads to one cached vector.
    arithmetic: the format of the matrix products with the weights.
    """

    active_parameters: float
    weight_bytes: float
    kv_bytes_per_token: float
    attention_flops: float
    _: KW_ONLY
    head_parameters: float = 0.0
    expert_bytes: float = 0.0
    touched: float = 1.0
    window: int | None = None
    windowed: float = 0.0
    absorbed_flops: float = 0.0
    arithmetic: Arithmetic = "bf16"


LLAMA_8B = ModelShape(8.03e9, weight_bytes=16.06e9, kv_bytes_per_token=131_072, attention_flops=524_288)
"""Llama-3.1-8B in bf16: 32 layers, 32 heads of 128, 8 KV heads; the default when a model says nothing of itself."""
