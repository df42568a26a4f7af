"""Texts are cut where sentences end, and nothing of them is lost."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfray.inference.sentences import join_sentences, split_sentences


@pytest.mark.parametrize(
    ("text", "language", "count"),
    [
        ("Mr. Smith went to Washington, D.C. yesterday. He left.", "en", 2),
        ("It was 3.5 km long. J. R. Tolkien wrote it, e.g. in 1937.", None, 2),
        ('He said: "Stop!" Then he went... And that was it.', None, 3),
        ("Am 3. Mai kam er, d.h. zu spät. Und dann?", "de", 2),
        ("There were 3. Then 4 came.", "en", 2),
        ("In Washington, D.C. He left. Plan B. Then we go, said J. R. R. Tolkien.", "en", 3),
        ("Option b. Then we go.", "en", 2),
        ("今天天气很好。我们去公园吧！“好的。”他说。", None, 4),
        ("他说：“好。”", None, 1),
        ("真的吗？！「はい。」", None, 2),
        ("मैं घर जा रहा हूँ। वह आ गया।", None, 2),
        ("A heading without a mark\n\nand a line that goes on\nhere", None, 2),
        ("No mark at all", None, 1),
        ("?!", None, 1),
    ],
)
def test_sentences_end_where_people_end_them(text: str, language: str, count: int) -> None:
    assert len(split_sentences(text, language)) == count


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Ich mag Tiere, z. B. Hunde und Katzen.", "de"),
        ("Ich mag Tiere, z.\u00a0B. Hunde und z.B. Katzen.", "de"),
        ("Das ist i. d. R. Montag, u. a. Berlin.", "de"),
        ("Z. B. Hunde, d. h. Tiere, z. T. Katzen, u. U. Vögel, o. ä. Dinge u. Menschen.", "de"),
        ("Im Jahr 44 v. Chr. Rom, v.Chr. Gallien; S. 5 und Nr. 3 am 3. Mai.", "de"),
        ("P. ej. Madrid, p. ej. el año 44 a. C. Roma, d.C. Cartago, p. 5.", "es"),
        ("C.-à-d. Paris, p. ex. Lyon, en 44 av. J.-C. Rome, p. 5.", "fr"),
        ("Nel 44 a.C. Roma, d. C. Cartagine, p. es. Milano, p. 5.", "it"),
        ("P. ex. Lisboa, em 44 a. C. Roma, p. 5.", "pt"),
        ("Bijv. Amsterdam, o.a. Rotterdam, d.w.z. Holland, m. a. w. Nederland.", "nl"),
        ("Byli m.in. Polacy, np. Jan, tj. Kowalski.", "pl"),
        ("Это т. е. Москва, т.е. Россия и т. п. Города, см. Рис. 5.", "ru"),
    ],
)
def test_an_abbreviation_ends_no_sentence_with_or_without_spaces(text: str, language: str) -> None:
    assert split_sentences(text, None) == split_sentences(text, language) == [text]


@given(
    text=st.text(st.sampled_from("aB1_ .!?…。！\"'”)\n\t\u3000é"), max_size=60),
    language=st.sampled_from([None, "en", "de", "xx"]),
)
def test_nothing_but_white_space_is_lost(text: str, language: str | None) -> None:
    sentences = split_sentences(text, language)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentences) or not text


def test_targets_are_joined_as_their_script_wants() -> None:
    assert join_sentences(["One.", "Two.", "", "Three."]) == "One. Two. Three."
    assert join_sentences(["一。", "二。"]) == "一。二。"
    assert join_sentences([]) == ""


@pytest.mark.parametrize(
    "text",
    ["." * 100_000, ".” " * 50_000, "।" * 100_000, "Mr. " * 50_000, "\n" * 100_000, "。" * 100_000, "。”" * 50_000],
)
def test_time_grows_with_a_text_and_not_with_its_square(text: str) -> None:
    began = time.process_time()
    split_sentences(text, "en")
    assert time.process_time() - began < 1
