# %% [markdown]
# # Quickstart: from a sinusoid to Omniglot
#
# A meta-learner here is three pure functions over one episode: `init`, `meta_grad`, `predict`. This notebook trains one
# on sinusoids and one on handwritten characters, in about a minute on two CPU cores. The characters are the real
# Omniglot; where it is not there yet, 18 MB are downloaded.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxmeta as jm
from jaxmeta import analysis, losses, nn, tasks

# %% [markdown]
# ## Regression: MAML on sinusoids
#
# A task is a sinusoid of random amplitude and phase; its support set, ten points of it. MAML looks for parameters from
# which one gradient step on the support set predicts the rest.

# %%
source = tasks.sinusoid(shots=10)
learner = jm.maml(
    nn.MLP((40, 40), 1), inner_optimizer=optax.sgd(0.01), steps=1, eval_steps=10, loss=losses.mean_squared_error
)
result = jm.fit(learner, source, optax.adam(1e-3), steps=15_000, meta_batch=25, log_every=1500, progress=False)

judged = jm.evaluate(learner, result.params, tasks.sinusoid(shots=5, queries=100), episodes=600)
for step in (0, 1, 5, 10):
    print(f"after {step:2} gradient steps: mean squared error {judged.by_step[step][0]:.2f}")

# %% [markdown]
# One task it has not seen. `predict_path` answers after 0, 1, .., 10 steps.

# %%
support, query = source.sample(source.data, jax.random.key(3))
x = jnp.linspace(-5, 5, 200)[:, None]
path = learner.predict_path(result.params, support, x, jax.random.key(0))
for step in (0, 1, 10):
    plt.plot(x, path[step], label=f"{step} steps")
plt.plot(support.x, support.y, "k^", label="support")
plt.legend()
plt.show()

# %% [markdown]
# ## Classification: Prototypical Networks on Omniglot
#
# An episode has five characters, one drawing of each to learn from, and five to answer for. Training draws 20
# characters at a time from the training alphabets; sampling happens on the device, inside the compiled step.

# %%
train = tasks.episodes(tasks.omniglot("vinyals", "train"), ways=20, shots=1, queries=5, rotations="classes")
test = tasks.episodes(tasks.omniglot("vinyals", "test"), ways=5, shots=1, queries=5)
encoder = nn.Conv4(None, features=32)
result = jm.fit(
    jm.prototypical(encoder, ways=20), train, optax.adam(2e-3), steps=150, meta_batch=1, log_every=50, progress=False
)
judged = jm.evaluate(jm.prototypical(encoder, ways=5), result.params, test, episodes=200)
print(f"5-way 1-shot accuracy {100 * judged.mean:.1f} ± {100 * judged.interval:.1f} % after 150 episodes")

# %% [markdown]
# The same learner shows what it compares: here, a test episode's embedding on its two main axes, with the prototypes.

# %%
support, query = test.sample(test.data, jax.random.key(0))
compared = jm.prototypical(encoder, ways=5).compare(result.params, support, query.x, jax.random.key(0))
analysis.plot_embedding(compared, support.y, query.y)

# %% [markdown]
# ## By hand
#
# `fit` and `evaluate` know nothing but the three functions, and neither need you. One episode, one gradient:

# %%
learner = jm.prototypical(encoder, ways=20)
episode = train.sample(train.data, jax.random.key(1))
grads, metrics = jax.jit(learner.meta_grad)(result.params, episode, jax.random.key(2))
print({name: round(float(value), 3) for name, value in metrics.items()})
print("size of the gradient", np.round(optax.global_norm(grads), 3))

# %% [markdown]
# `jaxmeta train prototypical --dataset omniglot` trains with the paper's settings and keeps a run folder that resumes;
# `jaxmeta list` names all methods. The notebooks beside this one look at second-order gradients, at your own method and
# at your own data.
