"""The model folder: everything that inference needs, and nothing that runs code when loaded.

torch is imported where weights are read or written alone: it takes seconds, and who only reads text needs none.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tfray import storage
from tfray.config import TextConfig
from tfray.errors import InputError
from tfray.model.architecture import Architecture
from tfray.tokens.tokenizer import TOKENIZER, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from tfray.model.transformer import Transformer

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
COPY = "copy the model folder again, whole"
BYTES_PER_WEIGHT = 4  # fp32
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ModelFolder:
    """A trained model as it is loaded."""

    folder: str
    config: dict
    tokenizer_json: str

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_json(self.tokenizer_json, storage.join(self.folder, TOKENIZER))

    @property
    def architecture(self) -> Architecture:
        return Architecture(**self.config["architecture"])

    @property
    def task(self) -> str:
        return self.config["task"]

    @property
    def text(self) -> TextConfig:
        """How text was normalized in training, and is to be in prediction."""
        return TextConfig(**self.config.get("text", {}))

    @property
    def fingerprint(self) -> str:
        """Hash of everything that predictions follow from."""
        weights = storage.file_fingerprint(storage.join(self.folder, WEIGHTS))
        text = asdict(self.text)
        return storage.fingerprint([self.config["architecture"], self.task, text, self.tokenizer_json, weights])

    @property
    def parameters(self) -> int:
        """About how many numbers the network has, by the size of their file."""
        return storage.file_size(storage.join(self.folder, WEIGHTS)) // BYTES_PER_WEIGHT

    def read_weights(self) -> bytes:
        """Return the file of weights as it is, for those who load the model elsewhere."""
        return storage.read_bytes(storage.join(self.folder, WEIGHTS))

    def load_model(self, data: bytes | None = None) -> Transformer:
        """Return the network with its weights (default: read from its file), in evaluation mode, on the CPU in fp32."""
        import safetensors.torch

        from tfray.model.transformer import Transformer

        model = Transformer(self.architecture)
        path = storage.join(self.folder, WEIGHTS)
        try:
            weights = safetensors.torch.load(self.read_weights() if data is None else data)
            model.load_state_dict(weights)
        except (OSError, safetensors.SafetensorError, RuntimeError) as error:
            raise InputError(
                f"{path!r} is missing, damaged or of another shape than {CONFIG} says: {one_line(error)}; {COPY}"
            ) from error
        if broken := next((name for name, weight in weights.items() if not weight.isfinite().all()), None):
            raise InputError(
                f"{path!r} holds weights that are no finite numbers ({broken}): training has diverged; "
                "train again with a smaller learning_rate, or use an earlier model"
            )
        return model.eval()


def save_model_folder(
    folder: str,
    weights: dict[str, Tensor],
    architecture: Architecture,
    tokenizer_json: str,
    task: str,
    made: dict,
    text: TextConfig | None = None,
) -> None:
    """Write a model folder; each file appears whole, the weights last."""
    import safetensors.torch

    config = {
        "format_version": FORMAT_VERSION,
        "task": task,
        "text": asdict(text or TextConfig()),
        "architecture": asdict(architecture),
        "training": made,
    }
    storage.publish_text(storage.join(folder, TOKENIZER), tokenizer_json)
    storage.publish_json(storage.join(folder, CONFIG), config)
    storage.publish_text(storage.join(folder, CARD), model_card(config))
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    storage.publish_bytes(storage.join(folder, WEIGHTS), safetensors.torch.save(tensors))


def open_model_folder(folder: str) -> ModelFolder:
    """Return a model folder; raises InputError where a file is missing or damaged."""
    folder = storage.absolute(folder)
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not storage.exists(storage.join(folder, name)):
            raise InputError(
                f"model_folder={folder!r} has no {name}; a model folder, such as OUT/best of `tfray train`, "
                f"holds {CONFIG}, {WEIGHTS} and {TOKENIZER}"
            )
    path = storage.join(folder, CONFIG)
    try:
        config = storage.read_json(path)
        check_version(path, config)
        Architecture(**config["architecture"])
        TextConfig(**config.get("text", {}))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path!r} is damaged: {one_line(error)}; {COPY}") from error
    model_folder = ModelFolder(folder, config, storage.read_text(storage.join(folder, TOKENIZER)))
    check_weights(storage.join(folder, WEIGHTS))
    vocab_size = model_folder.tokenizer.vocab_size
    if vocab_size != model_folder.architecture.vocab_size:
        raise InputError(
            f"model_folder={folder!r}: {TOKENIZER} has {vocab_size} entries, {CONFIG} says "
            f"{model_folder.architecture.vocab_size}: they belong to different models; {COPY}"
        )
    return model_folder


def check_version(path: str, config: dict) -> None:
    """Raise InputError where a model folder was written by a version of tfray with another format."""
    version = config["format_version"]
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path!r} has format_version={version!r}, this tfray reads {FORMAT_VERSION}; use the tfray that wrote it"
        )


def check_weights(path: str) -> None:
    """Raise InputError unless a safetensors file's header fits its size."""
    size = storage.file_size(path)
    with storage.open_patiently(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length < size else b""
    try:
        end = max(entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        end = -1
    if end < 0 or 8 + length + end != size:
        raise InputError(f"{path!r} is damaged: its {size} bytes are not what its header says; {COPY}")


def one_line(error: Exception) -> str:
    """Return an error's text in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def model_card(config: dict) -> str:
    """Return a short model card in Markdown."""
    architecture, made = config["architecture"], config["training"]
    lines = [f"- {name}: {value}" for name, value in made.items()]
    return "\n".join(
        [
            "# A Transformer trained by tfray",
            "",
            f"An encoder-decoder for {config['task']}: {architecture['encoder_layers']} + "
            f"{architecture['decoder_layers']} layers, d_model {architecture['d_model']}, vocabulary "
            f"{architecture['vocab_size']}.",
            "",
            *lines,
            "",
            "Use it: `tfray predict --model_folder THIS --input FILES --out FOLDER`.",
            "",
        ]
    )
