"""The official openai client, unchanged, against the server: python openai_client.py BASE_URL."""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="test-key", max_retries=0, timeout=60)
QUESTION = [{"role": "user", "content": "What is 12+7?"}]


def models():
    assert [m.id for m in client.models.list()] == ["m"]
    assert client.models.retrieve("m").owned_by == "ponder"


def chat():
    reply = client.chat.completions.create(
        model="m", messages=QUESTION, max_completion_tokens=200, seed=1, temperature=0, n=2, user="me"
    )
    assert len(reply.choices) == 2 and reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content and reply.choices[0].finish_reason in ("stop", "length")
    assert reply.choices[0].message.reasoning_content, "the bundled model thinks"
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= 0


def stream():
    fields = dict(model="m", messages=QUESTION, max_tokens=200, temperature=0)
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    thought = "".join(getattr(c.choices[0].delta, "reasoning_content", None) or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content
    assert thought == whole.choices[0].message.reasoning_content
    assert chunks[-1].usage == whole.usage and all(c.usage is None for c in chunks[:-1])
    # Leaving in the middle is no error.
    with client.chat.completions.create(**fields, stream=True) as leaving:
        next(iter(leaving))


def effort():
    def reasoning(effort):
        reply = client.chat.completions.create(model="m", messages=QUESTION, reasoning_effort=effort, max_tokens=400)
        return reply.usage.completion_tokens_details.reasoning_tokens

    assert reasoning("none") == 0
    assert reasoning("minimal") <= 128
    reply = client.chat.completions.create(
        model="m", messages=QUESTION, max_tokens=200, extra_body={"thinking_token_budget": 7}
    )
    assert reply.usage.completion_tokens_details.reasoning_tokens <= 7


def completions():
    reply = client.completions.create(model="m", prompt=["1+1=", "2+2="], max_tokens=5, echo=True)
    assert [c.text[:4] for c in reply.choices] == ["1+1=", "2+2="]
    said = [c.choices[0].text for c in client.completions.create(model="m", prompt="1+1=", stream=True) if c.choices]
    assert said


def responses():
    reply = client.responses.create(model="m", input="What is 12+7?", max_output_tokens=200, temperature=0)
    assert reply.status in ("completed", "incomplete") and reply.output_text
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert reply.usage.output_tokens_details.reasoning_tokens > 0
    with client.responses.stream(model="m", input="What is 12+7?", max_output_tokens=200, temperature=0) as events:
        kinds = {event.type for event in events}
        final = events.get_final_response()
    assert "response.reasoning_text.delta" in kinds and "response.output_text.delta" in kinds
    assert final.output_text == reply.output_text


def errors():
    cases = [
        (openai.BadRequestError, dict(messages=QUESTION, temperature=-1), "temperature"),
        (openai.BadRequestError, dict(messages=QUESTION, extra_body={"nonsense": 1}), "nonsense"),
        (openai.BadRequestError, dict(messages=[]), "messages"),
        (openai.NotFoundError, dict(messages=QUESTION, model="other"), "model"),
    ]
    for kind, fields, param in cases:
        try:
            client.chat.completions.create(**{"model": "m", **fields})
        except kind as error:
            assert error.param == param and error.request_id, error
        else:
            raise AssertionError(f"{fields} was taken")
    try:
        client.with_options(api_key="wrong").models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key was taken")


for test in [models, chat, stream, effort, completions, responses, errors]:
    test()
    print("ok", test.__name__)
