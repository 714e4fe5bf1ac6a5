"""Every error that a user can meet, in one tree.

    OuroborosError
    ├── InputError (also a ValueError)   a prompt, a parameter or an option that is not allowed
    ├── LoadError                        a checkpoint, a tokenizer or a pair of models that cannot be used
    │   └── UnsupportedArchitecture      sound, as far as one can tell, but not what the native decoder computes
    ├── ModelError                       a model's answer is no number: nothing can be drawn from it
    └── PoolFileError                    a file that is no phrase pool, or a pool of another vocabulary

Each message is one line that names the value at fault and what is allowed, so that the command line can print it
as it is. A broken invariant of the code itself is an ``assert`` and never one of these.
"""

from __future__ import annotations

__all__ = ["InputError", "LoadError", "ModelError", "OuroborosError", "PoolFileError", "UnsupportedArchitecture"]


class OuroborosError(Exception):
    """The root: catch this to catch everything that this library raises on purpose."""


class InputError(OuroborosError, ValueError):
    """A value that the caller gave is not allowed."""


class LoadError(OuroborosError):
    """A checkpoint, a tokenizer or a pair of models cannot be used."""


class UnsupportedArchitecture(LoadError):  # noqa: N818 - it is an error by its parent's name
    """A model that the native decoder does not compute, by its type, a setting, or because it is quantised."""


class ModelError(OuroborosError):
    """A model's answer is NaN or infinite, while a text is decoded."""


class PoolFileError(OuroborosError):
    """A file is no phrase pool, is damaged, or belongs to another vocabulary."""
