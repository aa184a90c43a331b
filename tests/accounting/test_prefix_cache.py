"""
What an engine's prefix cache is likely to hold, beside a model of it that is slow and plain.
"""

from hypothesis import given
from hypothesis import strategies as st

from proxy.accounting.prefix_cache import Match, PrefixCache
from proxy.accounting.prefix_chain import EQUAL_PIECES, Chain, Quote, reach, size
from proxy.accounting.prefix_entries import Held


def chain(*path: int, rest: float = 0.5, quotes: tuple[Quote, ...] = ()) -> Chain:
    """A prompt whose pieces are named after the whole way to them, as hashes are."""
    names = tuple(b"/".join(b"%d" % step for step in path[: depth + 1]) for depth in range(len(path)))
    return Chain(names, reach(len(names)) + rest, b"end of " + (names[-1] if names else b"") + b"%f" % rest, quotes)


def test_what_was_sent_before_is_found_up_to_where_prompts_part() -> None:
    """Three pieces in common are three pieces found; of a prompt nobody sent nothing is."""
    cache = PrefixCache(100)
    cache.hold(chain(1, 2, 3, 4))

    assert cache.found(chain(1, 2, 3, 5, 6)) == Match(3, 3.0, 0.0)
    assert cache.found(chain(9)) == Match(0, 0.0, 0.0)


def test_the_same_prompt_is_there_but_for_its_last_unit() -> None:
    """The engine finds whole blocks and never the last token; where pieces are long, the end counts by the unit."""
    cache = PrefixCache(10_000)
    deep = chain(*range(EQUAL_PIECES + 3), rest=1.5)
    for one in (deep, chain(7, 8, rest=0.5)):
        cache.hold(one)

    assert cache.found(deep).prompt == EQUAL_PIECES + 6 + 1.0
    assert cache.found(chain(7, 8, rest=0.5)).prompt == 2.0
    assert cache.found(chain(7, 8, rest=0.0)).prompt == 1.0


def test_an_answer_is_there_if_the_prompt_it_followed_was_sent() -> None:
    """A second turn holds the first and the engine's own answer to it; what the user says then is new."""
    first = chain(1, 2, rest=0.5)
    second = chain(1, 2, 3, 4, 5, 6, rest=0.2, quotes=(Quote(first.end, 2.5, 5.0),))
    cache = PrefixCache(100)

    assert cache.found(second) == Match(0, 0.0, 0.0)
    cache.hold(first)
    assert cache.found(second) == Match(2, 2.5, 2.5)


def test_an_answer_that_another_prompt_got_is_not() -> None:
    """The same words after a different question, and an answer whose question has been thrown out."""
    cache = PrefixCache(100)
    cache.hold(chain(1, 2, rest=0.5))
    assert cache.found(chain(1, 2, 3, 4, quotes=(Quote(b"other", 2.5, 4.0),))).answer == 0.0

    cache.room = 2
    assert cache.found(chain(1, 2, 3, 4, quotes=(Quote(chain(1, 2, rest=0.5).end, 2.5, 4.0),))).answer == 0.0


def test_the_deepest_pieces_of_the_oldest_prompt_go_first() -> None:
    """As vLLM frees them; what a later prompt shared has been used since."""
    cache = PrefixCache(8)
    cache.hold(chain(1, 2, 3))
    cache.hold(chain(1, 5))
    cache.hold(chain(8))  # 3 + its end, 5 + its end, 8 + its end, 1, 2 are nine units

    assert cache.found(chain(1, 2, 3)).pieces == 3
    cache.hold(chain(9))
    assert [cache.found(one).pieces for one in (chain(1, 2, 3), chain(1, 5), chain(8), chain(9))] == [2, 2, 1, 1]


def test_answers_need_room_too() -> None:
    """A long answer pushes out what was used before it."""
    cache = PrefixCache(20)
    cache.hold(chain(1, 2))
    cache.hold(chain(5), answer=18)

    assert (len(cache), cache.found(chain(1, 2)).pieces, cache.found(chain(5)).pieces) == (20, 1, 1)


def test_what_was_never_computed_is_taken_out_again() -> None:
    """Only what the request would have added."""
    cache = PrefixCache(100)
    cache.hold(chain(1, 2))
    cache.hold(chain(1, 2, 3))
    cache.drop(chain(1, 2, 3), beyond=2)

    assert (cache.found(chain(1, 2, 3)).pieces, len(cache)) == (2, 3)


def test_without_room_nothing_is_found() -> None:
    """An engine without a prefix cache."""
    cache = PrefixCache(0)
    cache.hold(chain(1, 2))

    assert (cache.found(chain(1, 2)), len(cache)) == (Match(0, 0.0, 0.0), 0)


def test_an_engine_that_began_anew_holds_nothing() -> None:
    """And is filled again from the beginning."""
    cache = PrefixCache(100)
    cache.hold(chain(1, 2))
    cache.clear()

    assert (cache.found(chain(1, 2)).pieces, len(cache)) == (0, 0)


@given(st.integers(0, 5 * EQUAL_PIECES))
def test_pieces_lie_end_to_end(count: int) -> None:
    """The first n pieces reach as far as their sizes say, and one piece is a small part of all before it."""
    assert reach(count + 1) - reach(count) == size(count)
    assert size(count) <= 1 + reach(count) / EQUAL_PIECES


class Plain:
    """The same by the book: a list, newest last, in which the oldest piece is looked for anew each time."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.held: list[tuple[bytes, int]] = []
        self.under_way: list[Chain] = []

    def hold(self, one: Chain) -> None:
        ends = [units for name, units in self.held if name == one.end]
        newest = [(one.end, max([1, *ends])), *reversed([(name, size(at)) for at, name in enumerate(one.pieces)])]
        names = {name for name, _ in newest}
        self.held = [entry for entry in self.held if entry[0] not in names] + newest
        self.fit()

    def fit(self) -> None:
        used = {name for one in self.under_way for name in (one.end, *one.pieces)}
        free = [entry for entry in self.held if entry[0] not in used]
        while free and self.units > self.room:
            self.held.remove(free.pop(0))

    @property
    def units(self) -> int:
        return sum(units for _, units in self.held)

    def begin(self, one: Chain) -> None:
        self.under_way.append(one)
        self.hold(one)

    def end(self, one: Chain) -> None:
        self.under_way.remove(one)
        self.hold(one)

    def drop(self, one: Chain, beyond: int) -> None:
        gone = {one.end, *one.pieces[beyond:]}
        self.held = [entry for entry in self.held if entry[0] not in gone]

    def found(self, one: Chain) -> int:
        names = {name for name, _ in self.held}
        return next((at for at, name in enumerate(one.pieces) if name not in names), len(one.pieces))


PATHS = st.lists(st.integers(0, 2), max_size=7)


@given(st.integers(0, 25), st.lists(PATHS, max_size=25), st.lists(PATHS, max_size=5))
def test_it_holds_what_a_plain_model_holds(room: int, sent: list[list[int]], asked: list[list[int]]) -> None:
    """After any requests, for any question, within its room; and no piece is there without all before it."""
    cache, plain = PrefixCache(room), Plain(room)
    for number, path in enumerate(sent):
        if number % 2:
            match, held = cache.look_up(chain(*path))
            assert match.pieces == plain.found(chain(*path))
            cache.answered(chain(*path), held, 0)
        else:
            cache.hold(chain(*path))
        plain.hold(chain(*path))

    assert [cache.found(chain(*path)).pieces for path in asked] == [plain.found(chain(*path)) for path in asked]
    assert len(cache) == sum(units for _, units in plain.held) <= room
    names = {name for name, _ in plain.held if not name.startswith(b"end")}
    assert all(name.rpartition(b"/")[0] in names for name in names if b"/" in name)


@given(st.integers(0, 25), st.lists(st.tuples(PATHS, st.integers(0, 6)), max_size=25), st.lists(PATHS, max_size=5))
def test_what_requests_under_way_have_stays(
    room: int, sent: list[tuple[list[int], int]], asked: list[list[int]]
) -> None:
    """Each is over when so many others have come; meanwhile nothing of it goes, even where there is no room."""
    cache, plain = PrefixCache(room), Plain(room)
    open_until: list[tuple[int, Chain, Held]] = []
    for now, (path, others) in enumerate(sent):
        match, held = cache.look_up(chain(*path))
        assert match.pieces == plain.found(chain(*path))
        plain.begin(chain(*path))
        open_until.append((now + others, chain(*path), held))
        for entry in [one for one in open_until if one[0] <= now]:
            open_until.remove(entry)
            cache.answered(entry[1], entry[2], 0)
            plain.end(entry[1])
        assert all(cache.found(one).pieces == len(one.pieces) for _, one, _ in open_until)

    assert [cache.found(chain(*path)).pieces for path in asked] == [plain.found(chain(*path)) for path in asked]
    assert len(cache) == plain.units


@given(st.integers(0, 25), st.lists(st.tuples(st.booleans(), PATHS), max_size=25), st.lists(PATHS, max_size=5))
def test_what_was_dropped_and_comes_again_is_as_in_a_plain_model(
    room: int, sent: list[tuple[bool, list[int]]], asked: list[list[int]]
) -> None:
    """Some requests leave before they were computed, and take out what they alone had put in."""
    cache, plain = PrefixCache(room), Plain(room)
    for leaves, path in sent:
        one = chain(*path)
        match, held = cache.look_up(one)
        plain.begin(one)
        plain.end(one)
        if leaves:
            cache.drop(one, beyond=match.pieces)
            plain.drop(one, beyond=match.pieces)
        else:
            cache.answered(one, held, 0)

    assert [cache.found(chain(*path)).pieces for path in asked] == [plain.found(chain(*path)) for path in asked]
    assert len(cache) == sum(units for _, units in plain.held) <= room


def test_what_stood_on_a_dropped_prompt_is_found_again_once_that_is_there() -> None:
    """The later prompt's own pieces were computed, or will be, all the same."""
    cache = PrefixCache(100)
    cache.hold(chain(1, 2))
    cache.hold(chain(1, 2, 3, 4))
    cache.drop(chain(1, 2), beyond=0)
    assert (cache.found(chain(1, 2, 3, 4)).pieces, len(cache)) == (0, 3)

    cache.hold(chain(1, 2, 5))
    assert (cache.found(chain(1, 2, 3, 4)).pieces, len(cache)) == (4, 7)
    cache.hold(chain(1, 2, 3, 4, 6))
    assert len(cache) == 9


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=9), st.data())
def test_a_smaller_room_holds_a_part(sent: list[list[int]], data: st.DataObject) -> None:
    """Shrinking at run time leaves what a cache of that size would have had, or less, and never more than fits."""
    cache = PrefixCache(1000)
    for path in sent:
        cache.hold(chain(*path))
    before = [cache.found(chain(*path)).pieces for path in sent]
    cache.room = data.draw(st.integers(0, 40))

    assert len(cache) <= cache.room
    assert all(cache.found(chain(*path)).pieces <= was for path, was in zip(sent, before, strict=True))


def test_a_large_cache_throws_out_several_at_once() -> None:
    """It may hold a little more than its room, and never more than that; after that it fits again."""
    cache, most = PrefixCache(5120), 0
    for number in range(4000):
        cache.hold(chain(number, 1, 2))
        most = max(most, len(cache))

    assert 5120 < most <= 5120 + 20 + 4
    assert cache.found(chain(3999, 1, 2)).pieces == 3
    assert cache.found(chain(3999 - 1300, 1, 2)).pieces == 0
