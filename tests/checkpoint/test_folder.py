"""The model folder: complete, movable, checked when opened, and never unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tfray.checkpoint.folder import ModelFolder, open_model_folder, save_model_folder
from tfray.config import TextConfig, TokensConfig
from tfray.errors import InputError
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.tokenizer import Tokenizer, train_tokenizer

FILES = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
SOURCE, TARGET = torch.tensor([[3, 4, 5, 2], [7, 2, 0, 0]]), torch.tensor([[1, 9, 10], [1, 12, 0]])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["one two three", "two three four"], TokensConfig(vocab_size=300), labels=[])


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    torch.manual_seed(8)
    sizes = dict(d_model=16, num_heads=2, d_ff=24, encoder_layers=2, decoder_layers=1, max_length=50)
    options = dict(activation="swiglu", norm="rms", positions="rotary", dropout=0.3)
    return Transformer(Architecture(**sizes, **options, vocab_size=tokenizer.vocab_size)).eval()  # type: ignore[arg-type]


def save(folder: Path, model: Transformer, tokenizer: Tokenizer, **changed: Any) -> str:
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    arguments = dict(weights=weights, architecture=model.architecture, tokenizer_json=tokenizer.json)
    save_model_folder(str(folder), **{**arguments, **changed}, task="translation", made={"step": 7})  # type: ignore[arg-type]
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    return Path(save(tmp_path / "model", model, tokenizer))


def test_text_is_normalized_in_prediction_as_it_was_in_training(
    tmp_path: Path, model: Transformer, tokenizer: Tokenizer
) -> None:
    text = TextConfig(unicode="nfkc", whitespace=False)
    opened = open_model_folder(save(tmp_path / "model", model, tokenizer, text=text))
    assert opened.text == text
    assert opened.fingerprint != open_model_folder(save(tmp_path / "other", model, tokenizer)).fingerprint
    assert ModelFolder("", {}, "").text == TextConfig()  # as folders had it that do not say


@torch.no_grad()
def test_a_loaded_model_gives_identical_logits(folder: Path, model: Transformer, tokenizer: Tokenizer):
    opened = open_model_folder(str(folder))
    loaded = opened.load_model()
    assert torch.equal(loaded(SOURCE, TARGET), model(SOURCE, TARGET))
    assert not loaded.training
    assert opened.architecture == model.architecture and opened.task == "translation"
    assert opened.tokenizer.encode_batch(["two four"]) == tokenizer.encode_batch(["two four"])


def test_a_folder_can_be_moved(folder: Path, tmp_path: Path):
    before = open_model_folder(str(folder)).fingerprint
    shutil.move(folder, tmp_path / "elsewhere")
    moved = open_model_folder(str(tmp_path / "elsewhere"))
    assert moved.fingerprint == before
    moved.load_model()


def test_the_fingerprint_follows_from_weights_architecture_and_tokenizer(
    tmp_path: Path, folder: Path, model: Transformer, tokenizer: Tokenizer
):
    other_weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    other_architecture = replace(model.architecture, max_length=51)
    folders = [
        str(folder),
        save(tmp_path / "1", model, tokenizer, weights=other_weights),
        save(tmp_path / "2", model, tokenizer, architecture=other_architecture),
        save(tmp_path / "3", model, tokenizer, tokenizer_json=tokenizer.json + "\n"),
    ]
    assert len({open_model_folder(path).fingerprint for path in folders}) == len(folders)
    assert (
        open_model_folder(save(tmp_path / "4", model, tokenizer)).fingerprint
        == open_model_folder(folders[0]).fingerprint
    )


def test_a_folder_holds_safetensors_json_and_markdown_and_nothing_is_unpickled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("unpickled")

    for module, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
        monkeypatch.setattr(module, name, refuse)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    open_model_folder(str(folder)).load_model()
    header_size = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    json.loads((folder / "model.safetensors").read_bytes()[8 : 8 + header_size])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_refused_by_name(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"has no {name}"):
        open_model_folder(str(folder))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_truncated_file_is_refused_by_name(folder: Path, name: str, kept: float):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError, match=name):
        open_model_folder(str(folder))


@pytest.mark.parametrize("text", ["[]", "{}", '{"architecture": {"width": 3}}', '{"architecture": []}'])
def test_a_config_of_something_else_is_refused_by_name(folder: Path, text: str):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        open_model_folder(str(folder))


def test_weights_of_another_shape_are_refused_by_name_with_the_reason(
    tmp_path: Path, model: Transformer, tokenizer: Tokenizer
):
    wider = replace(model.architecture, d_ff=32)
    path = save(tmp_path / "model", model, tokenizer, architecture=wider)
    with pytest.raises(InputError, match=r"model\.safetensors.*size mismatch") as error:
        open_model_folder(path).load_model()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(
    tmp_path: Path, model: Transformer, tokenizer: Tokenizer, value: float
):
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    name = [*weights][3]
    weights[name].view(-1)[1] = value
    opened = open_model_folder(save(tmp_path / "model", model, tokenizer, weights=weights))
    with pytest.raises(InputError, match=rf"no finite numbers \({name}\): training has diverged"):
        opened.load_model()


def test_another_models_tokenizer_is_refused_by_name(tmp_path: Path, model: Transformer, tokenizer: Tokenizer):
    other = train_tokenizer(["one two three"], TokensConfig(vocab_size=300), labels=["yes", "no"])
    assert other.vocab_size != tokenizer.vocab_size
    path = save(tmp_path / "model", model, tokenizer, tokenizer_json=other.json)
    with pytest.raises(
        InputError, match=r"tokenizer\.json has \d+ entries, config\.json says \d+.*copy the model folder"
    ):
        open_model_folder(path)


def test_a_folder_that_is_not_there_is_refused_with_the_remedy(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere' has no config\.json; a model folder, such as"):
        open_model_folder(str(tmp_path / "nowhere"))


def test_the_card_tells_what_the_model_is(folder: Path):
    card = (folder / "README.md").read_text()
    assert "translation" in card and "2 + 1 layers" in card and "step: 7" in card


def test_a_folder_of_another_format_is_refused_by_both_versions(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format_version": 7}))
    with pytest.raises(InputError, match=r"config.json' has format_version=7, this tfray reads 1; use the tfray"):
        open_model_folder(str(folder))
