"""The official anthropic client, unchanged, against the server: python anthropic_client.py BASE_URL."""

import sys

import anthropic

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="test-key", max_retries=0, timeout=60)
QUESTION = [{"role": "user", "content": "What is 12+7?"}]


def message():
    reply = client.messages.create(model="m", max_tokens=200, messages=QUESTION, extra_body={"temperature": 0})
    assert [block.type for block in reply.content] == ["thinking", "text"] and reply.content[1].text
    assert reply.stop_reason in ("end_turn", "max_tokens") and reply.usage.output_tokens > 0
    again = QUESTION + [{"role": "assistant", "content": reply.content}, {"role": "user", "content": "Now add 7."}]
    assert client.messages.create(model="m", max_tokens=100, messages=again).content


def thinking():
    def thought(**options):
        reply = client.messages.create(model="m", max_tokens=1300, messages=QUESTION, thinking=options, extra_body={"temperature": 0})
        return [block.type for block in reply.content]

    assert thought(type="disabled") == ["text"]
    assert thought(type="enabled", budget_tokens=1024) == ["thinking", "text"]


def stream():
    whole = client.messages.create(model="m", max_tokens=200, messages=QUESTION, extra_body={"temperature": 0})
    with client.messages.stream(model="m", max_tokens=200, messages=QUESTION, extra_body={"temperature": 0}) as events:
        kinds = {event.type for event in events}
        final = events.get_final_message()
    assert {"message_start", "content_block_start", "content_block_delta", "message_stop"} <= kinds
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].thinking == whole.content[0].thinking
    assert final.content[1].text == whole.content[1].text and final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def stops():
    reply = client.messages.create(
        model="m", max_tokens=300, messages=QUESTION, extra_body={"temperature": 0}, system="Think briefly.", stop_sequences=["Answer"]
    )
    assert reply.stop_reason == "stop_sequence" and reply.stop_sequence == "Answer", reply


def count():
    counted = client.messages.count_tokens(model="m", messages=QUESTION).input_tokens
    usage = client.messages.create(model="m", max_tokens=1, messages=QUESTION).usage
    # What was read from the cache is counted apart.
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def errors():
    for kind, fields in [
        (anthropic.BadRequestError, dict(max_tokens=0)),
        (anthropic.BadRequestError, dict(extra_body={"nonsense": 1})),
        (anthropic.NotFoundError, dict(model="other")),
    ]:
        try:
            client.messages.create(**{"model": "m", "max_tokens": 5, "messages": QUESTION, **fields})
        except kind as error:
            assert error.body["type"] == "error" and error.request_id, error
        else:
            raise AssertionError(f"{fields} was taken")
    try:
        client.with_options(api_key="wrong").messages.create(model="m", max_tokens=5, messages=QUESTION)
    except anthropic.AuthenticationError:
        pass
    else:
        raise AssertionError("a wrong key was taken")


for test in [message, thinking, stream, stops, count, errors]:
    test()
    print("ok", test.__name__)
