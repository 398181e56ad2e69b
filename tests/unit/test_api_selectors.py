import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.api.selectors import Selector, matches, of, parse, selects
from podlane.errors import UsageError

pytestmark = pytest.mark.unit

LABELS = {"app": "web", "tier": "front", "size": "10", "empty": ""}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", True),
        ("app=web", True),
        ("app==web", True),
        ("app=db", False),
        ("app!=db", True),
        ("app!=web", False),
        ("absent!=x", True),
        ("app", True),
        ("absent", False),
        ("!absent", True),
        ("!app", False),
        ("app in (db,web)", True),
        ("app in ( db , cache )", False),
        ("absent in (x)", False),
        ("app notin (db)", True),
        ("app notin (web)", False),
        ("absent notin (x)", True),
        ("empty=", True),
        ("app=", False),
        ("empty in ()", True),
        ("size>9", True),
        ("size > 10", False),
        ("size<11", True),
        ("app>1", False),
        ("absent<1", False),
        ("app=web,tier=front", True),
        ("app=web,tier=back", False),
        (" app = web , tier in (front) ,!absent", True),
        ("in=x", False),
        ("kubernetes.io/hostname!=node1", True),
    ],
)
def test_a_query_selects_as_kubectl_does(text: str, want: bool) -> None:
    assert parse(text).matches(LABELS) is want


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("app=web,", "expected another requirement after the last comma"),
        (",app", "expected a key"),
        ("=web", "expected a key"),
        ("app web", 'expected an operator after "app", got "web"'),
        ("app in web", 'expected "(", got "web"'),
        ("app in (web", 'expected ")", got the end'),
        ("app in", 'expected "(", got the end'),
        ("size>big", 'expected an integer after ">", got "big"'),
        ("-app=web", "expected a key of letters"),
        ("app=we/b", "expected a value of letters"),
        ("app=web)", 'expected ",", got ")"'),
        ("!", "expected a key"),
    ],
)
def test_a_bad_query_says_what_is_wrong(text: str, cause: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value).startswith(f'parse selector "{text}": ')
    assert cause in str(caught.value)


def test_an_empty_map_matches_all_but_selects_none() -> None:
    assert matches({}, LABELS)
    assert not selects({}, LABELS)
    assert selects({"app": "web"}, LABELS)
    assert not selects({"app": "web", "zone": "a"}, LABELS)


words = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
maps = st.dictionaries(words, words, max_size=4)


@given(maps, maps)
def test_the_text_of_a_map_selects_what_the_map_does(selector: dict[str, str], labels: dict[str, str]) -> None:
    text = str(of(selector))
    assert parse(text) == of(selector)
    assert parse(text).matches(labels) == matches(selector, labels)


@pytest.mark.parametrize("text", ["a=b", "a!=b", "a in (b,c)", "a notin (b)", "a", "!a", "a>1", "a<1,b="])
def test_text_round_trip(text: str) -> None:
    assert str(parse(text)) == text
    assert parse(str(Selector())) == Selector()
