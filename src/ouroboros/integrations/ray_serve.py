"""The server on a Ray cluster: replicas of it, each with an engine of its own (docs/ray.md).

    serve run ouroboros.integrations.ray_serve:app target=T draft=D num_replicas=2
    ray.serve.run(ouroboros.ray_app(target="T", draft="D", num_replicas=2))

Two deployments: ``Ingress`` (one process, no model) and ``Replica``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from ouroboros.config import options_for
from ouroboros.config.checks import check_int, check_number, is_number
from ouroboros.errors import InputError

__all__ = ["app", "ray_app"]

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
BUSY = 0.75  # of the requests that an engine runs at once: with more on average another replica is started
UP, DOWN = 5.0, 300.0  # seconds that load must have been high, or low, before replicas come or go


def ray_app(
    target: str | None = None,
    draft: str | None = None,
    *,
    method: str = "ouroboros",
    options: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    draft_dtype: str = "auto",
    device: str = "auto",
    pool: str | None = None,
    num_replicas: int = 1,
    max_replicas: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    model_name: str = "ouroboros",
    api_keys: Sequence[str] = (),
    max_requests: int = 8,
    max_queue: int = 64,
    kv_memory: int | None = None,
    memory_dir: str | None = None,
    save_every: float = 30.0,
    request_timeout: float | None = 600.0,
    max_tokens: int | None = None,
) -> Any:
    """An application for ``ray.serve.run``. Every replica answers as ``ouroboros serve`` does.

    Args:
        target, draft, method, options, dtype, draft_dtype, device: as in ``ouroboros.load``; names that mean the same
            on every node. pool: a file of phrases that all requests read and none changes.
        num_replicas: at least; max_replicas: at most, by the length of the queue; None: always as many.
        num_cpus, num_gpus: of a replica; on a CPU it computes with so many threads.
        model_name, api_keys, max_requests, max_queue, kv_memory, request_timeout, max_tokens: of a replica, see
            ``server.settings``. memory_dir: where tenants' memories outlive the replicas, which read each other's every
            ``save_every`` seconds; a directory that all of them see. None: each keeps what its own requests leave.

    Raises:
        InputError: a value out of range, or ray is not installed.
    """
    for name in ("ray", "fastapi", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"ray_app needs {name}: pip install 'ouroboros-decoding[ray]'")
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    from ouroboros.integrations.ray_ingress import Ingress
    from ouroboros.integrations.ray_replica import Replica
    from ouroboros.server.settings import Settings

    options_for(method, options)
    check_int("num_replicas", num_replicas, 1)
    if max_replicas is not None:
        check_int("max_replicas", max_replicas, num_replicas)
    for name, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        check_number(name, value, is_number(value) and value >= 0, "a number of at least 0")
    settings = Settings(
        model_name=model_name,
        api_keys=tuple(api_keys),
        max_requests=max_requests,
        max_queue=max_queue,
        kv_memory=kv_memory,
        memory_dir=memory_dir,
        save_every=save_every,
        request_timeout=request_timeout,
        max_tokens=max_tokens,
    )
    most = max_replicas or num_replicas
    load: dict[str, Any] = {"target": target, "draft": draft, "method": method, "options": options, "device": device}
    load |= {"dtype": dtype, "draft_dtype": draft_dtype, "pool": pool, "pool_read_only": pool is not None}
    load["threads"] = max(1, int(num_cpus))
    scaling = {"min_replicas": num_replicas, "max_replicas": most, "initial_replicas": num_replicas}
    waits = {"upscale_delay_s": UP, "downscale_delay_s": DOWN}
    replicas = serve.deployment(Replica).options(
        name="Replica",
        num_replicas=num_replicas if max_replicas is None else "auto",
        autoscaling_config=None
        if max_replicas is None
        else AutoscalingConfig(target_ongoing_requests=BUSY * max_requests, **scaling, **waits),
        max_ongoing_requests=max_requests,
        max_queued_requests=max(1, max_queue) * most,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
    )
    ingress = serve.deployment(Ingress).options(
        name="Ingress", max_ongoing_requests=100_000, ray_actor_options={"num_cpus": 0}
    )
    shares = most if num_gpus == 0 else 1
    return ingress.bind(replicas.bind(load, settings, shares), settings.max_body)


def app(args: dict[str, str]) -> Any:
    """For ``serve run …:app name=value …``, the values being arguments of ``ray_app``; api_keys with commas between."""
    import click
    from pydantic import ValidationError, validate_call

    found: dict[str, Any] = dict(args)
    if "api_keys" in found:
        found["api_keys"] = tuple(found["api_keys"].split(","))
    try:
        return validate_call(ray_app)(**found)
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}, not {first['input']!r:.60}"
        raise click.ClickException(told) from None
    except InputError as error:
        raise click.ClickException(str(error)) from None
