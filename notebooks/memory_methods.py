# %% [markdown]
# # Learning by writing to a memory
#
# A memory-augmented network (MANN, [Santoro et al. 2016](https://arxiv.org/abs/1605.06065)) adapts to a task without a
# single gradient step: it reads labelled examples one by one, writes what it saw to a memory, and finds it again. This
# notebook follows one episode through that memory, slot by slot, and then looks at MetaNet's attention and at the gates
# of an LSTM that does the learning. It runs in about a minute on two CPU cores.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmeta as jm
from jaxmeta import analysis, losses, memory, nn, optimization, tasks

np.set_printoptions(precision=3, suppress=True)

# %% [markdown]
# ## One step of least recently used access
#
# The memory has three slots of two numbers. `usage` says how much each has been used lately, and the head read with
# `read_weights` in the step before.

# %%
state = memory.LRUAState(
    memory=jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]),
    usage=jnp.array([0.9, 0.2, 0.6]),
    read_weights=jnp.array([[0.7, 0.1, 0.2]]),
)
print("least used", memory.least_used(state.usage, 1))

# %% [markdown]
# The controller emits a key, which in the paper is both what is written and what is looked for, and a gate: 1 writes
# where the head read before, which refreshes a memory; 0 writes to the least used slot, which makes a new one. Here it
# is a half, and slot 1, the least used, is erased before it is written to.

# %%
key, gate = jnp.array([[0.6, -0.8]]), jnp.array([0.5])
after, read, write_weights = memory.lrua_step(state, key, gate, decay=0.99)
print("write weights", write_weights)
print("memory after\n", after.memory)

# %% [markdown]
# Reading compares the key with every row by its cosine, and takes the mean of the rows under a softmax. Usage fades by
# the decay, and grows by all weights.

# %%
print("cosines     ", memory.cosine(key, after.memory))
print("read weights", after.read_weights)
print("read        ", read)
print("usage       ", after.usage)

# %% [markdown]
# ## A network that learns to use it
#
# A class is a random vector, drawn anew in every episode, and an example of it is that vector with some noise. The
# network sees three classes five times each in random order, every input beside the label of the input *before*. So the
# first time a class comes up it can but guess; a step later it is told, and must bind the label to what it saw.

# %%
WAYS, PRESENTATIONS = 3, 5


def sample(data, key):
    class_key, noise_key = jax.random.split(key)
    x = jnp.repeat(jax.random.normal(class_key, (WAYS, 8)), PRESENTATIONS, axis=0)
    x = (x + 0.2 * jax.random.normal(noise_key, x.shape)).reshape(WAYS, PRESENTATIONS, 8)
    support, query = x[:, 0], x[:, 1:].reshape(-1, 8)
    labels = jnp.arange(WAYS)
    return jm.Episode(jm.Batch(support, labels), jm.Batch(query, jnp.repeat(labels, PRESENTATIONS - 1)))


source = tasks.Source(sample, (), {"name": "vectors", "ways": WAYS})
model = memory.MANN(features=32, slots=8, width=8, reads=1)
learner = jm.mann(model, ways=WAYS)
result = jm.fit(learner, source, optax.adam(1e-2), steps=800, meta_batch=16, chunk=8, log_every=40, progress=False)
analysis.plot_instances(result.history)

# %% [markdown]
# The first presentation stays a guess. At best it is one among the labels that have not come up yet, right in 61 % of
# cases; a network that answers by what it finds alike in its memory does worse. From the second on most answers are
# right. What was learned in training is not any class, but to store and to find.
#
# ## One episode, step by step
#
# A column is a step. Most writes go to a fresh slot, whether the class is new or not, a few to one just read; reads
# light up where something alike was stored; usage fades, and what fades most is written over first. Labels stand
# below, in the order they were read.

# %%
episode = sample((), jax.random.key(7))
batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *episode)
reading = memory.read_episode(model, result.params, batch, jax.random.key(8), ways=WAYS)
analysis.plot_reading(reading)

# %% [markdown]
# Accuracy at the first to the fifth presentation, over 500 episodes the network has not seen.

# %%


@jax.jit
def presentations(key):
    batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *sample((), key))
    read = memory.read_episode(model, result.params, batch, key, ways=WAYS)
    return memory.by_instance(read.right, read.labels, PRESENTATIONS)


print(jax.lax.map(presentations, jax.random.split(jax.random.key(9), 500), batch_size=50).mean(0))

# %% [markdown]
# ## Behind the contract
#
# As every learner of the library, this one answers queries from a support set. It reads the support set, and answers
# each query from the memory that leaves, alone: `evaluate` judges it on the same frozen episodes as all others.

# %%
judged = jm.evaluate(learner, result.params, source, episodes=200)
print(f"1-shot accuracy {judged.mean:.2f} ± {judged.interval:.2f}, the second presentation and no later one")

# %% [markdown]
# ## Fast weights, fetched by attention
#
# MetaNet ([Munkhdalai and Yu 2017](https://arxiv.org/abs/1703.00837)) stores weights. Each support image leaves the
# gradient of its loss, a small network turns that into fast weights, and a query fetches a mixture of them by how like
# its key is to those of the support images. On synthetic characters, five classes, one image each:

# %%
characters = tasks.episodes(tasks.glyphs("train", classes=120, image_size=14), ways=5, shots=1, queries=3)
model = memory.AugmentedConv(5, features=8, convolutions=2, key_features=16, fast_layers=2)
learner = jm.metanet(model)
adam = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(2e-3))
result = jm.fit(learner, characters, adam, steps=250, meta_batch=4, log_every=50, progress=False)

unseen = tasks.episodes(tasks.glyphs("test", classes=120, image_size=14), ways=5, shots=1, queries=3)
print(f"accuracy {jm.evaluate(learner, result.params, unseen, episodes=100).mean:.2f}")
support, query = unseen.sample(unseen.data, jax.random.key(1))
stored = jax.jit(memory.memorise, static_argnums=0)(model, result.params, support, jax.random.key(2))
answers, attention = jax.jit(memory.recall, static_argnums=0)(model, result.params, stored, query.x)
analysis.plot_attention(attention, support.y, query.y)

# %% [markdown]
# Rows are queries, three of each class; the columns are the support images. Cosines lie within ±1 and have no
# temperature, so attention over five images cannot get further than 0.65.
#
# ## An optimiser that is an LSTM
#
# The LSTM meta-learner ([Ravi and Larochelle 2017](https://openreview.net/forum?id=rJY0-Kcll)) does take gradient
# steps, $\theta_t = f_t\,\theta_{t-1} - i_t\,\nabla L_t$, and learns the gates: $f$ is how much of a weight is kept,
# $i$ its learning rate. They are drawn over the steps, averaged over each tensor of the network.

# %%
network = nn.MLP((16,), 5, norm=True)
learner = jm.lstm_meta_learner(network, steps=5, input_bias=(-1.0, -1.0))
adam = optax.chain(optax.clip_by_global_norm(0.25), optax.adam(3e-3))
result = jm.fit(learner, characters, adam, steps=300, meta_batch=4, log_every=100, progress=False)
print(f"accuracy {jm.evaluate(learner, result.params, unseen, episodes=100).mean:.2f}")


def loss_fn(params, batch):
    return losses.cross_entropy(network.apply(params, batch.x), batch.y)


adapted = optimization.lstm_adapt(loss_fn, result.params, support, steps=5)
analysis.plot_gates(adapted)
