"""What a server is told when it starts. An instance that exists is valid."""

from __future__ import annotations

from dataclasses import dataclass

from ouroboros.config.checks import check_int, check_number, is_number
from ouroboros.errors import InputError

__all__ = ["LOOPBACK", "Settings"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Attributes:
        model_name: what ``/v1/models`` says, and requests must name, if they name one. host, port: the address.
        api_keys: any of them lets a request in; none: every request is let in.
        max_requests, max_queue: requests that run, and that may wait beside them; of more, 429.
        kv_memory: bytes of all KV caches; None: half of what is free. memory_dir: where the tenants' memories lie;
            None: they end with the server. request_timeout: seconds after which a request ends with what it has; None:
            never.
        grace: seconds that running requests have after SIGTERM. cors_origins: whose pages may ask.
        max_body: bytes. max_messages, max_samples (``n``), max_tokens (None: the model's context), max_schema
            (characters of a schema, of all tools), max_stops, max_prompts (of one completion): of a request.
        neighbours: whether the directories beside ``memory_dir`` are of servers with the same tenants, which read each
            other's. max_tenants: memories that are held in RAM. save_every: seconds between two snapshots of what has
            changed.
        tool_format: see tool_formats.py; None: what the chat template looks like. log_prompts: the log holds prompts.

    Raises:
        InputError: a value that is out of range.
    """

    model_name: str = "ouroboros"
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    max_requests: int = 8
    max_queue: int = 64
    kv_memory: int | None = None
    memory_dir: str | None = None
    neighbours: bool = False
    request_timeout: float | None = 600.0
    grace: float = 20.0
    cors_origins: tuple[str, ...] = ()
    max_body: int = 8 << 20
    max_messages: int = 2048
    max_samples: int = 16
    max_tokens: int | None = None
    max_schema: int = 64 << 10
    max_stops: int = 16
    max_prompts: int = 64
    max_tenants: int = 64
    save_every: float = 30.0
    tool_format: str | None = None
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not self.model_name or not self.model_name.isprintable():
            raise InputError(f"model_name must be a printable name, not {self.model_name!r}")
        check_int("port", self.port, 0, 65535)
        check_int("max_requests", self.max_requests, 1)
        check_int("max_queue", self.max_queue, 0)
        names = "max_body", "max_messages", "max_samples", "max_schema", "max_stops", "max_prompts", "max_tenants"
        for name in names:
            check_int(name, getattr(self, name), 1)
        if self.max_tokens is not None:
            check_int("max_tokens", self.max_tokens, 1)
        for name in ("request_timeout", "save_every", "grace"):
            value = getattr(self, name)
            fits = name == "request_timeout" if value is None else is_number(value) and value > 0
            check_number(name, value, fits, "a number above 0")
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError("an API key must be printable ASCII text without spaces, and not empty")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK
