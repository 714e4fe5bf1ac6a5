"""What Prometheus reads at ``/metrics``. Names of drafting are vLLM's, under this project's prefix.

A step that asked the target for the next token alone, of a request that may draft, is counted as
``spec_decode_num_undrafted_steps``: drafting nothing on purpose looks other than drafting that never works.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ouroboros.serving.engine import EngineLoad
from ouroboros.stats import Stats

__all__ = ["Metrics"]

PREFIX = "ouroboros:"
TENANTS = 20  # that have a label of their own; the others are one
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


class Metrics:
    """Of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, told, labels, registry=registry)

        def gauge(name: str, told: str, *labels: str) -> Gauge:
            return Gauge(PREFIX + name, told, labels, registry=registry)

        def histogram(name: str, told: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(PREFIX + name, told, registry=registry, buckets=buckets)

        self._running = gauge("num_requests_running", "Requests that run.")
        self._waiting = gauge("num_requests_waiting", "Requests that wait for their turn.")
        self._bytes = gauge("kv_cache_bytes", "Bytes of all KV caches, those kept for later requests among them.")
        self._kept = gauge("kv_caches_kept", "Caches of ended requests that are kept.")
        self._phrases = gauge("memory_phrases", "Phrases of tenants' memories in RAM.", "tenant")
        self._memories = gauge("memories", "Tenants' memories in RAM.")
        self._finished = counter("request_success", "Texts that have ended.", "finished_reason")
        self._refused = counter("request_refused", "Requests that were refused.", "status")
        self._ttft = histogram("time_to_first_token_seconds", "From the request to its first text.", SECONDS)
        self._tpot = histogram("time_per_output_token_seconds", "Decoding, for each token.", FAST)
        self._whole = histogram("e2e_request_latency_seconds", "From the request to its end.", SECONDS)
        self._queue = histogram("request_queue_time_seconds", "Until a request's turn came.", SECONDS)
        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._cached = counter("cached_prompt_tokens", "Tokens of prompts that a cache held already.")
        self._new = counter("generation_tokens", "Tokens that were written.")
        self._forwards = counter("target_forwards", "Steps of the target model.")
        self._drafts = counter("spec_decode_num_drafts", "Steps with a draft.")
        self._plain = counter("spec_decode_num_undrafted_steps", "Steps that chose to draft nothing.")
        self._offered = counter("spec_decode_num_draft_tokens", "Tokens that were drafted.")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Drafted tokens that the target took.")
        told = "Drafted tokens that the target took, by their place in the draft."
        self._positions = counter("spec_decode_num_accepted_tokens_per_pos", told, "position")
        self._offered_of = counter("spec_decode_num_draft_tokens_by_source", "Drafted tokens, by source.", "source")
        self._accepted_of = counter("spec_decode_num_accepted_tokens_by_source", "Those taken, by source.", "source")

    def first(self, seconds: float) -> None:
        """The first text of a request has come."""
        self._ttft.observe(seconds)

    def finished(self, stats: Stats, reason: str, seconds: float) -> None:
        """A text has ended, so long after it was asked for."""
        self._finished.labels(reason).inc()
        self._whole.observe(seconds)
        self._queue.observe(
            max(0.0, seconds - stats.prefill_seconds - stats.draft_prefill_seconds - stats.decode_seconds)
        )
        if stats.new_tokens:
            self._tpot.observe(stats.decode_seconds / stats.new_tokens)
        self._prompt.inc(stats.prompt_tokens)
        self._cached.inc(stats.cached_tokens)
        self._new.inc(stats.new_tokens)
        self._forwards.inc(stats.target_forwards)
        self._drafts.inc(stats.target_forwards - stats.plain_forwards)
        if stats.method != "autoregressive":
            self._plain.inc(stats.plain_forwards)
        self._offered.inc(stats.draft_tokens)
        self._accepted.inc(stats.accepted_tokens)
        for position, count in enumerate(stats.accepted_by_depth):
            self._positions.labels(str(position)).inc(count)
        for source, count in stats.draft_tokens_by_origin.items():
            self._offered_of.labels(source).inc(count)
        for source, count in stats.accepted_by_origin.items():
            self._accepted_of.labels(source).inc(count)

    def failed(self, reason: str) -> None:
        """A text ended without a result: ``error`` or ``cancelled``."""
        self._finished.labels(reason).inc()

    def refused(self, status: int) -> None:
        """A request was not let in."""
        self._refused.labels(str(status)).inc()

    def text(self, load: EngineLoad, phrases: Mapping[str, int]) -> bytes:
        """All of it, as Prometheus reads it."""
        self._running.set(load.running)
        self._waiting.set(load.waiting)
        self._bytes.set(load.kv_bytes)
        self._kept.set(load.kept)
        self._memories.set(len(phrases))
        self._phrases.clear()
        largest = sorted(phrases.items(), key=lambda one: (-one[1], one[0]))
        for name, count in largest[:TENANTS]:
            self._phrases.labels(name).set(count)
        if len(largest) > TENANTS:
            self._phrases.labels("others").set(sum(count for _, count in largest[TENANTS:]))
        return generate_latest(self._registry)
