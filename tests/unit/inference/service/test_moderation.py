"""Moderation: the same findings whatever the chunks, and nothing of a blocked span ever leaves."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatmill.errors import InvalidArgument, NotFound, Unavailable
from chatmill.plugins import parse_parameters
from inference_svc.moderation import personal
from inference_svc.moderation.base import MODERATORS, ModerationContext, ModeratorEnvironment, Response, Stage
from inference_svc.moderation.guard import PIECE, Action, Guard, Rule
from inference_svc.moderation.judge import JudgeModerator, read_answer
from inference_svc.moderation.leak import LeakModerator
from inference_svc.moderation.personal import PersonalModerator, chinese_id_valid, luhn_valid
from inference_svc.moderation.words import WordModerator, WordTable

PROMPT = (
    "You are Mia, the assistant of Lindenhof. Returns are free within thirty days. Never tell anyone the code word, "
    "which is marzipan, and write to help@lindenhof.example. 退货在三十天内免费，不要告诉任何人暗号。"
)


class Blocked:
    def __init__(self, *phrases):
        self.phrases, self.version = phrases, 1

    def set(self, *phrases):
        self.phrases, self.version = phrases, self.version + 1


async def no_model(model, prompt):
    raise AssertionError("no judge here")


def environment(blocked=None, ask=no_model, files=None):
    return ModeratorEnvironment(blocked=blocked or Blocked(), ask=ask, read=(files or {}).__getitem__)


def make(name, env=None, **parameters):
    cls = MODERATORS.get(name)
    return cls(parse_parameters(cls.Parameters, parameters), env or environment())


def open_guard(rules, stage=Stage.OUTPUT, **options):
    return Guard(rules, ModerationContext(stage, PROMPT), **options)


def pass_through(guard, chunks):
    text, verdicts = "", []
    for index, chunk in enumerate(chunks):
        passed = guard.feed(chunk, final=index == len(chunks) - 1)
        text += passed.text
        verdicts += passed.verdicts
    return text, verdicts


def cut(text, points):
    points = sorted({min(p, len(text)) for p in points})
    return [text[a:b] for a, b in zip([0, *points], [*points, len(text)], strict=True)]


WORDS = ("shit", "bad word", "赌博", "法轮", "wifi 100", "you idiot")


def words(*phrases, env=None):
    return make("words", env, phrases=phrases or WORDS)


@pytest.mark.parametrize(
    "text",
    ["shit", "Shit!", "s h i t", "s.h.i.t", "ѕһіt", "ｓｈｉｔ", "shît", "sh!t", "5h1t", "s\u200bhit", "s\u00adh-i-t",
     "bad word", "badword", "bad-word", "BAD  WORD", "赌博", "赌 博", "赌*博", "他赌博了", "wifi 100", "加shit好"],
)  # fmt: skip
def test_dressed_up_words_are_found(text):
    _, verdicts = pass_through(open_guard([Rule("words", words())]), [f"well {text} there"])
    assert [v.category for v in verdicts] == ["word_list"]


@pytest.mark.parametrize(
    "text",
    ["was hit", "Shitake", "push it", "5417", "赌。博士", "wifi ioo", "a bad     word", "this hits", "bad wording"],
)
def test_innocent_words_are_not(text):
    assert pass_through(open_guard([Rule("words", words())]), [text]) == (text, [])


def test_only_what_may_become_a_phrase_is_held_back():
    guard = open_guard([Rule("words", words(), Response.BLOCK)])
    assert guard.feed("Good morning").text == "Good morning"
    assert guard.feed(" and b").text == " and "
    assert guard.feed("ad w").text == ""
    assert guard.feed("eather").text == "bad weather"
    assert guard.feed(" or a bad wo").text == " or a "
    blocked = guard.feed("rd.")
    assert blocked.blocked
    assert blocked.text == ""
    assert guard.feed("more", final=True).text == ""


def test_an_operator_blocks_a_phrase_while_a_reply_streams():
    blocked = Blocked()
    guard = open_guard([Rule("words", words(env=environment(blocked)), Response.BLOCK)])
    assert guard.feed("The secret sauce is ").text == "The secret sauce is "
    blocked.set("tomato paste")
    assert guard.feed("tomato ").text == ""
    [verdict] = guard.feed("paste, of course").verdicts
    assert verdict.action is Action.BLOCKED
    assert verdict.category == "blocked_phrase"


def test_word_files_and_bad_phrases():
    env = environment(files={"lists/en.txt": "# swearing\nshit  # comment\n\n"})
    assert pass_through(open_guard([Rule("w", make("words", env, files=["lists/en.txt"]))]), ["shit"])[1]
    for phrase in ("", "...", "x" * 300, "a....b"):
        with pytest.raises(InvalidArgument, match="phrases"):
            WordTable([(phrase, "c")])
    with pytest.raises(InvalidArgument, match="phrases"):
        parse_parameters(WordModerator.Parameters, {"phrases": "shit"})


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("ada@example.org", "email"),
        ("o.k+x@mail.example.co.uk", "email"),
        ("4111 1111 1111 1111", "card"),
        ("5500-0055-5555-5559", "card"),
        ("11010519491231002X", "cn_id"),
        ("+44 20 7946 0958", "phone"),
        ("(212) 736-5000", "phone"),
        ("138 0013 8000", "phone"),
    ],
)
def test_personal_data(text, category):
    rules = [Rule("personal", make("personal"), Response.REDACT)]
    for sentence in (f"It is {text}, thanks", f"It is {text}", text, f"订单{text}。"):
        out, verdicts = pass_through(open_guard(rules), [sentence])
        assert [v.category for v in verdicts] == [category], sentence
        [v] = verdicts
        assert out == sentence.replace(text, out[v.start : v.end])
        assert out[v.start : v.end].startswith("[")


@pytest.mark.parametrize(
    "text",
    ["order 4111111111111112", "110105194912310021", "see page 12, 13 and 14", "help@lindenhof.example", "a@b",
     "ABC-20231145-77", "1234567", "price 1,234,567.00", "version 10.2.3.4"],
)  # fmt: skip
def test_what_is_not_personal(text):
    assert pass_through(open_guard([Rule("personal", make("personal"), Response.REDACT)]), [text]) == (text, [])


def test_digits_one_by_one_cost_little_and_hide_nothing(monkeypatch):
    looked_up = []
    parse = personal.phonenumbers.parse
    monkeypatch.setattr(personal.phonenumbers, "parse", lambda *a: (looked_up.append(a), parse(*a))[1])
    guard = open_guard([Rule("personal", make("personal"), Response.REDACT)])
    text, verdicts = pass_through(guard, ["1 " * 2000, "x 415 555 2671 and order 12345"])
    assert len(looked_up) <= 2 * personal.MOST_TRIES
    assert "555" not in text
    assert text.endswith(" and order 12345")
    assert {verdict.category for verdict in verdicts} == {"phone"}


async def test_a_long_text_is_looked_at_in_pieces_between_which_others_have_their_turn():
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    text = "my card is 4111 1111 1111 1111 " * 200
    rules = [Rule("personal", make("personal"), Response.REDACT)]
    task = asyncio.create_task(others())
    passed = await open_guard(rules, Stage.INPUT).feed_whole(text)
    task.cancel()
    assert turns >= len(text) // PIECE
    assert passed == open_guard(rules, Stage.INPUT).feed(text, final=True)
    assert passed.text.count("[card]") == 200


async def test_a_long_text_is_left_at_the_first_block():
    rules = [Rule("words", words("forbidden"), Response.BLOCK)]
    passed = await open_guard(rules, Stage.INPUT).feed_whole("fine " * 500 + "forbidden " + "fine " * 500)
    assert passed.blocked
    assert [verdict.action for verdict in passed.verdicts] == [Action.BLOCKED]
    assert "forbidden" not in passed.text
    assert await open_guard(rules, Stage.INPUT).feed_whole("") == open_guard(rules, Stage.INPUT).feed("", final=True)


def test_check_digits():
    assert luhn_valid("79927398713")
    assert not luhn_valid("79927398710")
    assert chinese_id_valid("11010519491231002x")
    assert not chinese_id_valid("110105194912310029")
    assert not chinese_id_valid("110105194913310020")


def test_prompt_leak():
    leak = Rule("leak", make("leak", words=8), Response.BLOCK)
    told = "Returns are free within thirty days, glad to help."
    assert pass_through(open_guard([leak]), [told]) == (told, [])
    secret = "Sure: Returns are free within thirty days. NEVER tell anyone the code word, ok?"
    text, [verdict] = pass_through(open_guard([leak]), [secret])
    assert text == "Sure: "
    assert verdict.category == "prompt_leak"
    text, [verdict] = pass_through(open_guard([leak]), ["好的：退货在三十天内免费"])
    assert text == "好的："
    assert LeakModerator(LeakModerator.Parameters(), environment()).open(ModerationContext(Stage.INPUT, PROMPT)) is None


texts = st.lists(
    st.one_of(
        st.sampled_from([
            *WORDS, "s h i t", "4111 1111 1111 1111", "ada@example.org", "+44 20 7946 0958", "11010519491231002X",
            PROMPT[:60], PROMPT[40:150],
            "never tell anyone", "shi", "bad", " ", ".", "12", "@", "ok ", "赌", "，", "\u200b",
        ]),
        st.text(max_size=5),
    ),
    max_size=10,
).map("".join)  # fmt: skip
ALL = {
    "words": lambda: words(),
    "personal": lambda: make("personal"),
    "leak": lambda: make("leak", words=4),
}


@pytest.mark.parametrize("name", sorted(ALL))
@settings(max_examples=250, deadline=None)
@given(text=texts, points=st.lists(st.integers(0, 120), max_size=14))
def test_findings_do_not_depend_on_chunks_and_stay_behind_safe(name, text, points):
    moderator = ALL[name]()

    def scan(chunks):
        scanner, found = moderator.open(ModerationContext(Stage.OUTPUT, PROMPT)), []
        for index, chunk in enumerate(chunks):
            safe = scanner.safe
            new = scanner.feed(chunk, final=index == len(chunks) - 1)
            assert all(f.start >= safe for f in new)
            assert scanner.safe >= safe
            found += new
        assert scanner.safe == len(text)
        return sorted({(f.start, f.end, f.category) for f in found})

    assert scan(cut(text, points)) == scan([text])


@settings(max_examples=250, deadline=None)
@given(text=texts, points=st.lists(st.integers(0, 120), max_size=14), response=st.sampled_from(Response))
def test_what_leaves_does_not_depend_on_chunks(text, points, response):
    def run(chunks):
        guard = open_guard([Rule(name, new(), response) for name, new in ALL.items()])
        return pass_through(guard, chunks)

    whole, verdicts = run([text])
    streamed, same = run(cut(text, points))
    assert streamed == whole
    if response is Response.REPORT:
        assert whole == text
        assert {(v.category, v.start, v.end) for v in same} == {(v.category, v.start, v.end) for v in verdicts}
    for v in verdicts:
        assert 0 <= v.start <= v.end <= len(whole) or response is Response.REPORT


def test_reported_moderators_never_delay():
    guard = open_guard([Rule(name, new()) for name, new in ALL.items()])
    assert guard.feed("bad w").text == "bad w"
    assert open_guard([]).idle
    assert not guard.idle


def test_a_request_can_ask_for_holdback():
    guard = open_guard([], holdback=5)
    assert guard.feed("0123456789").text == "01234"
    assert guard.feed("", final=True).text == "56789"


async def judge_guard(answer, response=Response.BLOCK, fail_closed=False):
    async def ask(model, prompt):
        assert model == "models/guard"
        assert "Hello {text}" in prompt
        if isinstance(answer, Exception):
            raise answer
        return answer

    moderator = make("judge", environment(ask=ask), model="models/guard")
    guard = open_guard([Rule("judge", moderator, response, fail_closed=fail_closed)])
    streamed = guard.feed("Hello ").text + guard.feed("{text}", final=True).text
    assert guard.judged
    passed = await guard.judge()
    return streamed, passed.text, [(v.action, v.category) for v in passed.verdicts], passed.blocked


async def test_a_judge_lets_pass_blocks_or_reports():
    assert await judge_guard("safe") == ("", "Hello {text}", [], False)
    assert await judge_guard("Unsafe\nS1, Self Harm") == ("", "", [(Action.BLOCKED, "judge_s1")], True)
    assert await judge_guard("unsafe", Response.REPORT) == (
        "Hello {text}", "", [(Action.REPORTED, "judge_unsafe")], False,
    )  # fmt: skip


async def test_a_judge_that_fails_is_reported_and_blocks_only_if_told():
    down = Unavailable("gone")
    category = "judge_unavailable_unavailable"
    assert await judge_guard(down) == ("", "Hello {text}", [(Action.REPORTED, category)], False)
    assert await judge_guard(down, fail_closed=True) == ("", "", [(Action.BLOCKED, category)], True)
    with pytest.raises(Unavailable, match="Maybe"):
        read_answer("Maybe it is", 3)
    with pytest.raises(InvalidArgument, match="text"):
        parse_parameters(JudgeModerator.Parameters, {"model": "models/g", "instruction": "Is it?"})


def test_unknown_moderator_and_category():
    with pytest.raises(NotFound, match="did you mean 'words'"):
        MODERATORS.get("word")
    with pytest.raises(InvalidArgument, match="ssn"):
        parse_parameters(PersonalModerator.Parameters, {"categories": ["ssn"]})
