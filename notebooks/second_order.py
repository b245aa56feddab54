# %% [markdown]
# # Second-order gradients: what they are, and what they cost
#
# MAML's meta-gradient is that of the query loss at adapted parameters $\phi_K(\theta)$. Through one inner step
# $\phi = \theta - \alpha \nabla L_S(\theta)$ it is
#
# $$\nabla_\theta L_Q(\phi) = \left(I - \alpha \nabla^2 L_S(\theta)\right) \nabla L_Q(\phi),$$
#
# a Hessian-vector product away from first-order MAML, which leaves the Hessian out. This notebook computes it three
# ways, sets the estimators side by side, and looks at what many inner steps cost. It runs in about a minute on two CPU
# cores.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxmeta as jm
from jaxmeta import analysis, losses, nn, tasks

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## One step, three ways
#
# In double precision, so that what differs is the mathematics.

# %%
ALPHA = 0.1
model = nn.MLP((40, 40), 1, activation=jnp.tanh)
source = tasks.sinusoid(shots=10)
episode = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), source.sample(source.data, jax.random.key(0)))
params = jax.tree.map(lambda w: w.astype(jnp.float64), model.init(jax.random.key(1), episode.support.x))


def loss_fn(params, batch):
    return losses.mean_squared_error(model.apply(params, batch.x), batch.y)


exact, _ = jm.maml_grad(loss_fn, params, episode, optimizer=optax.sgd(ALPHA), steps=1)

grad = jax.grad(loss_fn)
adapted = jax.tree.map(lambda w, g: w - ALPHA * g, params, grad(params, episode.support))
first_order = grad(adapted, episode.query)
_, hessian_product = jax.jvp(lambda p: grad(p, episode.support), (params,), (first_order,))
by_formula = jax.tree.map(lambda v, hv: v - ALPHA * hv, first_order, hessian_product)


def after_a_step(params):
    adapted = jax.tree.map(lambda w, g: w - ALPHA * g, params, grad(params, episode.support))
    return loss_fn(adapted, episode.query)


direction = jax.tree.map(jnp.ones_like, params)
h = 1e-6
moved = [after_a_step(jax.tree.map(lambda w, d, s=s: w + s * h * d, params, direction)) for s in (1, -1)]


def along(tree):
    return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(direction), strict=True))


print(f"maml_grad           {along(exact):.10f}")
print(f"by the formula      {along(by_formula):.10f}")
print(f"finite differences  {(moved[0] - moved[1]) / (2 * h):.10f}")
print(f"first order         {along(first_order):.10f}")

# %% [markdown]
# ## Estimators side by side
#
# `analysis.compare` takes any learners, and tells for one batch of tasks the angle between each one's mean gradient and
# exact MAML's, the ratio of their norms, and what they cost. Reptile's (θ - W)/α is the sum of its inner gradients, of
# the support set alone. iMAML, whose gradient is that of another inner problem, is not among them.

# %%
inner = {"inner_optimizer": optax.sgd(0.01), "steps": 5, "loss": losses.mean_squared_error}
learners = {
    "maml": jm.maml(model, **inner),
    "last 2 of 5 steps": jm.truncated_maml(model, **inner, backprop_steps=2),
    "fomaml": jm.fomaml(model, **inner),
    "reptile": jm.reptile(model, **inner, inner_lr=0.01, batch_size=10),
}
episodes = jax.vmap(source.sample, (None, 0))(source.data, jax.random.split(jax.random.key(2), 25))
episodes = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), episodes)
rows = analysis.compare(learners, params, episodes, jax.random.key(3), repeats=5)
print(f"{'estimator':20}{'cosine':>8}{'norm ratio':>12}{'MFLOP':>8}")
for row in rows:
    print(f"{row.name:20}{row.cosine:8.3f}{row.norm_ratio:12.3f}{row.flops / 1e6:8.1f}")

# %% [markdown]
# ## When the Hessian matters
#
# The cosine between exact and first-order gradients, against the inner rate. With small steps there is little between
# them; with large ones they have little in common.

# %%
batch_grad = jax.jit(
    lambda estimator, rate: jax.vmap(
        lambda e: (jm.maml_grad if estimator else jm.fomaml_grad)(
            loss_fn, params, e, optimizer=optax.sgd(rate), steps=5
        )[0]
    )(episodes),
    static_argnums=0,
)


def flat(tree):
    return jnp.concatenate([leaf.mean(0).ravel() for leaf in jax.tree.leaves(tree)])


rates = np.geomspace(1e-3, 0.2, 10)
cosines = []
for rate in rates:
    a, b = (flat(batch_grad(second, rate)) for second in (True, False))
    cosines.append(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))
plt.semilogx(rates, cosines, marker="o")
plt.xlabel("inner rate, 5 steps")
plt.ylabel("cosine to exact MAML")
plt.show()

# %% [markdown]
# ## Memory
#
# Plain reverse mode keeps the activations of every inner step. Forward over reverse, the default, keeps one set of
# parameters for each; `remat` keeps fewer still and computes them again. None of these changes the gradient. Counted by
# the compiler, without running anything:

# %%
STEPS = (1, 8, 64)
settings = {
    "reverse over reverse": {"hvp": "reverse_over_reverse"},
    "forward over reverse": {},
    'remat="auto"': {"remat": "auto"},
}
conv = nn.Conv4(5, features=16, pool="stride")
images = tasks.episodes(tasks.glyphs("train", classes=30), ways=5, shots=1, queries=15)
one = images.sample(images.data, jax.random.key(0))
start = conv.init(jax.random.key(0), one.support.x)
for name, options in settings.items():
    sizes = []
    for steps in STEPS:
        learner = jm.maml(conv, inner_optimizer=optax.sgd(0.1), steps=steps, **options)
        sizes.append(analysis.inspect(learner.meta_grad, start, one, jax.random.key(0)).temp_bytes / 2**20)
    plt.loglog(STEPS, sizes, marker="o", label=name)
plt.xticks(STEPS, STEPS)
plt.xlabel("inner steps")
plt.ylabel("temporary memory, MiB")
plt.legend()
plt.show()
