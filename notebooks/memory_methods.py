# %% [markdown]
# # Learning by writing to a memory
#
# A memory-augmented network (MANN, [Santoro et al. 2016](https://arxiv.org/abs/1605.06065)) adapts to a task without a
# single gradient step: it reads labelled examples one by one, writes what it saw to a memory, and finds it again. This
# notebook follows one episode through that memory, slot by slot. It runs in less than a minute on two CPU cores.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmeta as jm
from jaxmeta import analysis, memory, tasks

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
# The controller emits a key, which is both what is written and what is looked for, and a gate: 1 writes where the head
# read before, which refreshes a memory; 0 writes to the least used slot, which makes a new one. Here it is a half, and
# slot 1, the least used, is erased before it is written to.

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
# The first presentation stays a guess, if one among the labels that have not come up yet; from the second on most
# answers are right. What was learned in training is not any class, but to store and to find.
#
# ## One episode, step by step
#
# A column is a step. Writes move on to a fresh slot for new things; reads light up where something alike was stored;
# usage fades, and what fades most is written over first. Labels stand below, in the order they were read.

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
