"""Conversations of many invented businesses: the corpus of chatmill-tiny.

Each conversation has a system prompt of its own with the facts that hold there, so that the model learns to look facts
up, to copy numbers and names, to say when it does not know, and to hand over when the prompt says so. Nothing about any
particular business stays in its weights, which is what tuning is for.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from samples.base import banks
from samples.base.copying import copying, invented_item, invented_name
from samples.grammar import expand
from samples.lines import Speech, transfer
from samples.overlap import asked, bare

Message = dict[str, str]
HANDOVERS = ("complaint", "legal", "injury", "request", "fraud", "safety")
CHAT = ("greet", "thanks", "bye", "mood", "who", "robot", "skills", "insult", "unclear", "tongue", "mild")
REFUSALS = ("offtopic", "extract", "privacy", "bargain", "commit", "rival", "promise")
CHINESE_SHARE = 0.27
"""Share of conversations in Chinese."""
_TALK = 0.72
"""Where, on the scale by which an exchange is drawn, handovers, small talk and refusals begin."""
BLOCK = 1000
"""Conversations that share a source of chance."""

_RULES = {
    "en": [
        "Pass complaints, legal threats, injuries, fraud, danger and requests for a person to a person.",
        "Call transfer_to_human for complaints, legal threats, injuries, requests for a person, fraud and danger.",
        (
            "Hand over to a colleague when there is a complaint, a legal threat, an injury, fraud, danger "
            "or the wish for a person."
        ),
    ],
    "zh": [
        "投诉、法律威胁、受伤、盗刷、危险或要求人工时转接同事。",
        "遇到投诉、起诉、受伤、要求人工、盗刷和危险，调用transfer_to_human。",
    ],
}
_PLAIN = {
    "en": {
        "complaint": "I'm very sorry that you are so unhappy with us.",
        "legal": "I understand that you think of legal steps.",
        "injury": "I'm very sorry that somebody was hurt. Please call a doctor at once.",
        "request": "I understand that you want to speak with a person.",
        "fraud": "I understand that it was not you. Please block your card at once.",
        "safety": "I'm so sorry that you feel this way. Please call the emergency number.",
    },
    "zh": {
        "complaint": "非常抱歉让您这么不满意。",
        "legal": "我明白您想走法律途径。",
        "injury": "很抱歉有人受伤，请马上找医生。",
        "request": "我明白您想找人工。",
        "fraud": "我明白这不是您本人操作，请马上冻结银行卡。",
        "safety": "听到您这样我很难过，请马上拨打急救电话。",
    },
}
"""What is said where no rule of handing over holds."""
_UNKNOWN = {
    "en": ["I'm sorry, I have no information about <topic>.", "I have no information about <topic> here, sorry."],
    "zh": ["抱歉，我没有关于<topic>的信息。"],
}
_SYSTEM = {
    "en": [
        "You are <bot>, the assistant of <company>, <kind>.",
        "You are <bot>, the assistant of <company>.",
        "You are <bot>, the assistant of the <plain> <company>.",
        "You are <bot> and you answer the customers of <company>, <kind>.",
        "<company> is <kind>. You are its assistant <bot>.",
        "You are <bot>, the digital assistant of <company>. Be short and friendly.",
    ],
    "zh": [
        "你是<company>的助手<bot>。",
        "你是<bot>，<kind><company>的助手。",
        "你是<bot>，负责回答<company>客户的问题。",
    ],
}


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a corpus is mixed of.

    Attributes:
        copies: share of conversations that are nothing but copying (`samples.base.copying`).
        unheard: share of the others in which customer, assistant, company and goods have names that no list holds, and
            in which more is known about the customer: what can only be copied.
        talk: share of exchanges that are small talk, a refusal or a handover before chance decides as usual.
    """

    copies: float = 0.0
    unheard: float = 0.0
    talk: float = 0.0


PLAIN = Mixture()
"""None of it."""


@dataclass(slots=True)
class _Scene:
    """A business, its customer and what has been said so far."""

    language: str
    kind: str
    slots: dict[str, Any]
    topics: list[dict[str, Any]]
    mixture: Mixture
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: bool = False
    last: bool = False
    rule: bool = False
    refused: bool = False
    remembers: float = 0.35
    messages: list[Message] = field(default_factory=list)

    def add(self, user: str, agent: str) -> None:
        self.messages += [{"role": "user", "content": user}, {"role": "assistant", "content": agent}]


def conversations(count: int, seed: int, mixture: Mixture = PLAIN) -> Iterator[list[Message]]:
    """`count` conversations in the order of roles system, user, assistant, ...; the same for the same arguments.

    None holds a customer's line of the shop's evaluation suites: what would is drawn again.

    Args:
        count: how many.
        seed: of all chance.
        mixture: of what.
    """
    for first in range(0, count, BLOCK):
        yield from block(first // BLOCK, min(BLOCK, count - first), seed, mixture)


def block(number: int, count: int, seed: int, mixture: Mixture) -> list[list[Message]]:
    """The first `count` conversations of one block; blocks need not be made in their order, nor in one process."""
    rng = random.Random(f"{seed}/{number}")
    made: list[list[Message]] = []
    while len(made) < count:
        messages = conversation(rng, mixture)
        if not any(m["role"] == "user" and bare(m["content"]) in asked() for m in messages):
            made.append(messages)
    return made


def conversation(rng: random.Random, mixture: Mixture = PLAIN) -> list[Message]:
    """One conversation: a system prompt and one to six exchanges, or, at times, nothing but copying."""
    if mixture.copies and rng.random() < mixture.copies:
        language = "zh" if rng.random() < CHINESE_SHARE else "en"
        return copying(language, _items(language), rng)
    scene = _scene(rng, mixture)
    if mixture.unheard and rng.random() < mixture.unheard:
        _rename(scene, rng)
    speech = Speech(banks.acts(scene.language), scene.language)
    scene.messages.append({"role": "system", "content": _system(scene, rng)})
    for _ in range(rng.choices((1, 2, 3, 4, 5, 6), (6, 14, 22, 24, 19, 15))[0]):
        if not _exchange(scene, speech, rng):
            break
    return scene.messages


def identifier(rng: random.Random) -> str:
    """An order number or the like, in one of the usual forms."""
    digits = "".join(rng.choice("0123456789") for _ in range(rng.choice((3, 4, 4, 4, 5, 6))))
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))
    return rng.choice((f"{letters}-{digits}", f"{letters}-{digits}", f"{letters}{digits}", digits))


def _date(rng: random.Random, language: str) -> str:
    day, month = rng.randint(1, 28), rng.randrange(12)
    if language == "zh" and rng.random() < 0.7:
        return f"{month + 1}月{day}日"
    return f"{day} {banks.world()['months'][month]}"


def _scene(rng: random.Random, mixture: Mixture) -> _Scene:
    world = banks.world()
    language = "zh" if rng.random() < CHINESE_SHARE else "en"
    chinese = language == "zh"
    kinds: Mapping[str, list[str]] = world["kinds_zh" if chinese else "kinds"]
    kind = "shop" if rng.random() < 0.7 else rng.choice(list(kinds))
    if chinese:
        topics = [t for t in banks.topics("topics_zh") if kind in t["kinds"]]
        company = rng.choice(world["company_zh_a"]) if rng.random() < 0.6 else company_name(rng, world)
        bot = rng.choice(world["bots_zh"] if rng.random() < 0.6 else world["bots_en"])
        words: Mapping[str, Any] = banks.acts("zh")
        item = rng.choice(words["items"])
    else:
        topics = [
            t for t in banks.topics("topics_en_shop") if kind == "shop" or t["name"] in ("opening hours", "passwords")
        ]
        topics = topics + [t for t in banks.topics("topics_en_other") if kind in t["kinds"]]
        company, bot, words = company_name(rng, world), rng.choice(world["bots_en"]), world
        item = rng.choice(world["items"])
        if rng.random() < 0.3:
            item = f"{rng.choice(world['colours'])} {item}"
    pay = words["pay"]
    slots: dict[str, Any] = {
        "bot": bot, "company": company, "item": item, "rival": world["rivals"], "country": words["country"], "pay": pay,
        "kind": expand(rng.choice(kinds[kind]), rng), "id": identifier(rng), "d": _date(rng, language),
        "name": rng.choice(world["names_zh" if chinese and rng.random() < 0.7 else "names_en"]),
        "noun": "Order" if kind == "shop" else rng.choice(("Booking", "Contract", "Ticket", "Account", "Request")),
    }  # fmt: skip
    slots["plain"] = str(slots["kind"]).split(" ", 1)[-1]
    slots["low"] = str(slots["noun"]).lower()
    return _Scene(language, kind, slots, topics, mixture)


def _rename(scene: _Scene, rng: random.Random) -> None:
    """Names that nobody has heard, for all that has one."""
    slots, language, goods = scene.slots, scene.language, _items(scene.language)
    for who in ("name", "bot"):
        slots[who] = invented_name(language if rng.random() < 0.6 else "en", rng)
    if rng.random() < 0.7:
        slots["company"] = invented_name("en", rng)
    if rng.random() < 0.5:
        slots["item"] = invented_item(language, goods, rng)
    scene.remembers = 0.75


def company_name(rng: random.Random, world: Mapping[str, Any]) -> str:
    """The name of an invented company."""
    name = f"{rng.choice(world['company_a'])}{rng.choice(world['company_b'])}"
    return name if rng.random() < 0.8 else f"{rng.choice(world['company_a'])} {rng.choice(world['company_b']).title()}"


def _system(scene: _Scene, rng: random.Random) -> str:
    # A Chinese customer is often served under an English prompt, so the model must follow the customer's language.
    written = "en" if scene.language == "en" or rng.random() < 0.5 else "zh"
    slots = dict(scene.slots)
    if scene.language == "zh" and written == "en":
        slots["plain"], slots["kind"] = "company", "a company"
    elif scene.language == "zh":
        slots["kind"] = scene.slots["kind"]
    parts = [expand(rng.choice(_SYSTEM[written]), rng, slots)]
    told = rng.choice((0, 0, 0, 1, 2, 3))
    for topic in rng.sample(scene.topics, min(told, len(scene.topics))):
        values = {key: rng.choice(choices) for key, choices in topic["values"].items()}
        scene.known[topic["name"]] = values
        parts.append(expand(rng.choice(topic["fact"]), rng, values))
    if rng.random() < 0.4:
        scene.rule = True
        parts.append(rng.choice(_RULES[written]))
    first, rest = parts[0], parts[1:]
    rng.shuffle(rest)
    joint = rng.choice((" ", "\n"))
    return "\n".join(filter(None, (joint.join([first, *rest]), " ".join(_memory(scene, rng)))))


def _memory(scene: _Scene, rng: random.Random) -> list[str]:
    if rng.random() > scene.remembers:
        return []
    words = banks.memory(scene.language)
    state, said = rng.choice(words["states"])
    slots = scene.slots
    slots["state"], slots["said"] = expand(state, rng, slots), expand(said, rng, slots)
    slots["topic"] = rng.choice(scene.topics)["name"]
    scene.memory = True
    lines = [expand(rng.choice(words["known"]), rng, slots), expand(rng.choice(words["record"]), rng, slots)]
    if rng.random() < 0.4:
        scene.last = True
        lines.append(expand(rng.choice(words["last"]), rng, slots))
    return lines


def _exchange(scene: _Scene, speech: Speech, rng: random.Random) -> bool:
    """Add one exchange; False if it ended the conversation."""
    way = rng.random()
    if scene.mixture.talk and rng.random() < scene.mixture.talk:
        way = rng.uniform(_TALK, 1.0)
    first = len(scene.messages) == 1
    refused, scene.refused = scene.refused, False
    if refused and rng.random() < 0.25:
        scene.refused = True
        scene.add(speech.say("insist", rng, scene.slots), speech.answer("insist", rng, scene.slots))
    elif scene.memory and way < 0.35:
        _remember(scene, rng, speech)
    elif way < 0.62:
        _topic(scene, speech, rng)
    elif way < 0.66 and not first:
        again = rng.random() < 0.5
        heard = expand(rng.choice(speech.acts["repeat_user" if again else "confirm_user"]), rng)
        said = speech.dress(heard, rng, scene.slots, question=True, more=0)
        reply = scene.messages[-1]["content"] if again else expand(rng.choice(speech.acts["confirm_agent"]), rng)
        scene.add(said, reply)
    elif way < _TALK:
        _tell(scene, rng, speech)
    elif way < 0.80:
        act = rng.choice(HANDOVERS)
        said = speech.say(act, rng, scene.slots)
        if scene.rule:
            scene.add(said, transfer(speech.answer(act, rng, scene.slots), speech.acts[act]["reason"]))
            return False
        scene.add(said, _PLAIN[scene.language][act])
    else:
        act = rng.choice(CHAT if way < 0.90 else REFUSALS)
        if first and rng.random() < 0.2:
            act = "greet"
        scene.add(speech.say(act, rng, scene.slots), speech.answer(act, rng, scene.slots))
        scene.refused = act in REFUSALS
        return act != "bye"
    return True


def _topic(scene: _Scene, speech: Speech, rng: random.Random) -> None:
    known = [t for t in scene.topics if t["name"] in scene.known]
    topic = rng.choice(known) if known and rng.random() < 0.65 else rng.choice(scene.topics)
    said = speech.ask(topic, rng, scene.slots)
    values = scene.known.get(topic["name"])
    if values is None:
        reply = expand(rng.choice(_UNKNOWN[scene.language]), rng, {"topic": topic["name"]})
    else:
        reply = expand(rng.choice(topic["reply"]), rng, values)
    scene.add(said, reply)


def _remember(scene: _Scene, rng: random.Random, speech: Speech) -> None:
    words = banks.memory(scene.language)
    acts = ["status", "status", "number", "thing", "name", "back"] + (["last_ask"] * 2 if scene.last else [])
    act = words["back"] if len(scene.messages) == 1 and rng.random() < 0.3 else words[rng.choice(acts)]
    said = speech.dress(
        expand(rng.choice(act["user"]), rng, scene.slots), rng, scene.slots, question=rng.random() < 0.6
    )
    scene.add(said, expand(rng.choice(act["agent"]), rng, scene.slots))


def _tell(scene: _Scene, rng: random.Random, speech: Speech) -> None:
    words = banks.memory(scene.language)
    slots = {**scene.slots, "id": identifier(rng), "list": _list(scene, rng)}
    way = rng.random()
    if way < 0.4 and not scene.memory:
        said = speech.dress(expand(rng.choice(words["no_status"]["user"]), rng, slots), rng, slots, question=True)
        scene.add(said, expand(rng.choice(words["no_status"]["agent"]), rng, slots))
        scene.add(
            expand(rng.choice(words["gives_id"]["user"]), rng, slots), expand(words["gives_id"]["agent"][0], rng, slots)
        )
        return
    if way < 0.7:
        names = banks.world()["names_en"]
        slots["name"] = scene.slots["name"] if scene.memory else rng.choice(names)
        act = words["gives_name"]
    else:
        act = words["note"]
    scene.add(expand(rng.choice(act["user"]), rng, slots), expand(rng.choice(act["agent"]), rng, slots))


def _list(scene: _Scene, rng: random.Random) -> str:
    chosen = rng.sample(_items(scene.language), rng.choice((2, 3, 4)))
    return ("、" if scene.language == "zh" else ", ").join(chosen)


def _items(language: str) -> list[str]:
    named: list[str] = (banks.acts("zh") if language == "zh" else banks.world())["items"]
    return named
