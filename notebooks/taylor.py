# %% [markdown]
# # What MAML, first-order MAML and Reptile follow
#
# Take $k$ mini-batches of one task, with losses $L_1 .. L_k$; the inner loop steps through them at rate $\alpha$.
# Averaged over the order of the mini-batches, each method's meta-gradient is a power series in $\alpha$:
#
# $$ \mathbb E[g] = c\,\mathrm{AvgGrad} + c'\,\alpha\,\mathrm{AvgGradInner} + O(\alpha^2), \qquad
# \mathrm{AvgGrad} = \mathbb E[\nabla L_a], \quad
# \mathrm{AvgGradInner} = \mathbb E[\nabla^2 L_a \nabla L_b]
# = \tfrac12 \nabla\, \mathbb E[\nabla L_a \cdot \nabla L_b]. $$
#
# A step along $-\mathrm{AvgGrad}$ is joint training. A step along $+\mathrm{AvgGradInner}$ raises the agreement of
# different mini-batches' gradients; as $c'$ is negative, all three methods do that. This notebook measures $c$ and $c'$
# on a network, with the library's own gradients.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxmeta import Batch, losses, nn, tasks
from jaxmeta.analysis import projection_angles, taylor

jax.config.update("jax_enable_x64", True)
METHODS = ("maml", "fomaml", "reptile")

# %% [markdown]
# ## One task, eight mini-batches
#
# Five synthetic characters, eight drawings of each; a mini-batch has one drawing of each character.

# %%
WAYS, POOL = 5, 8
source = tasks.episodes(tasks.glyphs("train", classes=60, image_size=14), ways=WAYS, shots=POOL, queries=0)
model = nn.MLP((32,), WAYS, activation=jnp.tanh)


def draw(key, pool=POOL):
    """A task's mini-batches, [pool, 5, ...]: class by class, so the i-th mini-batch has the i-th drawing of each."""
    support = source.sample(source.data, key).support
    x = support.x.reshape(WAYS, POOL, *support.x.shape[1:]).swapaxes(0, 1)
    return Batch(x.astype(jnp.float64)[:pool], support.y.reshape(WAYS, POOL).T[:pool])


def loss_fn(params, batch):
    return losses.cross_entropy(model.apply(params, batch.x), batch.y)


batches = draw(jax.random.key(0))
params = jax.tree.map(lambda w: w.astype(jnp.float64), model.init(jax.random.key(1), batches.x[0]))

figure, axes = plt.subplots(WAYS, POOL, figsize=(5, 3.2))
for (i, j), axis in np.ndenumerate(axes):
    axis.imshow(batches.x[j, i, ..., 0], cmap="gray_r")
    axis.set(xticks=[], yticks=[])
    if i == 0:
        axis.set_title(f"$L_{j + 1}$", fontsize="small")
plt.show()

# %% [markdown]
# ## Predicted
#
# `expansion` adds up the Taylor series for any $k$, any inner rates and any re-use of mini-batches. Reptile has
# $\mathrm{AvgGrad}$ **k** times: many notes on the paper print 2, which is right for $k = 2$ alone.

# %%
print("k   " + "".join(f"{method:>20}" for method in METHODS))
for k in (1, 2, 3, 5, 8):
    found = [taylor.expansion(method, k) for method in METHODS]
    print(f"{k}   " + "".join(f"{plan.avg_grad:>9g} , {plan.avg_grad_inner:>5g} alpha  " for plan in found))

# %% [markdown]
# ## Measured
#
# `verify_expansion` averages each method's gradient exactly over the orderings of the eight mini-batches (56 that
# average like all 40,320 do), sweeps $\alpha$, and fits the coefficients without knowing the prediction. What is left
# after the predicted terms must fall like $\alpha$ after order 0, and like $\alpha^2$ after order 1: the slopes.

# %%
plans = [taylor.expansion(method, k) for k in (1, 2, 3, 5, 8) for method in METHODS]
verdicts = [taylor.verify_expansion(loss_fn, params, batches, plan) for plan in plans]
print(taylor.table(verdicts))

# %%
taylor.plot_verdicts(verdicts)

# %% [markdown]
# ## A wrong coefficient does not pass

# %%
plan = taylor.expansion("reptile", 5)
verdict = taylor.verify_expansion(loss_fn, params, batches, plan._replace(coefficients={**plan.coefficients, "g": 2.0}))
print("accepted:", verdict.accepted)
print("\n".join(verdict.reasons))

# %% [markdown]
# ## Mini-batches that come again
#
# Where a mini-batch meets itself, $\mathrm{AvgGradInner}$ gives way to
# $\mathrm{Self} = \mathbb E[\nabla^2 L_a \nabla L_a]$, half the gradient of $\mathbb E\,\|\nabla L_a\|^2$: instead of
# agreement it rewards large gradients of one batch. MAML that re-uses its support set still has all of
# $\mathrm{AvgGradInner}$; Reptile on one batch has none.

# %%
cases = {
    "MAML, support batch re-used": taylor.expansion("maml", 5, batches=taylor.reused_support(4)),
    "first-order MAML, shared tail": taylor.expansion("fomaml", 5, batches=taylor.shared_tail(5, 2)),
    "Reptile, cycling over 2": taylor.expansion("reptile", 5, batches=taylor.cycling(5, 2)),
    "Reptile, one batch": taylor.expansion("reptile", 5, batches=(0,) * 5),
}
print(f"{'':32}{'AvgGrad':>12}{'AvgGradInner':>14}{'Self':>12}")
for name, plan in cases.items():
    verdict = taylor.verify_expansion(loss_fn, params, batches, plan)
    print(
        f"{name:32}{verdict.coefficients[0].measured:>12.6f}"
        + "".join(f"{round(c.measured, 6) + 0.0:>13.6f}" for c in verdict.coefficients[1:])
    )

# %% [markdown]
# ## Which direction helps
#
# Over training, at a rate where the series is no longer its first two terms: how much of each method's update is
# $\mathrm{AvgGrad}$, how much $\mathrm{AvgGradInner}$, and what becomes of the agreement of mini-batch gradients. All
# start alike, see the same tasks, and move by $\mathrm{AvgGrad}$ times the same number, so Reptile is divided by $k$.

# %%
K, ALPHA = 4, 0.1
runs = {
    "joint training": (taylor.expansion("fomaml", 1), 0.5),
    "MAML": (taylor.expansion("maml", K), 0.5),
    "first-order MAML": (taylor.expansion("fomaml", K), 0.5),
    "Reptile / k": (taylor.expansion("reptile", K, normalised=True), 0.5),
}
paths = {
    name: taylor.track_directions(
        loss_fn,
        params,
        lambda key: draw(key, K),
        plan,
        optax.sgd(rate),
        jax.random.key(2),
        alpha=ALPHA,
        steps=240,
        every=40,
        tasks=4,
        probes=16,
    )
    for name, (plan, rate) in runs.items()
}
figure, axes = plt.subplots(2, 3, figsize=(13, 6.4))
panels = {
    "cosine_grad": "cosine to AvgGrad",
    "cosine_inner": "cosine to -AvgGradInner",
    "agreement": "agreement, E[g_a . g_b]",
    "cosine_agreement": "E[g_a . g_b] / E|g_a|^2",
    "loss": "loss before adaptation",
    "adapted_loss": "loss after adaptation",
}
for axis, (name, label) in zip(axes.flat, panels.items(), strict=True):
    for run, path in paths.items():
        axis.plot([p.step for p in path], [getattr(p, name) for p in path], label=run)
    axis.set(xlabel="outer step", ylabel=label)
axes[0, 0].legend(fontsize="x-small")
plt.tight_layout()
plt.show()

shown = ("share_grad", "share_inner", "unexplained", "agreement", "cosine_agreement", "loss", "adapted_loss")
print(f"{'after 240 steps':18}" + "".join(f"{name:>18}" for name in shown))
for run, path in {"at the start": paths["MAML"][:1], **paths}.items():
    print(f"{run:18}" + "".join(f"{getattr(path[-1], name):>18.3f}" for name in shown))

# %% [markdown]
# In this run (one seed) the four keep the order of their coefficients of $\mathrm{AvgGradInner}$, $2(k-1)$, $k-1$,
# $(k-1)/2$ and 0: the more of it, the larger the agreement of mini-batch gradients and the lower the loss after
# adaptation. Joint training raises no agreement and adapts no better than at the start. The agreement grows partly
# because gradients do, as MAML and first-order MAML give up the loss before adaptation; but their cosine grows too.
# Reptile's update stays near its first two terms, its cosine where it was; the other two leave theirs, as parameters
# come to where losses bend more within one inner rate. The angle to $-\mathrm{AvgGradInner}$ alone tells little: joint
# training, which has none of it, turns towards it and away as $\mathrm{AvgGrad}$ does.

# %% [markdown]
# ## Reptile, seen from the solutions
#
# The other view of Reptile: tasks have manifolds of solutions, and Reptile descends the mean squared distance to them.
# With fewer linear equations than unknowns the nearest solution is known in closed form. The more inner steps, the
# smaller the angle between Reptile's displacement and the way there.

# %%
keys = jax.random.split(jax.random.key(3), (20, 3))
for key_a, key_b, key_w in keys:
    a, b, w = (jax.random.normal(key, shape) for key, shape in ((key_a, (4, 10)), (key_b, (4,)), (key_w, (10,))))
    rate = 4 / jnp.linalg.norm(a, 2) ** 2
    angles = projection_angles(a, b, w, inner_lr=rate, steps=64)
    plt.loglog(np.arange(1, 65), np.degrees(angles), color="C0", lw=0.8, alpha=0.6)
plt.xlabel("inner steps")
plt.ylabel("angle to the projection, degrees")
plt.show()
