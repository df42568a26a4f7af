"""How much memory a worker takes, from the architecture alone: what is kept between steps, and within one.

What is kept follows from TrainState's buffers. Activations are what the backward pass needs of the forward pass,
counted in elements a position as the layers save them.
"""

from __future__ import annotations

from typing import NamedTuple

from tfray.batches.plan import Shape
from tfray.config import TrainingConfig
from tfray.model import native
from tfray.model.architecture import Architecture
from tfray.model.dropout import POOL_SIZE
from tfray.model.fused import LONGEST, VECTOR_WIDTH
from tfray.training.loss import CHUNK_BYTES

FP32 = 4
CHUNK_COPIES = 2
"""Logits of a chunk, and what a product makes of them."""
SCRATCH_BYTES = 64 << 20
"""Of kernels, and of an allocator that gives nothing back."""


class MemorySetting(NamedTuple):
    """What memory depends on beside the architecture."""

    training: TrainingConfig
    element_bytes: int
    """Of weights and activations in the products: 2 in bf16."""
    on_gpu: bool
    workers: int
    lanes: int
    """Micro-batches of one worker in a step."""


def count_parameters(architecture: Architecture) -> dict[str, int]:
    """Return the weights of each part of the network; the output layer is the embedding."""
    a = architecture
    d, norm = a.d_model, 2 * a.d_model if a.norm == "layer" else a.d_model
    attention = 4 * d * d + 4 * d
    inner = a.d_ff * (2 if a.activation == "swiglu" else 1)
    feed_forward = d * inner + inner + a.d_ff * d + d
    last_norms = 2 * norm if a.norm_position == "pre" else 0
    return {
        "embedding": a.vocab_size * d,
        "encoder": a.encoder_layers * (attention + feed_forward),
        "decoder": a.decoder_layers * (2 * attention + feed_forward),
        "norms": norm * (2 * a.encoder_layers + 3 * a.decoder_layers) + last_norms,
    }


def estimate_memory(architecture: Architecture, shape: Shape, setting: MemorySetting) -> dict[str, int]:
    """Return the bytes of each kind that a worker holds while it trains on a micro-batch of this shape."""
    parameters = sum(count_parameters(architecture).values())
    config, size = setting.training, setting.element_bytes
    is_sharded = config.parallel == "fsdp" and setting.workers > 1  # one alone has nothing to share out
    owned = parameters / setting.workers if is_sharded else parameters
    kept = {"weights (fp32)": FP32 * owned, "moments (fp32)": 2 * FP32 * owned}
    if is_sharded:
        layer = max(largest_layer(architecture), architecture.vocab_size * architecture.d_model)
        kept["weights of two layers, gathered"] = 2 * size * layer
        kept["gradients (fp32)"] = FP32 * (parameters if setting.lanes > 1 else owned)
        kept["the whole model (fp32), while it is validated or written"] = FP32 * parameters
    else:
        if size < FP32:
            kept["weights (bf16)"] = size * parameters
        kept["gradients (fp32)"] = FP32 * parameters
    if config.ema_decay:
        kept["moving average (fp32)"] = FP32 * owned
    if not setting.on_gpu:  # workers with a GPU keep it in main memory
        tensors = 4 if config.ema_decay else 3
        kept["the last checkpoint, kept for the next"] = FP32 * tensors * parameters / setting.workers
    passes = 2 if config.r_drop else 1
    doubled = shape._replace(rows=passes * shape.rows)
    kept["activations"] = size * activation_elements(architecture, doubled, setting)
    kept["logits of a chunk"] = CHUNK_COPIES * chunk_bytes(architecture, doubled, setting)
    kept["gradient of the output layer"] = size * architecture.vocab_size * architecture.d_model
    kept["kernels' scratch memory"] = SCRATCH_BYTES
    if architecture.dropout and not setting.on_gpu:
        kept["dropout masks"] = size * POOL_SIZE
    return {name: round(count) for name, count in kept.items()}


def largest_layer(architecture: Architecture) -> int:
    """Return the weights of a decoder layer."""
    return count_parameters(architecture)["decoder"] // max(1, architecture.decoder_layers)


def chunk_bytes(architecture: Architecture, shape: Shape, setting: MemorySetting) -> float:
    """Return the bytes of the logits that exist at a time."""
    whole = setting.element_bytes * shape.rows * shape.target * architecture.vocab_size
    return min(whole, CHUNK_BYTES["cuda" if setting.on_gpu else "cpu"])


def keeps_attention_weights(architecture: Architecture, shape: Shape, setting: MemorySetting) -> bool:
    """Say whether attention is done by plain products: on a CPU, where the kernel does not know the shapes."""
    is_long = max(shape.source, shape.target) > LONGEST
    return not setting.on_gpu and (is_long or architecture.head_dim % VECTOR_WIDTH > 0 or native.library() is None)


def activation_elements(architecture: Architecture, shape: Shape, setting: MemorySetting) -> float:
    """Return how many elements the backward pass over a micro-batch needs."""
    a = architecture
    d, inner = a.d_model, a.d_ff * {"relu": 1, "gelu": 2, "swiglu": 4}[a.activation]
    sources, targets = shape.rows * shape.source, shape.rows * shape.target
    # A GPU's dropout keeps a byte an element.
    masks = d / setting.element_bytes if setting.on_gpu and a.dropout else 0.0
    heads = a.num_heads if keeps_attention_weights(architecture, shape, setting) else 0
    # The residual stream and its norm twice, queries, keys, values and what is gathered; then the inner layer.
    encoder = sources * (8 * d + inner + heads * shape.source + 2 * masks)
    # The same and cross-attention: stream, norm, queries and what is gathered; keys and values of the memory.
    decoder = targets * (12 * d + inner + heads * (shape.target + shape.source) + 3 * masks) + sources * 2 * d
    ends = 3 * d * (sources + targets) + 2 * d * targets
    if setting.training.activation_checkpointing:
        streams = a.encoder_layers * sources * d + a.decoder_layers * (targets + 2 * sources) * d
        return streams + max(encoder, decoder) + ends
    return a.encoder_layers * encoder + a.decoder_layers * decoder + ends
