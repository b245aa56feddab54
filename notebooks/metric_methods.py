# %% [markdown]
# # Learning to compare
#
# Four methods classify a query by one formula,
#
# $$P(y \mid x, S) = \sum_i k(x, x_i)\, y_i,$$
#
# and differ in what the $x_i$ are and in the kernel $k$:
#
# | | the $x_i$ | $k(x, x_i)$ |
# |---|---|---|
# | Siamese | support embeddings | probability that both show one class; each class's best image alone |
# | Matching | support embeddings | softmax of the cosines |
# | Prototypical | class means | softmax of minus the squared distances |
# | Relation | class sums of feature maps | a network's score |
#
# Here all four learn from synthetic characters and look at one and the same episode. It takes a small network and a
# short training, so the numbers say nothing about the methods; `jaxmeta train prototypical --dataset omniglot` does.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxmeta as jm
from jaxmeta import analysis, metric, nn, tasks

# %% [markdown]
# ## Episodes
#
# Training episodes have 10 classes, test episodes 5. The parameters of these methods serve any number of classes.

# %%
train = tasks.episodes(tasks.glyphs("train", classes=120), ways=10, shots=1, queries=3)
test = tasks.episodes(tasks.glyphs("test", classes=120), ways=5, shots=2, queries=5)

# %%
encoder = nn.Conv4(None, features=16, pool="stride")
learners = {
    "siamese": lambda ways: jm.siamese(nn.Conv4(64, features=16, pool="stride"), ways=ways),
    "matching": lambda ways: jm.matching(encoder, temperature=0.1, ways=ways),
    "prototypical": lambda ways: jm.prototypical(encoder, ways=ways),
    "relation": lambda ways: jm.relation(
        metric.RelationEncoder(features=8), metric.RelationModule(features=8), ways=ways
    ),
}
params = {}
for name, make in learners.items():
    result = jm.fit(make(10), train, optax.adam(3e-3), steps=150, meta_batch=2, log_every=50, progress=False)
    params[name] = result.params
    found = jm.evaluate(make(5), result.params, test, episodes=50)
    print(f"{name:13} accuracy {100 * found.mean:.1f} ± {100 * found.interval:.1f} % on {found.episodes} test episodes")

# %% [markdown]
# ## What each kernel looks like
#
# Rows are the queries of one episode, five of each class; columns are what they are compared with. The order of
# classes is the same, so a good kernel shows a staircase. Columns of the first two are the ten support images, those of
# the last two the five classes.

# %%
support, query = test.sample(test.data, jax.random.key(1))
figure, axes = plt.subplots(1, 4, figsize=(12, 4), layout="constrained")
for axis, (name, make) in zip(axes, learners.items(), strict=True):
    compared = make(5).compare(params[name], support, query.x, jax.random.key(0))
    picture = axis.imshow(np.exp(compared.log_kernel), aspect="auto", vmin=0)
    axis.set(title=name, xlabel="class" if compared.labels is None else "support image")
    figure.colorbar(picture, ax=axis)
axes[0].set_ylabel("query")
plt.show()

# %% [markdown]
# Summing a kernel over the references of each class gives the prediction of every method. Written out, as the product
# of the kernel with one-hot labels; a reference that stands for a class has that class's label:

# %%
for name, make in learners.items():
    learner = make(5)
    compared = learner.compare(params[name], support, query.x, jax.random.key(0))
    labels = np.arange(5) if compared.labels is None else compared.labels
    by_hand = jnp.exp(compared.log_kernel) @ jax.nn.one_hot(labels, 5)
    predicted = jnp.exp(learner.predict(params[name], support, query.x, jax.random.key(0)))
    print(f"{name:13} largest difference {jnp.abs(by_hand - predicted).max():.1e}")

# %% [markdown]
# ## Prototypes
#
# The embedding of the episode on its two main axes. The references are the prototypes, the means of the two triangles
# of their colour.

# %%
compared = learners["prototypical"](5).compare(params["prototypical"], support, query.x, jax.random.key(0))
analysis.plot_embedding(compared, support.y, query.y)

# %% [markdown]
# ## Why matching wants a temperature
#
# Cosines of features after a ReLU lie between 0 and 1. A softmax of them cannot give one of $N$ classes more than
# $e / (e + N - 1)$, however well the embedding separates them.


# %%
def best_probability(ways: int, temperature: float) -> float:
    """The largest probability with vectors as far apart as such features can be."""
    apart = jm.Batch(jnp.eye(ways), jnp.arange(ways))
    untouched = nn.MLP((), ways, kernel_init=lambda *_: jnp.eye(ways), bias_init=jax.nn.initializers.zeros)
    learner = jm.matching(untouched, temperature=temperature, ways=ways)
    start = learner.init(jax.random.key(0), jm.Episode(apart, apart))
    return float(jnp.exp(learner.predict(start, apart, apart.x, jax.random.key(0))).max())


for ways in (5, 20):
    for temperature in (1.0, 0.1):
        print(f"{ways:2} ways, temperature {temperature}: at best {best_probability(ways, temperature):.3f}")
