"""What only copies holds every answer in what was said before."""

import random

from samples.base.copying import copying
from samples.base.corpus import conversations


def test_every_value_of_a_reply_stands_before_it() -> None:
    for seed in range(200):
        messages = copying("zh" if seed % 3 == 0 else "en", ["kettle", "lamp"], random.Random(seed))
        for index in range(2, len(messages), 2):
            asked, reply = messages[index - 1]["content"], messages[index]["content"]
            known = messages[0]["content"] + asked
            value = reply.rstrip(".。").rpartition(" is ")[2].rpartition("是")[2]
            assert value in known, (known, reply)


def test_the_share_of_copying_is_what_was_asked_for() -> None:
    copied = list(conversations(200, 3, copies=1.0))
    assert not any(m["content"].startswith("You are") for c in copied for m in c)


def test_a_longer_corpus_begins_with_the_shorter_one() -> None:
    assert list(conversations(1100, 5))[:1000] == list(conversations(1000, 5))
