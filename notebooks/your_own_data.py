# %% [markdown]
# # Your own data
#
# Three ways to have episodes: a folder of class folders, labelled arrays, or a function that draws a task. All give a
# `Source`, which `fit` and `evaluate` take. This notebook draws a data set of its own so that it needs nothing; it runs
# in about half a minute on two CPU cores.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from PIL import Image, ImageDraw

import jaxmeta as jm
from jaxmeta import losses, nn, tasks

# %% [markdown]
# ## A folder of class folders
#
# 24 polygons, of three, four and six corners in eight colours, ten pictures of each.

# %%
folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
for corners in (3, 4, 6):
    for colour in ("crimson", "seagreen", "royalblue", "orange", "purple", "black", "gold", "teal"):
        (folder / f"{colour}-{corners}").mkdir()
        for number in range(10):
            picture = Image.new("RGB", (40, 40), "white")
            turn, size, x, y = rng.uniform((0, 10, 16, 16), (360, 15, 24, 24))
            ImageDraw.Draw(picture).regular_polygon((x, y, size), corners, rotation=turn, fill=colour)
            picture.save(folder / f"{colour}-{corners}" / f"{number}.png")

classes = tasks.from_folder(folder, image_size=20, grayscale=False)
print(classes.examples.shape, classes.names[:3])

# %% [markdown]
# Classes to be judged by are set aside, and episodes drawn from the others.

# %%
train_classes, test_classes = tasks.split_classes(classes, test_share=0.25, seed=0)
train = tasks.episodes(train_classes, ways=5, shots=2, queries=4)
test = tasks.episodes(test_classes, ways=5, shots=2, queries=4)
learner = jm.prototypical(nn.Conv4(None, features=16, pool="stride"), ways=5)
result = jm.fit(learner, train, optax.adam(3e-3), steps=200, meta_batch=4, log_every=50, progress=False)
judged = jm.evaluate(learner, result.params, test, episodes=200)
print(f"accuracy {100 * judged.mean:.1f} ± {100 * judged.interval:.1f} % on {test_classes.names}")

# %%
support, query = test.sample(test.data, jax.random.key(0))
predicted = jnp.argmax(learner.predict(result.params, support, query.x, jax.random.key(0)), axis=1)
figure, axes = plt.subplots(5, 6, figsize=(5, 4.4))
for way, row in enumerate(axes):
    shown = [*support.x[way * 2 : way * 2 + 2], *query.x[way * 4 : way * 4 + 4]]
    for i, (axis, image) in enumerate(zip(row, shown, strict=True)):
        axis.imshow(image)
        axis.set(xticks=[], yticks=[])
        right = i < 2 or int(predicted[way * 4 + i - 2]) == way
        axis.set_title("support" if i < 2 else "right" if right else "wrong", fontsize="x-small", pad=2)
plt.show()

# %% [markdown]
# ## Arrays
#
# Any examples `[n, ...]` with integer labels. Here are vectors: each class is a direction in space.

# %%
labels = np.repeat(np.arange(60), 20)
vectors = rng.normal(size=(60, 16))[labels] + 0.7 * rng.normal(size=(1200, 16))
train_classes, test_classes = tasks.split_classes(tasks.from_arrays(vectors, labels, name="vectors"), test_share=0.3)
train, test = (tasks.episodes(part, ways=5, shots=1, queries=5) for part in (train_classes, test_classes))
learner = jm.maml(nn.MLP((32,), 5, norm=True), inner_optimizer=optax.sgd(0.5), steps=3)
result = jm.fit(learner, train, optax.adam(1e-3), steps=500, meta_batch=8, log_every=100, progress=False)
judged = jm.evaluate(learner, result.params, test, episodes=200)
print(f"accuracy {100 * judged.mean:.1f} ± {100 * judged.interval:.1f} %")

# %% [markdown]
# ## A function that draws a task
#
# `sample(data, key)` gives one `Episode`, unbatched, and runs on the device inside the compiled step. These tasks are
# lines of random slope and height.


# %%
def sample(data, key):
    slope_key, x_key = jax.random.split(key)
    slope, height = jax.random.uniform(slope_key, (2,), minval=-2.0, maxval=2.0)
    x = jax.random.uniform(x_key, (30, 1), minval=-1.0, maxval=1.0)
    y = slope * x + height
    return jm.Episode(jm.Batch(x[:5], y[:5]), jm.Batch(x[5:], y[5:]))


lines = tasks.Source(sample, (), {"name": "lines", "shots": 5})
learner = jm.maml(nn.MLP((32,), 1), inner_optimizer=optax.sgd(0.1), steps=3, loss=losses.mean_squared_error)
result = jm.fit(learner, lines, optax.adam(1e-3), steps=3000, meta_batch=16, log_every=500, progress=False)
judged = jm.evaluate(learner, result.params, lines, episodes=300)
print("mean squared error by inner step", [round(float(mean), 3) for mean, _ in judged.by_step])

# %% [markdown]
# ## What does not fit is said
#
# Errors come before anything is computed, and name the argument.

# %%
for attempt in (
    lambda: tasks.episodes(test_classes, ways=50, shots=1, queries=5),
    lambda: tasks.episodes(test_classes, ways=5, shots=10, queries=15),
    lambda: tasks.from_arrays(vectors, labels[:-1]),
    lambda: tasks.from_folder(folder / "nowhere"),
):
    try:
        attempt()
    except (ValueError, FileNotFoundError) as error:
        print(f"{type(error).__name__}: {str(error).replace(str(folder), 'FOLDER')}")
