"""Scenes of the made-up shop: one conversation of a customer with Mila, with all that a log would hold about it.

What customers say comes from phrase banks, what Mila says is fixed by the policies. The module knows no file.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from samples.base import banks
from samples.base.copying import invented_item, invented_name
from samples.base.corpus import company_name
from samples.grammar import bank, expand
from samples.lines import Speech

_HERE = Path(__file__).parent
HANDOVERS = ("complaint", "legal", "injury", "request", "fraud", "safety")
ENDS = ("bye", *HANDOVERS)
"""Acts after which the customer has nothing more to say to Mila."""

_WEIGHTS: Mapping[str, float] = {
    "greet": 2.5, "who": 3, "robot": 4, "skills": 2, "mild": 4, "insult": 2.5, "unclear": 3, "tongue": 1.5,
    "mood": 2.5, "offtopic": 6, "extract": 4, "privacy": 8, "bargain": 4, "promise": 3, "commit": 3, "rival": 4,
    "unknown": 4, "thanks": 4, "bye": 2, "confirm": 1, "repeat": 1, "gives_name": 1, "no_status": 3,
    "complaint": 5, "legal": 3, "injury": 3.5, "request": 4, "fraud": 3.5, "safety": 3,
}  # fmt: skip
_TOPICS_WEIGHT = 60.0
_MEMORY: Mapping[str, float] = {"status": 14, "number": 4, "thing": 4, "name": 4}
_REFUSALS = ("offtopic", "extract", "privacy", "bargain", "promise", "commit")
_NEVER_FIRST = ("thanks", "bye", "confirm", "repeat")


@dataclass(frozen=True, slots=True)
class Voice:
    """All phrases of one language: speech, topics of the shop by id, and the shop's own words."""

    speech: Speech
    topics: Mapping[str, Mapping[str, Any]]
    words: Mapping[str, Any]


@dataclass(slots=True)
class Scene:
    """A conversation in the making.

    Attributes:
        voice: the language's phrases.
        slots: what the slots stand for: name, order, item...
        memory: lines that are known about the customer.
        last: the customer's earlier visit is known.
        messages: what was said, in the neutral shape.
        acts: what each exchange was about.
        handover: index of the agent's message that hands over, and the reason.
    """

    voice: Voice
    slots: dict[str, Any]
    memory: list[str] = field(default_factory=list)
    last: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)
    acts: list[str] = field(default_factory=list)
    handover: tuple[int, str] | None = None


@cache
def voice(language: str) -> Voice:
    """The phrases of `en` or `zh`: the general ones of the base corpus and the shop's."""
    general, own = banks.acts(language), dict(bank(_HERE / "phrases" / f"shop_acts_{language}.yaml"))
    remembered = banks.memory(language)
    acts: dict[str, Any] = dict(general)
    acts["story"] = [*general["story"], *own.pop("story")]
    for name, act in own.items():
        heard = {**remembered, **general}.get(name, {"user": []})["user"]
        acts[name] = {"user": [*heard, *act["user"]], "agent": act["agent"], "reason": name}
    ways = {t["name"]: t for t in banks.topics("topics_zh" if language == "zh" else "topics_en_shop")}
    topics, shops = {}, bank(_HERE / "phrases" / f"shop_topics_{language}.yaml")
    for topic in cast(list[dict[str, Any]], shops):
        common = ways[topic["extends"]]
        topics[topic["id"]] = {**topic, **{key: [*common[key], *topic[key]] for key in ("np", "vp", "ask")}}
    words = {**bank(_HERE / "phrases" / "shop_world.yaml")[language]}
    acts["confirm"], acts["repeat"] = words["confirm"], words["repeat"]
    return Voice(Speech(acts, language, asides=0.22), topics, words)


def conversation(language: str, number: int, rng: random.Random) -> dict[str, Any]:
    """Conversation `number` of a language in the neutral shape: id, domain, messages, context, annotations."""
    scene = _open(language, rng)
    for _ in range(rng.choices((1, 2, 3, 4, 5), (8, 24, 32, 24, 12))[0]):
        act = _choose(scene, rng)
        _play(scene, act, rng)
        if act in ENDS:
            break
    return _record(scene, f"kettlemoor-{language}-{number:05d}", rng)


def _open(language: str, rng: random.Random) -> Scene:
    spoken, world = voice(language), banks.world()
    words, general = spoken.words, spoken.speech.acts if language == "zh" else world
    item = rng.choice(words["items"])
    if rng.random() < 0.3:
        item = f"{rng.choice(words['colours'])}{'' if language == 'zh' else ' '}{item}"
    names = world["names_zh"] if language == "zh" and rng.random() < 0.75 else world["names_en"]
    day, month = rng.randint(1, 28), rng.randrange(12)
    slots: dict[str, Any] = {
        "bot": "Mila", "company": "Kettlemoor", "item": item, "country": general["country"], "pay": general["pay"],
        "rival": [*world["rivals"], company_name(rng, world), company_name(rng, world)],
        "name": rng.choice(names), "id": order_number(rng), "noun": "Order", "low": "order",
        "mash": [_mash(rng) for _ in range(4)], "emoji": words["emoji"], "d": f"{day} {world['months'][month]}",
    }  # fmt: skip
    scene = Scene(spoken, slots)
    if rng.random() < 0.33:
        _rename(slots, words["items"], language, rng)
        record = words
        if language == "zh" and rng.random() < 0.5:
            record = words["english"]
            if rng.random() < 0.7:
                english = voice("en").words
                slots["item"] = f"{rng.choice(english['colours'])} {rng.choice(english['items'])}"
        elif language == "zh":
            slots["d"] = f"{month + 1}月{day}日"
        state, said = rng.choice(record["states"])
        slots["state"], slots["said"] = expand(state, rng, slots), expand(said, rng, slots)
        slots["topic"] = rng.choice(list(words["topics"].values()))
        scene.last = rng.random() < 0.45
        lines = ("customer", "order", "last") if scene.last else ("customer", "order")
        scene.memory = [expand(record["facts"][line], rng, slots) for line in lines]
    return scene


def _rename(slots: dict[str, Any], items: Sequence[str], language: str, rng: random.Random) -> None:
    """Names and goods that no list holds, now and then: what is known of a customer must be copied, not learned."""
    if rng.random() < 0.6:
        slots["name"] = invented_name(language if rng.random() < 0.6 else "en", rng)
    if rng.random() < 0.5:
        slots["item"] = invented_item(language, items, rng)


def _mash(rng: random.Random) -> str:
    """What a cat types."""
    return "".join(rng.choice("asdfghjklqwertyuiopzxcvbnm") for _ in range(rng.randint(3, 8)))


def order_number(rng: random.Random) -> str:
    """A number as the shop gives it to orders: K, a hyphen, four digits."""
    return "K-" + "".join(rng.choice("0123456789") for _ in range(4))


def _choose(scene: Scene, rng: random.Random) -> str:
    """The act of the next exchange; a topic's id stands for the topic."""
    first = not scene.messages
    weights = {act: w for act, w in _WEIGHTS.items() if not (first and act in _NEVER_FIRST)}
    if first:
        weights["greet"] += 4
    elif scene.acts[-1] in _REFUSALS and rng.random() < 0.3:
        return "insist"
    weights.update({topic: _TOPICS_WEIGHT / len(scene.voice.topics) for topic in scene.voice.topics})
    if scene.memory:
        weights = {**weights, **_MEMORY, "last_ask": 12 if scene.last else 0, "back": 20 if first else 1}
        weights["greet_known"] = weights.pop("greet")
        weights.pop("no_status")
    return rng.choices(list(weights), list(weights.values()))[0]


def _play(scene: Scene, act: str, rng: random.Random) -> None:
    speech, slots = scene.voice.speech, scene.slots
    topic = scene.voice.topics.get(act)
    if topic is not None:
        # The matter is named before the answer, in the words in which chatmill-tiny says that it knows nothing of it,
        # so that tuning can build on that instead of having to know the answer at the first word.
        named = expand(scene.voice.words["about"], rng, {"topic": topic["extends"]})
        said, reply = speech.ask(topic, rng, slots), named + expand(rng.choice(topic["reply"]), rng, slots)
        if scene.messages and rng.random() < 0.15:
            said = expand(rng.choice(scene.voice.words["moreover"]), rng, {"x": "\0"}).replace("\0", said)
    elif act == "repeat":
        said = speech.say(act, rng, slots)
        reply = next(m["content"] for m in reversed(scene.messages) if m["role"] == "agent")
    elif act in ("status", "number", "thing", "name", "last_ask", "back", "no_status"):
        core = expand(rng.choice(speech.acts[act]["user"]), rng, slots)
        said = speech.dress(core, rng, slots, question=rng.random() < 0.6)
        reply = speech.answer(act, rng, slots)
    elif act == "insist":
        said, reply = _insisting(scene, rng), speech.answer(act, rng, slots)
    elif act == "complaint" and rng.random() < 0.35:
        said, reply = _angrily(scene, rng), speech.answer(act, rng, slots)
    else:
        said, reply = speech.say(act, rng, slots), speech.answer(act, rng, slots)
    _customer(scene, said, rng)
    scene.messages.append({"role": "agent", "content": reply})
    scene.acts.append(act)
    if act in HANDOVERS:
        _hand_over(scene, act, rng)
    elif act == "no_status" and rng.random() < 0.6:
        number = {**slots, "id": order_number(rng)}
        _customer(scene, expand(rng.choice(speech.acts["gives_id"]["user"]), rng, number), rng)
        scene.messages.append({"role": "agent", "content": speech.answer("gives_id", rng, number)})
        scene.acts.append("gives_id")


def _angrily(scene: Scene, rng: random.Random) -> str:
    """A matter that Mila could answer, said by somebody who has had enough."""
    speech = scene.voice.speech
    topic = scene.voice.topics[rng.choice(("damaged", "lost-parcel", "wrong-item", "refund", "delivery-time"))]
    matter = expand(rng.choice(topic["ask"]), rng, scene.slots)
    anger = expand(rng.choice(speech.acts["complaint"]["user"]), rng, scene.slots)
    said = rng.choice(scene.voice.words["angry"]).replace("<t>", matter).replace("<c>", anger)
    return speech.dress(said, rng, scene.slots, question=False, more=0.3)


def _insisting(scene: Scene, rng: random.Random) -> str:
    """The customer does not take no for an answer, and may say the same wish again."""
    speech = scene.voice.speech
    said = expand(rng.choice(speech.acts["insist"]["user"]), rng, scene.slots)
    if rng.random() < 0.5:
        again = expand(rng.choice(speech.acts[scene.acts[-1]]["user"]), rng, scene.slots)
        said = "，".join((said, again)) if speech.language == "zh" else f"{said}, {again}"
    return speech.dress(said, rng, scene.slots, question=rng.random() < 0.3, more=0.2)


def _customer(scene: Scene, said: str, rng: random.Random) -> None:
    """The customer's message; what holds a line break was sent as a burst."""
    parts = said.split("\n") if rng.random() < 0.7 else [said]
    scene.messages += [{"role": "customer", "content": part} for part in parts if part.strip()]


def _hand_over(scene: Scene, reason: str, rng: random.Random) -> None:
    scene.handover = (len(scene.messages) - 1, reason)
    arguments = {"reason": reason}
    text = 'call transfer_to_human {"reason": "' + reason + '"}'
    scene.messages.append(
        {"role": "action", "content": text, "name": "transfer_to_human", "kind": "call", "data": arguments}
    )
    if rng.random() < 0.5:
        words: Mapping[str, Sequence[str]] = scene.voice.words
        said = expand(rng.choice(words["colleague"]), rng, {"who": words["who"]})
        scene.messages.append({"role": "agent", "content": said})


def _record(scene: Scene, name: str, rng: random.Random) -> dict[str, Any]:
    annotations: dict[str, Any] = {"language": scene.voice.speech.language, "label": scene.acts[0], "acts": scene.acts}
    if scene.handover:
        annotations["handover"] = {"index": scene.handover[0], "reason": scene.handover[1]}
    context: dict[str, Any] = {"facts": scene.memory}
    if scene.memory:
        slots = scene.slots
        context["profile"] = {"name": slots["name"], "order": slots["id"], "item": slots["item"]}
        if scene.last:
            context["sessions"] = [{"days_ago": rng.randint(1, 30), "about": slots["topic"]}]
    return {
        "id": name, "source": "made up", "domain": "online_shop", "messages": scene.messages, "context": context,
        "annotations": annotations,
    }  # fmt: skip
