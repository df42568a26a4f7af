"""Scores agree with sacrebleu's own command and with F1 worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tfray.errors import InputError
from tfray.scores import MAX_LABELS, classification_scores, translation_scores

REFERENCES = [
    "Ein Hund läuft über die Wiese.",
    "Zwei Männer spielen im Park Schach.",
    "Eine Frau liest ein Buch, während sie wartet.",
]
PREDICTIONS = [
    "Ein Hund läuft über eine Wiese.",
    "Zwei Männer spielen Schach im Park.",
    "Eine Frau liest ein Buch, während sie wartet.",
]
CHINESE = ["一只狗跑过草地。", "两个男人在公园里下棋。"]
JAPANESE = ["犬が草原を走っています。", "二人の男性が公園でチェスをしている。"]


def sacrebleu_command(folder: Path, tokenize: str) -> list[dict]:
    """Return what the command `sacrebleu` prints for the German example."""
    for name, lines in (("references", REFERENCES), ("predictions", PREDICTIONS)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = [
        "references",
        "-i",
        "predictions",
        "-m",
        "bleu",
        "chrf",
        "-w",
        "6",
        "-tok",
        tokenize,
    ]
    command = [sys.executable, "-m", "sacrebleu", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=True, text=True)
    return json.loads(done.stdout)


def test_bleu_and_chrf_are_those_of_sacrebleus_command(tmp_path: Path) -> None:
    bleu, chrf = sacrebleu_command(tmp_path, "13a")
    scores = translation_scores(PREDICTIONS, REFERENCES)
    assert scores["bleu"] == pytest.approx(bleu["score"], abs=1e-6)
    assert scores["chrf"] == pytest.approx(chrf["score"], abs=1e-6)
    assert scores["bleu_signature"] == bleu["signature"]
    assert scores["chrf_signature"] == chrf["signature"]
    assert scores["rows"] == 3


def test_bleu_is_cased_and_13a_unless_the_script_has_no_spaces() -> None:
    signature = translation_scores(PREDICTIONS, REFERENCES)["bleu_signature"]
    assert "case:mixed" in signature
    assert "tok:13a" in signature
    lowered = [text.lower() for text in REFERENCES]
    assert translation_scores(lowered, REFERENCES)["bleu"] < 100


@pytest.mark.parametrize(("references", "tokenizer"), [(CHINESE, "zh"), (JAPANESE, "char")])
def test_scripts_without_spaces_are_split_and_the_signature_says_how(references: list[str], tokenizer: str) -> None:
    one_character_wrong = [text[:-2] + "X" + text[-1] for text in references]
    scores = translation_scores(one_character_wrong, references)
    assert f"tok:{tokenizer}" in scores["bleu_signature"]
    assert 50 < scores["bleu"] < 100


def test_a_chinese_word_in_german_text_does_not_change_the_tokenizer() -> None:
    assert "tok:13a" in translation_scores(["Das heißt 草地."], ["Das heißt 草地."])["bleu_signature"]


def test_perfect_translations_score_100_and_empty_ones_0() -> None:
    perfect = translation_scores(REFERENCES, REFERENCES)
    assert perfect["bleu"] == pytest.approx(100)
    assert perfect["chrf"] == pytest.approx(100)
    empty = translation_scores([""] * 3, REFERENCES)
    assert (empty["bleu"], empty["chrf"]) == (0, 0)


def test_f1_is_what_a_hand_computes() -> None:
    references = ["neg", "neg", "neg", "pos", "pos", "mixed"]
    predictions = ["neg", "neg", "pos", "pos", "", "pos"]
    scores = classification_scores(predictions, references)
    assert scores["accuracy"] == pytest.approx(3 / 6)
    neg, pos, mixed = (scores["per_label"][label] for label in ("neg", "pos", "mixed"))
    assert neg == {
        "precision": 1,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
        "support": 3,
    }
    assert pos == {
        "precision": pytest.approx(1 / 3),
        "recall": 0.5,
        "f1": pytest.approx(0.4),
        "support": 2,
    }
    assert mixed == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert scores["macro_f1"] == pytest.approx((0.8 + 0.4 + 0) / 3)


def test_labels_that_only_predictions_have_are_in_the_confusion_and_not_in_macro_f1() -> None:
    scores = classification_scores(["pos", "spam"], ["pos", "pos"])
    assert set(scores["per_label"]) == {"pos"}
    assert scores["macro_f1"] == scores["per_label"]["pos"]["f1"] == pytest.approx(2 / 3)
    assert scores["confusion"] == {"labels": ["pos", "spam"], "counts": [[1, 1], [0, 0]]}


def test_the_confusion_has_references_as_rows_and_counts_every_row_once() -> None:
    generator = np.random.default_rng(1)
    references, predictions = generator.choice(list("abcd"), size=(2, 200)).tolist()
    scores = classification_scores(predictions, references)
    counts = np.array(scores["confusion"]["counts"])
    supports = [scores["per_label"][label]["support"] for label in scores["confusion"]["labels"]]
    assert counts.sum(axis=1).tolist() == supports
    assert counts.sum() == scores["rows"] == 200
    assert scores["accuracy"] == pytest.approx(np.trace(counts) / 200)


@pytest.mark.parametrize("score", [classification_scores, translation_scores])
def test_scores_do_not_depend_on_the_order_of_rows_and_are_json(score) -> None:
    scores = score(PREDICTIONS, REFERENCES)
    assert score(PREDICTIONS[::-1], REFERENCES[::-1]) == scores
    assert json.loads(json.dumps(scores)) == scores


@pytest.mark.parametrize("score", [classification_scores, translation_scores])
def test_unequal_or_empty_lists_are_refused(score) -> None:
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        score([], [])


def test_texts_taken_for_labels_are_refused_with_the_remedy() -> None:
    texts = [f"sentence {number}" for number in range(MAX_LABELS + 1)]
    with pytest.raises(InputError, match="task=translation"):
        classification_scores(texts, texts)
