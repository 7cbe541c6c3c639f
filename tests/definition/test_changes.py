"""Changes: told one tensor after the other, and cleared once all have been told."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import adamas
from adamas.assignments import all_at_once
from adamas.changes import Chain


def changes_of(names, cleared, clear=True, **others):
    indices, values = np.array([1, 3], np.int32), np.array([0.5, 2.0], np.float32)

    def each():
        return (adamas.Change(name, indices, values, (2, 2)) for name in names)

    def start_anew(assignments):
        cleared.append(1)
        all_at_once(assignments)

    return adamas.Changes(each, start_anew if clear else None, 4, 6, False, **others)


def test_changes_are_cleared_only_when_all_of_them_have_been_told():
    cleared = []
    told = iter(changes_of("ab", cleared))
    assert [next(told).name, next(told).name] == ["a", "b"]
    assert cleared == []
    assert list(told) == []
    assert cleared == [1]


def test_who_stops_midway_loses_no_changes():
    cleared = []
    changes = changes_of("ab", cleared)
    next(iter(changes))
    assert cleared == []
    assert [change.name for change in changes] == ["a", "b"]


def test_changes_that_have_been_told_are_not_told_again():
    cleared = []
    changes = changes_of("a", cleared)
    list(changes)
    with pytest.raises(RuntimeError, match=r"Call optimizer\.changes\(\) again"):
        list(changes)
    assert cleared == [1]


def test_who_only_looks_clears_nothing_and_may_look_again():
    changes = changes_of("ab", [], clear=False)
    assert [change.name for change in changes] == [change.name for change in changes]
    changes.clear()
    assert [change.name for change in changes] == ["a", "b"]


def test_each_set_of_changes_has_a_place_that_the_next_one_follows():
    chain = Chain()
    first = changes_of("a", [], chain=chain)
    looked = changes_of("a", [], clear=False, chain=chain)
    assert first.follows == looked.follows == looked.place == chain.place != first.place
    list(first)
    assert changes_of("b", [], chain=chain).follows == first.place
    assert changes_of("b", []).follows not in (first.place, first.follows)


def test_changes_that_were_not_cleared_lead_to_the_same_place_as_the_next_ones():
    chain = Chain()
    assert changes_of("a", [], chain=chain).place == changes_of("ab", [], chain=chain).place


def test_who_missed_a_whole_set_stands_where_nothing_leads_to():
    chain = Chain()
    missed = changes_of("a", [], chain=chain).place
    whole = adamas.Changes(lambda: iter(()), all_at_once, 4, 6, True, chain=chain)
    list(whole)
    assert missed not in (whole.place, chain.place, chain.following)


def test_changes_are_not_told_once_others_that_begin_alike_have_been():
    chain, cleared = Chain(), []
    first, second = (changes_of("a", cleared, chain=chain) for _ in range(2))
    list(first)
    for call in (lambda: list(second), second.each, second.clear):
        with pytest.raises(RuntimeError, match="have been told already"):
            call()
    assert cleared == [1]


def test_copies_of_a_chain_stand_where_it_stands_and_lead_elsewhere():
    chain = Chain()
    for again in (pickle.loads(pickle.dumps(chain)), copy.copy(chain), copy.deepcopy(chain)):
        assert again.place == chain.place
        assert again.following != chain.following


def test_a_clear_that_fails_leaves_the_chain_where_it_was():
    chain = Chain()

    def clear(_):
        raise RuntimeError("a step was made")

    changes = adamas.Changes(lambda: iter(()), clear, 1, 1, False, chain=chain)
    before = chain.place
    with pytest.raises(RuntimeError, match="a step was made"):
        list(changes)
    assert chain.place == before


def test_the_text_of_changes_names_the_steps():
    assert repr(changes_of("a", [])) == "<Changes: what has changed in the steps 4 to 6>"
    whole = adamas.Changes(lambda: iter(()), None, 7, 7, True)
    assert repr(whole) == "<Changes: everything in step 7>"
