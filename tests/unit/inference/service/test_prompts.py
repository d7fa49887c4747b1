"""From messages to token ids: customer text is never a control token, and overflow is counted."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_real_engine import SPECIAL, TEMPLATE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chatmill import errors
from inference_svc.generation import FunctionCall, Message, Overflow, Role, Tool
from inference_svc.prompts import ChatPrompts


def build(template=TEMPLATE):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        ["Hello, how are you? assistant user tool_call"] * 9,
        trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, additional_special_tokens=SPECIAL)
    tokenizer.chat_template = template
    return tokenizer


TOKENIZER = build()
PROMPTS = ChatPrompts(TOKENIZER)
CONTROL = set(TOKENIZER.convert_tokens_to_ids(SPECIAL))


def user(text):
    return Message(Role.USER, text)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=40))
def test_ordinary_text_gives_the_ids_of_transformers(text):
    if any(token in text for token in SPECIAL):
        return
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    expected = TOKENIZER.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    assert PROMPTS.encode([Message(Role.SYSTEM, "Be brief."), user(text)]) == expected


PARTS = [*SPECIAL, "<|", "|>", "<", "user", "assistant|>", "<tool_"]
pieces = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=3)), max_size=8)


@settings(max_examples=300, deadline=None)
@given(pieces.map("".join))
def test_no_text_becomes_a_control_token(text):
    text = text.encode("utf-8", "ignore").decode()
    empty = [i for i in PROMPTS.encode([user("")]) if i in CONTROL]
    ids = PROMPTS.encode([user(text)])
    assert [i for i in ids if i in CONTROL] == empty
    assert TOKENIZER.decode(ids) == TEMPLATE_TEXT.format(text)
    plain = PROMPTS.encode_text(text)
    assert not CONTROL & set(plain)
    assert TOKENIZER.decode(plain) == text


TEMPLATE_TEXT = "<|begin|><|user|>\n{}<|end|>\n<|assistant|>\n"


def test_a_hundred_thousand_control_tokens_take_no_time():
    ids = PROMPTS.encode([user("<|user|>" * 100_000)])
    assert sum(i in CONTROL for i in ids) == 4


def test_tool_calls_are_written_where_the_template_has_no_place_for_them():
    call = FunctionCall("find", '{"q": "<|end|>"}')
    ids = PROMPTS.encode([user("x"), Message(Role.ASSISTANT, "Wait.", (call,)), Message(Role.TOOL, "none"), user("y")])
    text = TOKENIZER.decode(ids)
    assert 'Wait.\n<tool_call>{"name": "find", "arguments": {"q": "<|end|>"}}</tool_call><|end|>' in text
    names = TOKENIZER.convert_ids_to_tokens(ids)
    assert names.count("<tool_call>") == 1
    assert names.count("<|end|>") == 4


def test_tools_and_calls_reach_a_template_that_takes_them():
    template = (
        "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
        "{% for m in messages %}{% for c in m.tool_calls or [] %}({{ c.function.arguments.q }}){% endfor %}{% endfor %}"
    )
    prompts = ChatPrompts(build(template))
    call = FunctionCall("find", '{"q": "7"}', "c1")
    ids = prompts.encode([user("x"), Message(Role.ASSISTANT, "", (call,)), user("y")], [Tool("find")])
    assert TOKENIZER.decode(ids) == "[find](7)"


def test_the_oldest_messages_are_dropped_and_counted():
    system = Message(Role.SYSTEM, "Be brief.")
    turns = [m for n in range(20) for m in (user(f"question {n}"), Message(Role.ASSISTANT, f"answer {n}"))]
    messages = [system, *turns, user("last")]
    whole = PROMPTS.encode(messages)
    assert PROMPTS.fit(messages, limit=len(whole)).truncated_messages == 0
    fitted = PROMPTS.fit(messages, limit=len(whole) - 1, overflow=Overflow.TRUNCATE_OLDEST)
    assert fitted.truncated_messages == 2
    assert fitted.token_ids == PROMPTS.encode([system, *turns[2:], user("last")])
    least = PROMPTS.encode([system, user("last")])
    fitted = PROMPTS.fit(messages, limit=len(least), overflow=Overflow.TRUNCATE_OLDEST)
    assert (fitted.token_ids, fitted.truncated_messages) == (least, 40)
    for overflow, match in ((Overflow.REJECT, "TRUNCATE_OLDEST"), (Overflow.TRUNCATE_OLDEST, "system prompt")):
        with pytest.raises(errors.InvalidArgument, match=match) as refused:
            PROMPTS.fit(messages, limit=len(least) - 1, overflow=overflow)
        assert refused.value.reason == "CONTEXT_OVERFLOW"


def test_what_a_template_refuses_and_a_model_without_one():
    prompts = ChatPrompts(build("{{ raise_exception('roles must alternate') }}"))
    with pytest.raises(errors.InvalidArgument, match="alternate"):
        prompts.encode([user("x")])
    bare = ChatPrompts(build(None))
    assert bare.template_digest == ""
    with pytest.raises(errors.FailedPrecondition, match="chat template"):
        bare.encode([user("x")])
    with pytest.raises(errors.InvalidArgument, match="surrogate"):
        PROMPTS.encode([user("\ud800")])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=40), min_size=1, max_size=4))
def test_a_conversation_is_tokenized_the_same_by_whoever_does_it(contents):
    messages = [user(text + SPECIAL[0]) for text in contents]
    texts = PROMPTS.texts(messages)
    assert all(texts)
    ids = [i for text in texts for i in TOKENIZER.backend_tokenizer.encode(text, add_special_tokens=False).ids]
    assert PROMPTS.encode(messages) == ids
    assert PROMPTS.fitted(ids, messages, limit=len(ids)) == PROMPTS.fit(messages, limit=len(ids))
    with pytest.raises(errors.InvalidArgument) as refused:
        PROMPTS.fitted(ids, messages, limit=len(ids) - 1)
    assert refused.value.reason == "CONTEXT_OVERFLOW"


def test_a_tokenizer_that_was_saved_with_padding_and_truncation_does_neither():
    left = build()
    left.backend_tokenizer.enable_padding(pad_id=7, length=None)
    left.backend_tokenizer.enable_truncation(5)
    messages = [user(f"a short one {SPECIAL[0]} and a longer one, which would be cut {SPECIAL[1]}")]
    assert len(PROMPTS.texts(messages)) > 2
    assert ChatPrompts(left).encode(messages) == PROMPTS.encode(messages)


def test_a_long_text_leaves_the_interpreter_to_others():
    text = "word 1 2 3. " * 200_000
    found = []
    thread = threading.Thread(target=lambda: found.append(PROMPTS.encode_text(text)))
    thread.start()
    turns = 0
    while thread.is_alive():
        thread.join(0.001)
        turns += 1
    assert turns > 20
    assert found[0] == TOKENIZER.backend_tokenizer.encode(text, add_special_tokens=False).ids
