"""Trains memory-augmented networks on Omniglot and judges them by presentation, as the paper does.

    python benchmarks/mann.py --out RUN                       # LRUA, one-hot labels
    python benchmarks/mann.py --addressing none --out RUN     # the LSTM baseline
    python benchmarks/mann.py --code strings --out RUN

5 classes x 10 drawings of 20 x 20 pixels in one sequence, 1,200 characters in four turns each for training, turned and
shifted a little, and the other 423 for the test. `jaxmeta train mann --dataset omniglot` does the same at a rate that
does not fall, and for fewer steps.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import optax

from jaxmeta import augmented, episode, fit, memory, tasks
from jaxmeta.cli._commands import set_up_jax

INSTANCES, EPISODES = 10, 16  # presentations of a class; episodes in a training step


def source(subset: tasks.Subset, ways: int) -> tasks.Source:
    rotations = "classes" if subset == "trainval" else "none"
    classes = tasks.omniglot("vinyals", subset, image_size=20)
    return tasks.episodes(classes, ways=ways, shots=1, queries=INSTANCES - 1, rotations=rotations)


def judge(
    model: memory.MANN, params: object, test: tasks.Source, *, ways: int, code: memory.Code, episodes: int, seed: int
) -> tuple[np.ndarray, float | None]:
    """Accuracy at each presentation in each test episode, `[episodes, instances]`, and how sharply it reads.

    That is the largest weight of a read, on average; 1 / slots where all are read alike. None without a memory.
    """

    @jax.jit
    def one(key: jax.Array, data: object) -> tuple[jax.Array, jax.Array | None]:
        sample_key, read_key = jax.random.split(key)
        batch = episode.concatenate(*test.sample(data, sample_key))
        reading = memory.read_episode(model, params, batch, read_key, ways=ways, code=code)
        accuracy = memory.by_instance(reading.right, reading.labels, INSTANCES)
        return accuracy, None if reading.trace is None else reading.trace.read_weights.max(-1).mean()

    keys = jax.random.split(jax.random.key(seed), episodes)
    accuracy, largest = jax.lax.map(functools.partial(one, data=test.data), keys, batch_size=50)
    return np.asarray(accuracy), None if largest is None else float(largest.mean())


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--addressing", default="lrua", choices=("lrua", "ntm", "none"))
    parser.add_argument("--controller", default="lstm", choices=("lstm", "feedforward"))
    parser.add_argument("--written", default="own", choices=("own", "key"))
    parser.add_argument("--code", default="one_hot", choices=("one_hot", "strings"))
    parser.add_argument("--input-scale", type=float, default=4.0, help="how wide the images' weights start")
    parser.add_argument("--strength", type=float, default=10.0, help="LRUA's inverse temperature; 1 in the paper")
    parser.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, default=True, help="turn and shift training images"
    )
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="Adam's; it falls to 0 in the last fifth")
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(words)


def main() -> None:
    set_up_jax()
    given = arguments()
    model = memory.MANN(
        addressing=given.addressing,
        controller=given.controller,
        written=given.written,
        input_scale=given.input_scale,
        strength=given.strength,
    )
    learner = memory.mann(model, ways=given.ways, code=given.code)
    if given.augment:
        learner = augmented(learner, tasks.turns_and_shifts())
    fall = max(1, given.steps // 5)
    fallen = optax.linear_schedule(given.learning_rate, 0.0, fall)
    rate = optax.join_schedules([optax.constant_schedule(given.learning_rate), fallen], [given.steps - fall])
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(rate))
    result = fit(
        learner,
        source("trainval", given.ways),
        optimizer,
        steps=given.steps,
        meta_batch=EPISODES,
        chunk=8,
        run_dir=given.out,
        resume=True,
        log_every=100,
        checkpoint_every=1000,
        seed=given.seed,
        config={"settings": {name: value for name, value in vars(given).items() if name not in ("out", "episodes")}},
        progress=False,
    )
    found, largest = judge(
        model,
        result.params,
        source("test", given.ways),
        ways=given.ways,
        code=given.code,
        episodes=given.episodes,
        seed=given.seed,
    )
    report = {
        "mean": [round(float(value), 4) for value in found.mean(0)],
        "interval": [round(float(1.96 * value / len(found) ** 0.5), 4) for value in found.std(0, ddof=1)],
        "episodes": len(found),
        "seed": given.seed,
        "largest_read_weight": None if largest is None else round(largest, 4),
    }
    (given.out / "by_instance.json").write_text(json.dumps(report) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
