"""One set of random weights as a Marian model of Hugging Face, as ours, and as CTranslate2's."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

from tfray.model.architecture import PRESETS, Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID

LONGEST = 512


def make_marian(size: str, vocab_size: int, seed: int = 0, dropout: float = 0.0, attention: str | None = None) -> Any:
    """Return a MarianMTModel with lively random weights: outputs vary, and ties do not decide."""
    from transformers import MarianConfig, MarianMTModel

    preset = PRESETS[size]
    config = MarianConfig(
        vocab_size=vocab_size,
        d_model=preset.d_model,
        encoder_layers=preset.encoder_layers,
        decoder_layers=preset.decoder_layers,
        encoder_attention_heads=preset.num_heads,
        decoder_attention_heads=preset.num_heads,
        encoder_ffn_dim=preset.d_ff,
        decoder_ffn_dim=preset.d_ff,
        max_position_embeddings=LONGEST,
        activation_function="relu",
        scale_embedding=True,
        share_encoder_decoder_embeddings=True,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        decoder_start_token_id=BOS_ID,
        forced_eos_token_id=None,
        dropout=dropout,
        attn_implementation=attention,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    torch.manual_seed(seed)
    model = MarianMTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" in name:
                continue
            if parameter.dim() == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.02)
        model.model.shared.weight[PAD_ID] = 0
    model.generation_config.bad_words_ids = [[PAD_ID], [BOS_ID]]  # as ours never generates them
    model.generation_config.forced_eos_token_id = None
    return model


def ours_from_marian(marian: Any) -> Transformer:
    """Return our model with a Marian model's weights.

    Marian has sines in the first half of the dimensions and cosines in the second, we have them in turn:
    every weight that reads or writes hidden states is permuted accordingly.
    """
    config = marian.config
    architecture = Architecture(
        d_model=config.d_model,
        num_heads=config.encoder_attention_heads,
        d_ff=config.encoder_ffn_dim,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        vocab_size=config.vocab_size,
        max_length=config.max_position_embeddings,
        norm_position="post",
        dropout=0.0,
    )
    model = Transformer(architecture).eval()
    order = torch.arange(config.d_model).view(2, -1).T.flatten()  # ours[i] = marian's[order[i]]
    theirs = marian.state_dict()
    state = {"embedding.tokens.weight": theirs["model.shared.weight"][:, order]}
    for stack, count in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for number in range(count):
            old, new = f"model.{stack}.layers.{number}", f"{stack}.{number}"
            state |= attention_weights(theirs, f"{old}.self_attn", f"{new}.self_attention", order, joint=True)
            first = "around_attention"
            if stack == "decoder":
                state |= attention_weights(theirs, f"{old}.encoder_attn", f"{new}.cross_attention", order, joint=False)
                state |= norm(theirs, f"{old}.encoder_attn_layer_norm", f"{new}.around_cross_attention.norm", order)
                first = "around_self_attention"
            state |= norm(theirs, f"{old}.self_attn_layer_norm", f"{new}.{first}.norm", order)
            state |= norm(theirs, f"{old}.final_layer_norm", f"{new}.around_feed_forward.norm", order)
            state[f"{new}.feed_forward.inner.weight"] = theirs[f"{old}.fc1.weight"][:, order]
            state[f"{new}.feed_forward.inner.bias"] = theirs[f"{old}.fc1.bias"]
            state[f"{new}.feed_forward.output.weight"] = theirs[f"{old}.fc2.weight"][order]
            state[f"{new}.feed_forward.output.bias"] = theirs[f"{old}.fc2.bias"][order]
    model.load_state_dict(state)
    return model


def attention_weights(theirs: dict, old: str, new: str, order: torch.Tensor, joint: bool) -> dict:
    """Return queries, keys and values joined as ours are."""
    parts = {part: (theirs[f"{old}.{part}_proj.weight"][:, order], theirs[f"{old}.{part}_proj.bias"]) for part in "qkv"}
    names = {"query_key_value": "qkv"} if joint else {"query": "q", "key_value": "kv"}
    state = {}
    for name, joined in names.items():
        state[f"{new}.{name}.weight"] = torch.cat([parts[part][0] for part in joined])
        state[f"{new}.{name}.bias"] = torch.cat([parts[part][1] for part in joined])
    state[f"{new}.output.weight"] = theirs[f"{old}.out_proj.weight"][order]
    state[f"{new}.output.bias"] = theirs[f"{old}.out_proj.bias"][order]
    return state


def norm(theirs: dict, old: str, new: str, order: torch.Tensor) -> dict:
    return {f"{new}.{part}": theirs[f"{old}.{part}"][order] for part in ("weight", "bias")}


def save_ctranslate2(marian: Any, folder: str, quantization: str | None) -> None:
    """Write a Marian model in CTranslate2's form; tokens are named t0, t1, ..."""
    from ctranslate2.converters.transformers import BartLoader

    class Loader(BartLoader):
        architecture_name = "MarianMTModel"

    marian.config.normalize_before = False
    marian.config.normalize_embedding = False
    spec = Loader().get_model_spec(marian)
    names = [f"t{token}" for token in range(marian.config.vocab_size)]
    names[PAD_ID], names[BOS_ID], names[EOS_ID] = "<pad>", "<s>", "</s>"
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    spec.config.decoder_start_token = "<s>"
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<pad>"
    spec.config.add_source_eos = False
    spec.validate()
    spec.optimize(quantization=quantization)
    os.makedirs(folder)
    spec.save(folder)


def some_sources(rows: int, length: int, vocab_size: int, seed: int, log_normal: bool = False) -> list[list[int]]:
    """Return sources of random ids with eos: all of one length, or log-normal with the same mean."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((rows,), float(length))
    if log_normal:
        spread = 0.6
        lengths = (torch.randn(rows, generator=generator) * spread - spread**2 / 2).exp() * length
        lengths = lengths.clamp(2, 8 * length)
        lengths *= length / lengths.mean()
    return [
        [*torch.randint(3, vocab_size, (max(1, math.floor(n)),), generator=generator).tolist(), EOS_ID] for n in lengths
    ]
