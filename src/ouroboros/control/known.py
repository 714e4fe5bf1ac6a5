"""What the controller is told of a pair's costs when it is loaded: the saved profile of each model, or a short look.

``ouroboros profile`` measures with care and saves; where nobody did, a few forwards of each size are timed, for a
second or two. What forwards really take is watched while decoding (see controller.py).
"""

from __future__ import annotations

from ouroboros.control.cost import CostProfile, Costs, load_profile, measure, profile_path
from ouroboros.models.base import CausalModel

__all__ = ["known_costs", "short_look"]

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 64)
CONTEXT = 64
PATIENCE = 1.5  # seconds a model


def known_costs(target: CausalModel, draft: CausalModel) -> Costs:
    """T(n) of both models on this machine."""
    return Costs(_known(target), _known(draft))


def _known(model: CausalModel) -> CostProfile:
    return load_profile(profile_path(model.info)) or short_look(model)


def short_look(model: CausalModel, patience: float = PATIENCE) -> CostProfile:
    """A profile of few sizes at one context, measured in about ``patience`` seconds."""
    context = max(1, min(CONTEXT, model.info.max_positions // 2))
    rows = [n for n in ROWS if n + context <= model.info.max_positions] or [1]
    return measure(model, rows, [context], repeats=4, patience=patience, typical=min)  # the machine may be busy
