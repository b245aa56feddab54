# %% [markdown]
# # Your own method in twenty lines
#
# A method is a `MetaLearner`: three pure functions over one episode. Write them, and `fit`, `evaluate`, checkpoints,
# chunks, devices and `analysis.compare` work with it. As an example, here is CAVIA ([Zintgraf et al.
# 2019](https://arxiv.org/abs/1810.03642)), which the library does not have: the network is shared by all tasks, and the
# inner loop adapts nothing but a few context numbers that are fed in beside x. It runs in half a minute on two CPU
# cores.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import jaxmeta as jm
from jaxmeta import losses, nn, tasks

# %% [markdown]
# ## The method
#
# `adapt` is the inner loop: any loss, any pytree, any Optax transformation. The outer gradient goes through it, with
# the exact second derivatives.


# %%
def cavia(model, *, contexts, inner_lr, steps):
    """Adapts a context vector [contexts], zero at first, that the model sees beside each input."""

    def predictions(params, context, x):
        return model.apply(params, jnp.concatenate([x, jnp.tile(context, (len(x), 1))], axis=1))

    def adapted(params, support):
        def loss(context, batch):
            return losses.mean_squared_error(predictions(params, context, batch.x), batch.y)

        return jm.adapt(loss, jnp.zeros(contexts), support, optimizer=optax.sgd(inner_lr), steps=steps).params

    def init(key, episode):
        return model.init(key, jnp.zeros((1, episode.support.x.shape[1] + contexts)))

    def predict(params, support, query_x, key):
        return predictions(params, adapted(params, support), query_x)

    def meta_grad(params, episode, key):
        def objective(params):
            return losses.mean_squared_error(predict(params, episode.support, episode.query.x, key), episode.query.y)

        loss, grads = jax.value_and_grad(objective)(params)
        return grads, {"loss": loss}

    return jm.MetaLearner(init, meta_grad, predict)


# %% [markdown]
# ## It trains as any other
#
# Beside MAML, on the same sinusoids, for as long.

# %%
source, unseen = tasks.sinusoid(shots=10), tasks.sinusoid(shots=10, queries=100)
learners = {
    "cavia": cavia(nn.MLP((40, 40), 1), contexts=4, inner_lr=1.0, steps=1),
    "maml": jm.maml(nn.MLP((40, 40), 1), inner_optimizer=optax.sgd(0.01), steps=1, loss=losses.mean_squared_error),
}
params = {}
for name, learner in learners.items():
    result = jm.fit(learner, source, optax.adam(1e-3), steps=10_000, meta_batch=25, log_every=1000, progress=False)
    params[name] = result.params
    judged = jm.evaluate(learner, result.params, unseen, episodes=300)
    print(f"{name:5} mean squared error {judged.mean:.3f} ± {judged.interval:.3f} after one step")

# %% [markdown]
# ## Is the gradient right?
#
# Ask that of your own method before anything else: a directional derivative against finite differences, in double
# precision.

# %%
with jax.enable_x64(True):
    wide = jax.tree.map(lambda w: w.astype(jnp.float64), params["cavia"])
    episode = jax.tree.map(lambda a: a.astype(jnp.float64), source.sample(source.data, jax.random.key(0)))
    grads, _ = learners["cavia"].meta_grad(wide, episode, jax.random.key(0))

    def loss_at(h):
        moved = jax.tree.map(lambda w: w + h, wide)
        return learners["cavia"].meta_grad(moved, episode, jax.random.key(0))[1]["loss"]

    print(f"gradient            {sum(leaf.sum() for leaf in jax.tree.leaves(grads)):.8f}")
    print(f"finite differences  {(loss_at(1e-6) - loss_at(-1e-6)) / 2e-6:.8f}")

# %% [markdown]
# ## What it has learned
#
# One task, ten points. CAVIA moves four numbers, MAML 1,761.

# %%
support, query = unseen.sample(unseen.data, jax.random.key(5))
x = jnp.linspace(-5, 5, 200)[:, None]
for name, learner in learners.items():
    plt.plot(x, learner.predict(params[name], support, x, jax.random.key(0)), label=name)
plt.plot(*(jnp.sort(query.x, axis=0), query.y[jnp.argsort(query.x[:, 0])]), "k:", label="the task")
plt.plot(support.x, support.y, "k^", label="support")
plt.legend()
plt.show()

# %% [markdown]
# To give a method to others, see `CONTRIBUTING.md`: one file, one row in the table of methods that all common tests run
# over, one preset.
