"""Where episodes come from: distributions over tasks, sampled on the device, inside `jax.jit`."""

from jaxmeta.tasks._affine import affine
from jaxmeta.tasks._arrays import from_arrays, from_folder, split_classes
from jaxmeta.tasks._augment import affine_distortions, quarter_turns, turns_and_shifts
from jaxmeta.tasks._glyphs import glyphs
from jaxmeta.tasks._lake import draw_runs, hausdorff_baseline, lake_runs, modified_hausdorff
from jaxmeta.tasks._omniglot import Split, Subset, omniglot, prepare_omniglot
from jaxmeta.tasks._sampler import Classes, Rotations, episodes
from jaxmeta.tasks._sinusoid import sinusoid
from jaxmeta.tasks._source import Source

__all__ = [
    "Classes",
    "Rotations",
    "Source",
    "Split",
    "Subset",
    "affine",
    "affine_distortions",
    "draw_runs",
    "episodes",
    "from_arrays",
    "from_folder",
    "glyphs",
    "hausdorff_baseline",
    "lake_runs",
    "modified_hausdorff",
    "omniglot",
    "prepare_omniglot",
    "quarter_turns",
    "sinusoid",
    "split_classes",
    "turns_and_shifts",
]
