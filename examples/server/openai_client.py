"""OpenAI's client against `ouroboros serve`: a chat, a stream, what was drafted, and predicted output."""

import os

from openai import OpenAI

url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id
question = [{"role": "user", "content": "def fibonacci(n):"}]

answer = client.chat.completions.create(model=model, messages=question, max_tokens=48, temperature=0)
print(answer.choices[0].message.content)
print(f"# {answer.usage.completion_tokens} tokens, {answer.choices[0].finish_reason}\n")

# What is ours goes into extra_body; `draft: False` decodes plainly, and writes the same.
stream = client.chat.completions.create(
    model=model,
    messages=question,
    max_tokens=48,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
    extra_body={"return_sources": True},
)
sources = []
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
        sources += choice.model_extra.get("sources") or []
drafted = sum(token["source"] != "bonus" for token in sources)
print(f"\n# {drafted} of {len(sources)} tokens were drafted\n")

# An edit: most of the answer is known, so it is said, and costs little where it is right.
code = "def add(a, b):\n    return a + b\n"
edited = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": f"{code}\n{code}"}],
    prediction={"type": "content", "content": code},
    max_tokens=32,
    temperature=0,
)
print(edited.choices[0].message.content)
details = edited.usage.completion_tokens_details
print(f"# {details.accepted_prediction_tokens} predicted tokens were right")
