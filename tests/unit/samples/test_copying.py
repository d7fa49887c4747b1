"""What only copies holds every answer in what was said before."""

import random

from samples.base import banks
from samples.base.copying import copying
from samples.base.corpus import Mixture, conversations


def test_every_value_of_a_reply_stands_before_it() -> None:
    for seed in range(200):
        messages = copying("zh" if seed % 3 == 0 else "en", ["kettle", "lamp"], random.Random(seed))
        for index in range(2, len(messages), 2):
            asked, reply = messages[index - 1]["content"], messages[index]["content"]
            known = messages[0]["content"] + asked
            value = reply.rstrip(".。").rpartition(" is ")[2].rpartition("是")[2]
            assert value in known, (known, reply)


def test_the_share_of_copying_is_what_was_asked_for() -> None:
    copied = list(conversations(200, 3, Mixture(copies=1.0)))
    assert not any(m["content"].startswith("You are") for c in copied for m in c)


def test_a_longer_corpus_begins_with_the_shorter_one() -> None:
    assert list(conversations(1100, 5))[:1000] == list(conversations(1000, 5))


def test_names_that_no_list_holds_are_answered_from_the_prompt() -> None:
    heard = {*banks.world()["names_en"], *banks.world()["names_zh"]}
    welcomed = []
    for messages in conversations(600, 4, Mixture(unheard=1.0)):
        for said in messages[2::2]:
            if said["content"].startswith("Welcome back, "):
                name = said["content"].removeprefix("Welcome back, ").partition("!")[0]
                assert name in messages[0]["content"]
                welcomed.append(name)
    assert len(welcomed) > 20
    assert len(set(welcomed)) > 0.6 * len(welcomed)
    assert len(heard & set(welcomed)) < 0.05 * len(welcomed)
