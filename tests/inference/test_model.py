"""A model in process: five lines, the same engine as the job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tfray
from tfray.checkpoint.folder import save_model_folder
from tfray.config import ModelConfig, TextConfig, TokensConfig
from tfray.errors import InputError
from tfray.inference.search import chrf_utility
from tfray.model.architecture import resolve
from tfray.model.transformer import Transformer
from tfray.tokens.tokenizer import train_tokenizer

WORDS = "one two three four five six seven eight nine ten"
TEXTS = ["one two", "ten nine eight seven", "three", "five five five five"]


def make_model(
    folder: Path, labels: list[str], seed: int = 0, words: str = WORDS, text: TextConfig | None = None
) -> str:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer([words] * 3, TokensConfig(vocab_size=320), labels)
    sizes = ModelConfig(preset="tiny", d_model=32, num_heads=2, d_ff=64)
    model = Transformer(resolve(sizes, tokenizer.vocab_size, 32))
    task = "classification" if labels else "translation"
    save_model_folder(str(folder), model.state_dict(), model.architecture, tokenizer.json, task, {}, text)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_model(tmp_path_factory.mktemp("model"), [])


@pytest.fixture(scope="module")
def model(folder):
    return tfray.load(folder, threads=1, precision="fp32", max_length_extra=4, max_length_ratio=1.0)


def test_importing_tfray_imports_neither_torch_nor_ray():
    program = "import sys, tfray; print(any(name in sys.modules for name in ('torch', 'ray', 'pyarrow')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = tfray.lode


def test_texts_become_texts_with_their_scores_whatever_stands_beside_them(model):
    found = model.generate(TEXTS, n_best=3)
    for text, result in zip(TEXTS, found, strict=True):
        assert result.error is None and len(result.n_best) == 3
        assert result.text == result.n_best[0].text and result.score == result.n_best[0].score
        assert model.generate([text], n_best=3)[0] == result


def test_a_bad_text_gets_an_error_and_the_others_their_targets(model):
    good = model.generate(TEXTS)
    mixed = model.generate([TEXTS[0], "", TEXTS[1], "one " * 300, TEXTS[2], TEXTS[3]])
    assert [mixed[number] for number in (0, 2, 4, 5)] == good
    assert mixed[1].error is not None and mixed[1].text is None
    assert mixed[3].error is not None and mixed[3].error.startswith("too_long")
    cut = model.generate(["one " * 300], long_sources="truncate")[0]
    assert cut.truncated and cut.text is not None


def test_prefixes_phrases_and_alignments_are_asked_for_by_text(model):
    found = model.generate(TEXTS, prefixes=["two"] * 4, must_not=[["two two"]] * 4, alignments=True)
    for text, result in zip(TEXTS, found, strict=True):
        assert result.text is not None and result.text.startswith("two") and "two two" not in result.text
        look = result.n_best[0].alignment
        assert look is not None and look.shape[1] == len(model.encode([text])[0])
        torch.testing.assert_close(look.sum(1), torch.ones(len(look)))
    with_phrase = model.generate(TEXTS, must=[["nine"]] * 4, beam_size=6)
    assert all("nine" in (result.text or "") for result in with_phrase)


def test_the_score_of_a_found_target_is_its_search_score(model):
    beginning, compared = "one two three", 0
    length = len(model.target_ids(beginning)) + 1
    for text in TEXTS:
        [result] = model.generate([text], prefixes=[beginning], max_length=length, beam_size=40, n_best=40)
        for target in result.n_best:
            tokens = model.score([(text, target.text)])[0].token_log_probs  # with an end
            if len(tokens) == length + (not target.is_finished):  # the text has just the tokens that were found
                assert sum(tokens[:length]) == pytest.approx(target.score, abs=1e-4)
                compared += 1
    assert compared > 4


def test_what_a_text_is_without_control_characters_decides_whether_it_is_empty(model):
    assert model.generate(["\x00 ", "one"])[0].error == "empty_source: the source has no visible character"
    assert model.target_ids(" nine\x00  ten ") == model.target_ids("nine ten")
    with pytest.raises(InputError, match="text number 1: empty_text"):
        model.embed(["one", "\x00"])


def test_least_risk_is_found_by_chrf(model):
    found = model.generate(TEXTS, search="mbr", samples=6, n_best=2, seed=3)
    samples = model.generate(TEXTS, search="sample", samples=6, seed=3)
    utility = chrf_utility(model.tokenizer.decode_batch)
    for result, drawn in zip(found, samples, strict=True):
        ids = [model.target_ids(target.text) for target in drawn.n_best]
        assert result.text in {target.text for target in drawn.n_best}
        assert all(0 <= utility(one, other) <= 100 for one in ids for other in ids)
    one, two = (model.target_ids(text) for text in ("one two three", "ten"))
    assert utility(one, one) == pytest.approx(100) and utility(one, two) < 50


def test_embeddings_and_scores_refuse_what_they_cannot_read(model):
    assert model.embed(TEXTS).shape == (4, 32)
    torch.testing.assert_close(model.embed(TEXTS)[2], model.embed([TEXTS[2]])[0])
    with pytest.raises(InputError, match="text number 1 has"):
        model.embed(["one", "one " * 300])
    with pytest.raises(InputError, match="has no labels"):
        model.classify(TEXTS)


def test_classification_gives_every_label_its_probability(tmp_path):
    model = tfray.load(make_model(tmp_path / "model", ["bad", "good", "so so"]), threads=1)
    for row in model.classify(TEXTS):
        assert set(row) == {"bad", "good", "so so"}
        assert sum(row.values()) == pytest.approx(1, abs=1e-5)
        assert list(row.values()) == sorted(row.values(), reverse=True)


def test_several_folders_decide_together_if_they_share_a_tokenizer(folder, tmp_path):
    second = make_model(tmp_path / "second", [], seed=1)
    both = tfray.load([folder, second], threads=1, precision="fp32", beam_size=1)
    one = tfray.load(folder, threads=1, precision="fp32", beam_size=1)
    assert len(both.networks) == 2
    twice = tfray.load([folder, folder], threads=1, precision="fp32", beam_size=1)
    assert [r.text for r in twice.generate(TEXTS)] == [r.text for r in one.generate(TEXTS)]
    third = make_model(tmp_path / "third", [], text=TextConfig(unicode="nfkc"))
    with pytest.raises(InputError, match="normalize text differently"):
        tfray.load([folder, third])
    other = make_model(tmp_path / "other", [], words="eleven twelve thirteen fourteen")
    with pytest.raises(InputError, match="different tokenizers"):
        tfray.load([folder, other])


def test_the_lines_of_the_readme_run(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    exec(code.replace("out/mine/training/best", folder), {})
    prediction, log_prob, shape = capsys.readouterr().out.splitlines()
    assert prediction and float(log_prob) < 0 and shape == "torch.Size([1, 32])"
