"""Numbers from the page: finite ones pass, everything else is one sentence."""

import pytest

from numprune import InputError
from numprune.ui.given_numbers import number, whole

NONE = [None, True, "7", [7], float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("value", NONE)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(InputError, match=r"^Top-p is .*; give a number\.$"):
        number(value, "Top-p")
    with pytest.raises(InputError, match=r"^Seed is .*; give a whole number\.$"):
        whole(value, "Seed")


def test_numbers_pass():
    assert number(3, "x") == 3.0
    assert type(number(3, "x")) is float
    assert [whole(value, "x") for value in (3, -2.0, 10**30)] == [3, -2, 10**30]
    assert whole(None, "x", empty=0) == 0
    with pytest.raises(InputError, match=r"Samples is 2\.5; give a whole number"):
        whole(2.5, "Samples")
