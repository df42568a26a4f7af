"""An existing tokenizer in place of a trained one: the same tokens for a text, under tfray's ids.

    <pad> <s> </s> | all other tokens in their old order | bytes it lacked | <label:NAME> ...

The post-processor goes (tfray adds the special tokens), and text cannot spell a special token. What the
tokenizer would write as an unknown token becomes bytes.
"""

from __future__ import annotations

import json
import re
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from tfray import storage
from tfray.errors import InputError
from tfray.tokens.sentencepiece import from_sentencepiece
from tfray.tokens.special import SPECIAL_TOKENS
from tfray.tokens.splitting import flat, knows_words
from tfray.tokens.tokenizer import LABEL_PREFIX, TOKENIZER, Tokenizer

REMEDY = "give another, or leave tokens.tokenizer out"
MATCHING = ("single_word", "lstrip", "rstrip", "normalized")  # how an added token is found in a text
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def adopt_tokenizer(path: str, labels: list[str]) -> Tokenizer:
    """Return the tokenizer in a tokenizer.json, a SentencePiece .model or a folder with one, for tfray's use."""
    path = find_tokenizer(path)
    try:
        data = storage.read_bytes(path)
        if storage.split_options(path)[0].endswith(".model"):
            text = from_sentencepiece(data, path).to_str()
        else:
            text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"tokens.tokenizer={path!r} cannot be read: {error}; {REMEDY}") from error
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"tokens.tokenizer={path!r} is not a readable tokenizer.json: {error}; {REMEDY}") from error
    return Tokenizer.from_json(json.dumps(renumbered(library, json.loads(text), labels, path)), path)


def find_tokenizer(path: str) -> str:
    """Return the file that a path or folder stands for; a tokenizer.json comes before a .model."""
    if not storage.exists(path):
        raise InputError(f"tokens.tokenizer={path!r} does not exist; give a {TOKENIZER}, a .model or a folder")
    fs, inner = storage.filesystem(path)
    if fs.get_file_info(inner).is_file:
        return path
    names = {storage.base_name(file): file for file in storage.list_files(path)}
    models = [name for name in names if name.endswith(".model")]
    if TOKENIZER not in names and len(models) != 1:
        several = f"{len(models)} .model files ({', '.join(models)}); name one"
        found = several if models else f"no .model; {REMEDY}"
        raise InputError(f"tokens.tokenizer={path!r} holds no {TOKENIZER} and {found}")
    return names.get(TOKENIZER) or names[models[0]]


def renumbered(
    library: tokenizers.Tokenizer, description: dict[str, Any], labels: list[str], name: str
) -> dict[str, Any]:
    """Return a tokenizer.json's description with tfray's ids."""
    if not isinstance(library.model, (tokenizers.models.BPE, tokenizers.models.Unigram)):
        raise InputError(
            f"tokens.tokenizer={name!r} is a {type(library.model).__name__} tokenizer, which has an unknown token for "
            "what it cannot spell; tfray adopts BPE and unigram ones, or trains one without tokens.tokenizer"
        )
    old, model = old_tokens(library), description["model"]
    needed = ["<unk>"] if is_unigram(model) and model.get("unk_id") is None and "<unk>" not in old else []
    own_labels = [f"{LABEL_PREFIX}{label}>" for label in labels]
    tokens = [*SPECIAL_TOKENS, *old, *needed, *missing_bytes(description, set(old), name), *own_labels]
    ids = {token: index for index, token in enumerate(tokens)}
    added = {token["content"]: token for token in description["added_tokens"] if token["content"] in ids}
    for token in (*SPECIAL_TOKENS, *needed, *own_labels):
        added[token] = {"content": token, "special": True} | dict.fromkeys(MATCHING, False)
    special = [token for token, how in added.items() if how["special"]]
    renumber_model(model, ids)
    description["decoder"] = description["decoder"] or default_decoder(description)
    if not is_byte_level(description):
        model["byte_fallback"] = True
        added = {token: how for token, how in added.items() if token not in BYTE_TOKENS}
        description["decoder"] = decoder_with_bytes(description["decoder"])
    guard(library, description, special)
    description["added_tokens"] = [added[token] | {"id": ids[token]} for token in tokens if token in added]
    description |= {"post_processor": None, "truncation": None, "padding": None}
    return description


def old_tokens(library: tokenizers.Tokenizer) -> list[str]:
    """Return a tokenizer's tokens by their old ids, without special ones, and labels of the task that it was for."""
    vocabulary = library.get_vocab(with_added_tokens=True)
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    return [token for token in ordered if token not in SPECIAL_TOKENS and not token.startswith(LABEL_PREFIX)]


def renumber_model(model: dict[str, Any], ids: dict[str, int]) -> None:
    """Give a model its tokens' new ids, in their order; what a unigram model has no score for gets the lowest."""
    if not is_unigram(model):
        model["vocab"] = ids
        return
    scores = dict(map(tuple, model["vocab"]))
    lowest = min(scores.values(), default=0.0)
    unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else "<unk>"
    model["vocab"] = [[token, scores.get(token, lowest)] for token in ids]
    model["unk_id"] = ids[unknown]


def is_unigram(model: dict[str, Any]) -> bool:
    return isinstance(model["vocab"], list)


def is_byte_level(description: dict[str, Any]) -> bool:
    parts = [part for name in ("normalizer", "pre_tokenizer") for part in flat(description[name])]
    return any(part["type"] == "ByteLevel" for part in parts)


def missing_bytes(description: dict[str, Any], tokens: set[str], name: str) -> list[str]:
    """Return the tokens of single bytes that the vocabulary lacks; raises InputError where they would not help."""
    model = description["model"]
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if is_byte_level(description) else BYTE_TOKENS
    if prefix or suffix:
        forms = {before + byte + after for byte in alphabet for before in ("", prefix) for after in ("", suffix)}
        if not is_byte_level(description) or not forms <= tokens:
            raise InputError(
                f"tokens.tokenizer={name!r} marks parts of words ({prefix or suffix!r}) and cannot spell every text; "
                "use a byte-level or SentencePiece tokenizer, or train one without tokens.tokenizer"
            )
    return [byte for byte in alphabet if byte not in tokens]


def default_decoder(description: dict[str, Any]) -> dict[str, Any] | None:
    """Return the decoder that undoes the pre-tokenizer, for a tokenizer that was made without one."""
    if is_byte_level(description):
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return next((part for part in flat(description["pre_tokenizer"]) if part["type"] == "Metaspace"), None)


def decoder_with_bytes(decoder: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the decoder with one before it that turns byte tokens into text."""
    parts = list(flat(decoder))
    if any(part["type"] == "ByteFallback" for part in parts):
        return decoder
    return {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, *parts]}


def guard(library: tokenizers.Tokenizer, description: dict[str, Any], special: list[str]) -> None:
    """Make the pre-tokenizer cut what a text spells like a special token after its first character.

    Without it the model would give the token where its vocabulary is all that it looks at.
    """
    model = description["model"]
    if not (is_unigram(model) or model.get("ignore_merges")):
        merges = ("".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1) for merge in model["merges"])
        special = sorted(set(special) & set(merges))
    if knows_words(library):  # cuts a letter from a mark that follows it
        special = [token for token in special if not re.search(r"[A-Za-z0-9][>|\])}]", token)]
    special = [token for token in special if len(token) > 1]
    firsts: dict[str, list[str]] = {}
    if not is_byte_level(description) and (is_unigram(model) or model.get("ignore_merges")):
        firsts["<"] = ["0x[0-9A-F]{2}>"]  # "<0x41>" in a text is six characters
    for token in special:
        firsts.setdefault(token[0], []).append(re.escape(token[1:]))
    if not firsts:
        return
    pattern = "|".join(f"{re.escape(first)}(?={'|'.join(rests)})" for first, rests in sorted(firsts.items()))
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    parts = list(flat(description["pre_tokenizer"]))
    if any(part["type"] == "Metaspace" for part in parts):
        place = 1 + next(index for index, part in enumerate(parts) if part["type"] == "Metaspace")
    else:
        place = 0
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*parts[:place], split, *parts[place:]]}
