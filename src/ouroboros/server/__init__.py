"""The server: OpenAI's API over the engine. Starlette, FastAPI and pydantic are known here alone (extra ``server``)."""
