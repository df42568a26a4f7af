"""A model in process: five lines, the same engine as the job."""

from __future__ import annotations

import logging
import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from sacrebleu.metrics.chrf import CHRF

import tfray
from tfray.checkpoint.folder import save_model_folder
from tfray.config import GenerationConfig, ModelConfig, TextConfig, TokensConfig
from tfray.errors import InputError
from tfray.generation import scoring
from tfray.generation.generate import generate
from tfray.generation.pieces import join, split_source
from tfray.generation.rows import Hypothesis, Output, Request
from tfray.inference.search import chrf_utility, search_targets
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


def test_what_is_no_text_gets_an_error_of_its_own_and_the_others_what_they_ask_for(model):
    texts, kinds = [TEXTS[0], "\ud800", 7, TEXTS[1], TEXTS[2]], [None, "bad_utf8", "not_text", "bad_utf8", None]
    found = model.generate(texts, prefixes=["two", "two", "two", "\ud800", "two"])
    assert [result.error and result.error.partition(":")[0] for result in found] == kinds
    assert [found[0], found[4]] == model.generate([TEXTS[0], TEXTS[2]], prefixes=["two", "two"])
    assert [error and error.partition(":")[0] for error in model.errors(texts)] == [*kinds[:3], None, None]
    vectors = model.embed(texts)
    assert vectors[[1, 2]].isnan().all() and torch.equal(vectors[[0, 3, 4]], model.embed(TEXTS[:3]))


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
    assert model.errors(["one", "\x00"]) == [None, "empty_text: the text has no visible character"]


def test_least_risk_is_the_highest_mean_chrf_to_all_samples(model):
    found = model.generate(TEXTS, search="mbr", samples=6, n_best=6, seed=3)
    requests = [Request(source, number=row) for row, source in enumerate(model.encode(TEXTS))]
    config = replace(model.config, search="sample", samples=6, seed=3)
    for result, drawn in zip(found, generate(model.networks, requests, config), strict=True):
        texts = model.tokenizer.decode_batch([hypothesis.ids for hypothesis in drawn.hypotheses])
        means = {one: sum(CHRF().sentence_score(one, [other]).score for other in texts) / 6 for one in texts}
        assert len(means) > 1
        ranked = [means[target.text] for target in result.n_best]
        assert ranked == pytest.approx(sorted(means.values(), reverse=True))


@pytest.mark.parametrize("texts", [["one two three", "ten", "one two", ""], ["a b", "", " "], ["狗跑。", "狗跑得快。"]])
def test_chrf_is_that_of_sacrebleu(texts):
    table = chrf_utility(lambda batch: [texts[place] for (place,) in batch])([[place] for place in range(len(texts))])
    for one, line in zip(texts, table, strict=True):
        assert line == pytest.approx([CHRF().sentence_score(one, [other]).score for other in texts])


def test_of_samples_n_best_come_back_the_best_first_and_none_twice(model):
    for result in model.generate(TEXTS, search="sample", samples=8, n_best=3, length_penalty=0.0, top_k=2, seed=5):
        scores = [target.score for target in result.n_best if target.is_finished]
        assert 1 <= len(result.n_best) <= 3 and scores == sorted(scores, reverse=True)
    for result in model.generate(TEXTS, search="sample", samples=8, n_best=8, top_k=1):
        assert len(result.n_best) == 1


def test_pieces_that_differ_but_join_to_the_same_target_give_it_once(monkeypatch):
    one, other = Hypothesis([], -1.0, True), Hypothesis([3], -2.0, True)
    joined = Output(join([[one, other], [other, one]]))
    monkeypatch.setattr("tfray.inference.search.generate", lambda *_: [joined])
    found = search_targets([], None, [[3, 2]], GenerationConfig(n_best=2, long_sources="split"))
    assert [hypothesis.ids for hypothesis in found[0].hypotheses] == [[3]]


def test_texts_that_cannot_be_used_get_none_or_nan_and_the_others_what_they_get_alone(model, caplog):
    texts = ["one", "", "two three", "one " * 300]
    found = model.embed(texts)
    assert torch.equal(found[[0, 2]], model.embed(["one", "two three"]))
    assert found[[1, 3]].isnan().all()
    assert "2 of 4 texts cannot be used; number 1: empty_text" in caplog.text
    assert [error and error.partition(":")[0] for error in model.errors(texts)] == [
        None,
        "empty_text",
        None,
        "too_long",
    ]
    pairs = [("one", "two"), ("", "two"), ("one", ""), ("one", "two " * 300), ("three", "four")]
    scores = model.score(pairs)
    assert [score is None for score in scores] == [False, True, True, True, False]
    assert [scores[0], scores[4]] == model.score([pairs[0], pairs[4]])
    assert model.embed(["", ""]).isnan().all() and model.score([("", "one")]) == [None]
    assert model.embed([]).shape == (0, 32) and model.score([]) == []
    with pytest.raises(InputError, match=r"has no labels.*use generate"):
        model.classify(TEXTS)


def test_long_texts_are_cut_where_that_is_asked_for(folder):
    cutting = tfray.load(folder, threads=1, precision="fp32", long_sources="truncate")
    long = "one " * 300
    [ids] = cutting.encode([long])
    expected = scoring.embed(cutting.networks[0], [[*ids[: cutting.longest - 1], 2]])
    assert torch.equal(cutting.embed([long]), expected)
    assert cutting.score([(long, "one")]) == [None], "a score is of the whole"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(texts="one two"), r"^texts='one two' must be a list; write \['one two'\]"),
        (dict(prefixes="two"), r"^prefixes='two' must be a list"),
        (dict(prefixes=["two"]), r"^len\(prefixes\)=1 must be 4: one for each text"),
        (dict(must="nine"), r"^must='nine' must be a list"),
        (dict(must=["nine"] * 4), r"^must\[0\]='nine' must be a list; write \['nine'\]"),
        (dict(must_not=[["one"], [], [], "two"]), r"^must_not\[3\]='two' must be a list"),
        (dict(must_not=[["one"]] * 5), r"^len\(must_not\)=5 must be 4"),
        (dict(precision="bf16"), r"^precision='bf16' is chosen where a model is loaded.*with 'fp32'"),
        (dict(suppress_tokens=[5000]), r"^generation.suppress_tokens=\[5000\] must be ids"),
    ],
)
def test_misleading_arguments_are_refused_by_name(arguments, message, model):
    with pytest.raises(InputError, match=message):
        model.generate(**{"texts": TEXTS, **arguments})


def test_alignments_are_to_the_source_that_the_search_saw(model):
    long = " ".join(WORDS.split() * 6)
    length = len(model.encode([long])[0])
    assert length > model.longest
    [cut] = model.generate([long], long_sources="truncate", alignments=True)
    assert cut.truncated
    [ids] = model.encode([long])
    seen = [*ids[: model.longest - 1], 2]
    [whole] = generate(model.networks, [seen], replace(model.config, n_best=1))
    labels = [*whole.best.ids, *[2] * whole.best.is_finished]
    assert torch.equal(cut.n_best[0].alignment, scoring.align(model.networks[0], [seen], [labels])[0])
    [split] = model.generate([long], long_sources="split", alignments=True)
    pieces = split_source(ids, model.longest)
    look = split.n_best[0].alignment
    assert look.shape[1] == sum(map(len, pieces))
    torch.testing.assert_close(look.sum(1), torch.ones(len(look)))
    start = row = 0
    for piece, output in zip(pieces, generate(model.networks, pieces, model.config), strict=True):
        labels = [*output.best.ids, *[2] * output.best.is_finished]
        block = look[row : row + len(labels), start : start + len(piece)]
        torch.testing.assert_close(block, scoring.align(model.networks[0], [piece], [labels])[0])
        start, row = start + len(piece), row + len(labels)
    assert row == len(look)


def test_classification_gives_every_label_its_probability(tmp_path):
    model = tfray.load(make_model(tmp_path / "model", ["bad", "good", "so so"]), threads=1)
    assert model.classify(["one", " "])[1] is None
    for row in model.classify(TEXTS):
        assert set(row) == {"bad", "good", "so so"}
        assert sum(row.values()) == pytest.approx(1, abs=1e-5)
        assert list(row.values()) == sorted(row.values(), reverse=True)


def test_a_model_of_labels_neither_writes_nor_scores_text(label_model):
    model = tfray.load(label_model, threads=1)
    for ask in (lambda: model.generate(TEXTS), lambda: model.score([("one", "two")])):
        with pytest.raises(InputError, match=r"trained for labels.*use classify or embed"):
            ask()
    assert model.embed(TEXTS).shape == (4, 32)


def test_several_folders_decide_together_if_they_share_a_tokenizer(folder, tmp_path):
    second = make_model(tmp_path / "second", [], seed=1)
    both = tfray.load([folder, second], threads=1, precision="fp32", beam_size=1)
    one = tfray.load(folder, threads=1, precision="fp32", beam_size=1)
    assert len(both.networks) == 2
    twice = tfray.load([folder, folder], threads=1, precision="fp32", beam_size=1)
    assert [r.text for r in twice.generate(TEXTS)] == [r.text for r in one.generate(TEXTS)]
    third = make_model(tmp_path / "third", [], text=TextConfig(unicode="nfkc"))
    with pytest.raises(InputError, match=r"normalize text differently.*load them apart"):
        tfray.load([folder, third])
    other = make_model(tmp_path / "other", [], words="eleven twelve thirteen fourteen")
    with pytest.raises(InputError, match=r"different tokenizers.*load them apart"):
        tfray.load([folder, other])


def test_the_lines_of_the_readme_run(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    exec(code.replace("out/mine/training/best", folder), {})
    prediction, log_prob, shape = capsys.readouterr().out.splitlines()
    assert prediction and float(log_prob) < 0 and shape == "torch.Size([1, 32])"


@pytest.mark.parametrize(
    "column",
    [
        lambda texts: pd.Series(texts, index=[3, 1, 0, 2]),
        lambda texts: pd.Series([*texts, "six"])[lambda own: own != "six"].iloc[::-1].iloc[::-1],
        lambda texts: np.array(texts),
        lambda texts: pa.array(texts),
        lambda texts: pa.chunked_array([texts[:1], texts[1:]]),
        lambda texts: (text for text in texts),
        tuple,
    ],
)
def test_texts_of_any_kind_of_column_are_taken_by_their_places(model, column):
    wanted = model.generate(TEXTS)
    assert model.generate(column(TEXTS)) == wanted
    assert torch.equal(model.embed(column(TEXTS)), model.embed(TEXTS))
    prefixed = model.generate(TEXTS, prefixes=TEXTS, must_not=[["one"]] * 4)
    assert model.generate(column(TEXTS), prefixes=column(TEXTS), must_not=[["one"]] * 4) == prefixed
    assert model.errors(column(TEXTS)) == [None] * 4
    pairs = [(text, text) for text in TEXTS]
    assert model.score(pair for pair in pairs) == model.score(np.array(pairs)) == model.score(pairs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (b"one", r"texts='bytes' must be a list of texts"),
        ({"a": "one"}, r"texts='dict' must be a list"),
        ({"one", "two"}, r"texts='set' must be a list"),
        (7, r"texts='int' must be a list"),
        (pd.DataFrame({"text": TEXTS}), r"texts='DataFrame' must be a list of texts, or one column of a table"),
        (pa.table({"text": TEXTS}), r"texts='Table' must be a list"),
    ],
)
def test_what_is_no_list_of_texts_is_refused_everywhere(model, label_model, values, message):
    for task in (model.generate, model.embed, model.errors, tfray.load(label_model).classify):
        with pytest.raises(InputError, match=message):
            task(values)


def test_one_text_in_an_array_without_a_length_is_refused_and_not_read_by_its_letters(model):
    for task in (model.generate, model.embed, model.errors):
        with pytest.raises(InputError, match=r"^texts='one two' must be a list; write \['one two'\]"):
            task(np.array("one two"))
    with pytest.raises(InputError, match=r"^must\[0\]='two' must be a list"):
        model.generate(["one"], must=[np.array("two")])
    with pytest.raises(InputError, match=r"^pairs=3 must be a list"):
        model.score(np.array(3))


@pytest.mark.parametrize("pairs", [("ab", "cd"), [("a", "b", "c")], [("a", "b"), "cd"], [7]])
def test_what_is_no_pair_is_refused_by_its_number(model, pairs):
    with pytest.raises(InputError, match=r"pairs\[[01]\]=.* must be a pair \(source, target\)"):
        model.score(pairs)


def test_phrases_and_prefixes_may_be_missing_for_some_texts(model):
    found = model.generate(TEXTS[:2], prefixes=[None, "two"], must=[["three"], None], must_not=[None, ["ten"]])
    assert found[0] == model.generate(TEXTS[:1], must=[["three"]])[0]
    assert found[1] == model.generate(TEXTS[1:2], prefixes=["two"], must_not=[["ten"]])[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "greedy"}, "search='greedy' must be one of beam, sample, mbr"),
        ({"early_stopping": True}, "early_stopping=True must be one of exact, beam"),
        ({"beam_size": "4"}, "beam_size='4' must be a whole number"),
        ({"beam_size": 2.5}, "beam_size=2.5 must be a whole number"),
        ({"max_length_ratio": math.inf}, "max_length_ratio=inf must be a finite number"),
        ({"beams": 4}, "beams=4 is no option; those are search, beam_size"),
        ({"precision": "fp16"}, "precision='fp16' must be one of auto, bf16, fp32, int8"),
    ],
)
def test_an_option_that_cannot_be_is_refused_and_never_taken_for_another(folder, model, options, message):
    for call in (lambda: model.generate(TEXTS, **options), lambda: tfray.load(folder, **options)):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "gpu"}, "device='gpu' is not to be had here"),
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"model_folder": []}, "names no folder"),
    ],
)
def test_a_device_or_folder_that_is_not_there_is_named(folder, arguments, message):
    with pytest.raises(InputError, match=message):
        tfray.load(**{"model_folder": folder} | arguments)


def test_a_copy_of_a_model_made_by_pickle_does_the_same(folder, model):
    copied = pickle.loads(pickle.dumps(model))
    assert copied.generate(TEXTS) == model.generate(TEXTS)
    assert tfray.load(Path(folder), threads=1, precision="fp32").task == "translation"


def test_long_texts_are_no_error_where_they_are_split_and_cuts_are_told_of(folder, label_model, caplog):
    long = "one " * 300
    assert tfray.load(folder, threads=1, long_sources="split").errors([long]) == [None]
    assert "too_long" in tfray.load(label_model).errors([long])[0]
    with caplog.at_level(logging.WARNING):
        tfray.load(folder, threads=1, long_sources="truncate").embed([long, "one"])
    assert "1 of 2 texts were cut to 32 tokens" in caplog.text


def test_a_forked_process_uses_the_model_that_was_loaded_before(folder):
    """In a process of its own, since threads of other tests would be in the way."""
    program = (
        "import multiprocessing, sys, tfray\n"
        "model = tfray.load(sys.argv[1], threads=2, precision='fp32', max_length_extra=4)\n"
        "def answer(queue): queue.put([result.text for result in model.generate(['one two'] * 40)])\n"
        "wanted = [result.text for result in model.generate(['one two'] * 40)]\n"
        "context = multiprocessing.get_context('fork')\n"
        "queue = context.Queue()\n"
        "child = context.Process(target=answer, args=(queue,))\n"
        "child.start()\n"
        "print(queue.get(timeout=200) == wanted)\n"
        "child.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True", done.stderr
