"""LangChain against `ouroboros serve`: `pip install langchain-openai`. litellm takes the same address as
`litellm.completion(model="openai/NAME", api_base="http://127.0.0.1:8000/v1", api_key="none", …)`."""

import os

from langchain_openai import ChatOpenAI

chat = ChatOpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    model=os.environ.get("MODEL", "ouroboros"),
    max_tokens=48,
    temperature=0,
)
for piece in chat.stream("def is_prime(n):"):
    print(piece.content, end="", flush=True)
print()
