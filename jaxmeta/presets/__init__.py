"""The papers' settings, and what builds a learner, its tasks and its optimiser from them.

`settings("maml", "omniglot", ways=20)` looks a preset up; `dataclasses.replace` changes it; `build` turns it into
the arguments of `jaxmeta.fit` and `jaxmeta.evaluate`.
"""

from jaxmeta.presets._build import Setup, build, estimators
from jaxmeta.presets._papers import DATASETS, METHODS, Settings, settings

__all__ = ["DATASETS", "METHODS", "Settings", "Setup", "build", "estimators", "settings"]
