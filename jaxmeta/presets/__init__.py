"""The papers' settings, and what builds a learner, its tasks and its optimiser from them.

`settings("maml", "omniglot", ways=20)` looks a preset up; `dataclasses.replace` changes it; `build` turns it into
the arguments of `jaxmeta.fit` and `jaxmeta.evaluate`. `load` builds a run of `jaxmeta train` again from its folder.

Each family of methods has a file with its papers' settings, its learners and its outer optimisers: a `Family`.
"""

from jaxmeta.presets._build import METHODS, Setup, build, datasets_of, estimators, family_of, settings
from jaxmeta.presets._load import Loaded, load, settings_of
from jaxmeta.presets._metric import siamese_twin
from jaxmeta.presets._settings import DATASETS, Family, Settings

__all__ = [
    "DATASETS",
    "METHODS",
    "Family",
    "Loaded",
    "Settings",
    "Setup",
    "build",
    "datasets_of",
    "estimators",
    "family_of",
    "load",
    "settings",
    "settings_of",
    "siamese_twin",
]
