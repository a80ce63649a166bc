import re
import time
from html import unescape

import numpy as np
import pytest

from numprune.ui.texts import MOST_WORDS, Span, divergence_point, side_by_side, spans

PROMPT = "Once upon a time"


def words(count, seed, vocabulary=60):
    generator = np.random.default_rng(seed)
    return " ".join(f"w{word}" for word in generator.integers(0, vocabulary, count))


def cells(html):
    return re.findall(r"<article.*?</article>", html, re.DOTALL)


def plain(cell):
    """What a cell's text says, without the sign."""
    inside = re.search(r"<p[^>]*>(.*)</p>", cell, re.DOTALL).group(1)
    return unescape(re.sub(r"<span class='np-parting'.*?</span>|<[^>]+>", "", inside))


@pytest.mark.parametrize(
    ("dense", "other", "point"),
    [
        ("the dog ran", "the dog ran", None),
        ("the dog ran", "the dog", None),
        ("the dog ran", "the do", None),
        ("", "the dog", None),
        ("the dog ran", "the cat ran", 4),
        ("the dogs ran", "the dog ran", 4),
        ("the dog ran", "the dot ran", 4),
        ("dog", "cat", 0),
        ("one two", "one\ntwo", 3),
        ("one two", "one  two", 4),
        ("caf\ufffd", "café au lait", None),
        ("a\ufffd", "b", 0),
    ],
)
def test_texts_part_at_the_beginning_of_a_word(dense, other, point):
    assert divergence_point(dense, other) == point
    assert divergence_point(other, dense) == point


def test_spans_name_the_words_that_differ():
    assert spans("a big red dog ran", "a big blue dog ran off") == [
        Span("a big ", "same"),
        Span("blue", "different"),
        Span(" dog ran ", "same"),
        Span("off", "different"),
    ]


def test_a_text_that_is_still_growing_differs_nowhere():
    assert spans("a big red dog", "a big re") == [Span("a big re", "same")]
    assert spans("a big", "a big red dog") == [Span("a big red dog", "same")]
    assert spans("a", "") == []


@pytest.mark.parametrize("seed", range(20))
def test_joined_spans_are_the_text(seed):
    generator = np.random.default_rng(seed)
    letters = np.array(list("ab  \n\té"))
    dense, other = ("".join(generator.choice(letters, generator.integers(0, 60))) for _ in range(2))
    found = spans(dense, other)
    assert "".join(span.text for span in found) == other
    assert all(span.text for span in found)
    point = divergence_point(dense, other)
    same = next((len(span.text) for span in found if span.kind == "same"), 0)
    assert point is None or not point or same >= point


def test_words_far_behind_the_first_difference_are_all_marked():
    dense, other = "x " + words(MOST_WORDS + 50, 0), "y " + words(MOST_WORDS + 50, 0)
    found = spans(dense, other)
    assert "".join(span.text for span in found) == other
    assert len(found[-1].text.split()) == 51
    assert found[-1].kind == "different"


def test_one_cell_per_model_and_prompt_with_the_whole_text():
    prompts = [PROMPT, "The end"]
    columns = [("Dense", [f"{PROMPT} x y", "The end."]), ("30%", [f"{PROMPT} x z", "The end."])]
    found = cells(side_by_side(prompts, columns))
    assert [plain(cell) for cell in found] == [f"{PROMPT} x y", f"{PROMPT} x z", "The end.", "The end."]
    assert [re.search(r"aria-label='(.*?)'", cell).group(1) for cell in found] == [
        "Dense, prompt 1",
        "30%, prompt 1",
        "Dense, prompt 2",
        "30%, prompt 2",
    ]
    assert all(f"<span class='np-prompt'>{PROMPT}</span>" in cell for cell in found[:2])


def test_the_first_difference_is_marked_once_and_in_words():
    dense, other = f"{PROMPT} a red ball lay there", f"{PROMPT} a blue ball lay here"
    first, second = cells(side_by_side([PROMPT], [("Dense", [dense]), ("30%", [other])]))
    assert "np-parting" not in first
    assert "<mark>" not in first
    assert second.count("np-parting") == 1
    assert " a <span class='np-parting'" in second
    assert "aria-label='First difference" in second
    assert re.findall(r"<mark>(.*?)</mark>", second) == ["blue", "here"]
    assert "prompt 1" not in second


def test_a_difference_inside_the_prompts_last_word_is_marked_behind_the_prompt():
    _, second = cells(side_by_side(["a ti"], [("Dense", ["a time"]), ("30%", ["a tiger"])]))
    assert "<span class='np-prompt'>a ti</span><span class='np-parting'" in second
    assert plain(second) == "a tiger"


@pytest.mark.parametrize(
    ("dense", "other", "note"),
    [
        (" x", " x", "same as dense"),
        (" x y", " x", "same as dense so far"),
        ("", "", ""),
        (" x", " y", ""),
    ],
)
def test_a_cell_says_whether_it_is_the_same(dense, other, note):
    _, cell = cells(side_by_side([PROMPT], [("Dense", [PROMPT + dense]), ("30%", [PROMPT + other])]))
    assert (f"<span>{note}</span></header>" if note else "</h3></header>") in cell


def test_a_tokenizer_that_spells_the_prompt_in_another_way_loses_nothing():
    _, cell = cells(side_by_side(["Once  upon"], [("Dense", ["once upon x"]), ("30%", ["once upon y"])]))
    assert plain(cell) == "once upon y"


def test_everything_is_escaped():
    evil = "<script>alert('x')</script>"
    html = side_by_side([evil], [(evil, [evil + " a"]), (evil + "2", [evil + " <b> & c"])])
    assert "<script" not in html
    assert "<b>" not in html
    assert plain(cells(html)[1]) == evil + " <b> & c"


def test_a_redraw_takes_a_few_milliseconds():
    dense, other = (f"{PROMPT} {words(1000, seed)}" for seed in (1, 2))
    columns = [("Dense", [dense]), ("30%", [other])]
    times = []
    for _ in range(7):
        began = time.perf_counter()
        side_by_side([PROMPT], columns)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.05
