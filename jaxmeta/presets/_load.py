"""A run of `jaxmeta train`, built again from its folder."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxmeta.learner import Params
from jaxmeta.presets._build import Setup, build
from jaxmeta.presets._settings import Settings
from jaxmeta.training import load_params
from jaxmeta.training._run import read_config


class Loaded(NamedTuple):
    """A run.

    Attributes:
        settings: what it was built from.
        setup: its learners, sources of episodes and outer optimiser.
        params: the meta-parameters of its newest checkpoint.
        step: the outer step of that checkpoint.
    """

    settings: Settings
    setup: Setup
    params: Params
    step: int


def settings_of(run_dir: str | os.PathLike[str]) -> Settings:
    """The settings that a run was trained with.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the run was not made by `jaxmeta train`.
    """
    return _settings(run_dir, read_config(Path(run_dir)))


def load(run_dir: str | os.PathLike[str], settings: Settings | None = None) -> Loaded:
    """Loads a run, to predict with it or to judge it.

        run = presets.load("runs/proto")
        run.setup.test_learner.predict(run.params, support, query_x, jax.random.key(0))

    Args:
        run_dir: the run's folder.
        settings: to build it with; None for those it was trained with, `settings_of(run_dir)`. Others may change what
            does not change its meta-parameters: shots of test episodes and, for methods that learn to compare, ways;
            inner steps; where data are.

    Raises:
        FileNotFoundError: there is no run, or it has not reached its first checkpoint.
        ValueError: the run was not made by `jaxmeta train`, the data are not those it was trained on, or the checkpoint
            is damaged or does not fit the settings.
    """
    config = read_config(Path(run_dir))
    trained = _settings(run_dir, config)
    settings = settings or trained
    if settings.train_ways is None:
        settings = dataclasses.replace(settings, train_ways=trained.ways)
    setup = build(settings)
    if config["source"].get("sha256") != setup.train_source.info.get("sha256"):
        raise ValueError(
            f"the images of {settings.dataset} are not those that {run_dir} was trained on, and other classes "
            "may be among those to be judged by"
        )
    example = jax.eval_shape(setup.train_source.sample, setup.train_source.data, jax.random.key(0))
    like = jax.eval_shape(setup.learner.init, jax.random.key(0), example)
    return Loaded(settings, setup, *load_params(run_dir, like, setup.optimizer))


def _settings(run_dir: str | os.PathLike[str], config: dict[str, Any]) -> Settings:
    if "method" not in config.get("settings", {}):
        raise ValueError(f"{Path(run_dir) / 'config.json'} has no settings: the run was not made by jaxmeta train")
    if config.get("without"):
        raise ValueError(f"{run_dir} was trained without its {config['without']} level, which no settings tell")
    return Settings(**config["settings"])
