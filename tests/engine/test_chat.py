"""Chat messages, through the checkpoint's own template."""

import pytest

from engine.errors import BadRequest
from engine.text import Text
from tests.checkpoints import byte_tokenizer

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role not in ('user', 'assistant') %}{{ raise_exception('no ' ~ m.role) }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


def chat_text() -> Text:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return Text(tokenizer)


def test_a_chat_ends_where_the_assistant_begins() -> None:
    text = chat_text()
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]

    assert text.decode(text.encode_chat(messages)) == "[user] hi\n[assistant] yes?\n[assistant] "


@pytest.mark.parametrize(
    ("text", "messages", "complaint"),
    [
        (chat_text(), [], "has no message"),
        (Text(byte_tokenizer()), [{"role": "user", "content": "hi"}], "no chat template"),
        (chat_text(), [{"role": "king", "content": "hi"}], "no king"),
    ],
)
def test_a_chat_that_the_template_refuses_is_a_bad_request(
    text: Text, messages: list[dict[str, str]], complaint: str
) -> None:
    with pytest.raises(BadRequest, match=complaint) as refused:
        text.encode_chat(messages)

    assert refused.value.field == "chat"
