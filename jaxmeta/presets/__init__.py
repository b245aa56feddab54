"""The papers' settings, and what builds a learner, its tasks and its optimiser from them.

`settings("maml", "omniglot", ways=20)` looks a preset up; `dataclasses.replace` changes it; `build` turns it into
the arguments of `jaxmeta.fit` and `jaxmeta.evaluate`.

Each family of methods has a file with its papers' settings, its learners and its outer optimisers: a `Family`.
"""

from jaxmeta.presets._build import METHODS, Setup, build, datasets_of, estimators, family_of, settings
from jaxmeta.presets._metric import siamese_twin
from jaxmeta.presets._settings import DATASETS, Family, Settings

__all__ = [
    "DATASETS",
    "METHODS",
    "Family",
    "Settings",
    "Setup",
    "build",
    "datasets_of",
    "estimators",
    "family_of",
    "settings",
    "siamese_twin",
]
