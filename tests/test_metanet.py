"""MetaNet: layer augmentation, generators and attention against loops in NumPy, and what zero generators leave."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, inner_product, random_direction, stencil_derivative, to_float64

from jaxmeta import Batch, Episode, metanet
from jaxmeta.memory import AugmentedConv, memorise, recall
from jaxmeta.memory._generators import from_each, from_sequence, init_example, init_task

WAYS, HIDDEN = 3, 4
MODEL = AugmentedConv(WAYS, features=2, convolutions=1, key_features=5)
LEARNER = metanet(MODEL, hidden=HIDDEN)


def episode(shots: int = 1) -> Episode:
    keys = jax.random.split(jax.random.key(0))
    return Episode(
        *(
            Batch(jax.random.uniform(key, (WAYS * n, 4, 4, 1)), jnp.repeat(jnp.arange(WAYS), n))
            for key, n in zip(keys, (shots, 2), strict=True)
        )
    )


@functools.cache
def drawn() -> Any:
    """Meta-parameters whose fast weights are large, in NumPy's single precision whatever JAX's is."""
    params = jax.jit(LEARNER.init)(jax.random.key(0), episode())
    *first, last = params.example.kernels
    example = params.example._replace(kernels=(*first, 30 * last))
    params = params._replace(example=example, task=params.task._replace(out_kernel=30 * params.task.out_kernel))
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)


def loud() -> Any:
    return jax.tree.map(jnp.asarray, drawn())


predict = jax.jit(LEARNER.predict)


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


def network(slow: Any, fast: Any, x: Any) -> Any:
    """Logits and keys of one image, with layer augmentation, written out."""
    both = [jax.tree.map(np.asarray, slow["params"])] + ([] if fast is None else [jax.tree.map(np.asarray, fast)])
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    seen = np.array([[padded[r : r + 3, c : c + 3] for c in range(4)] for r in range(4)])
    h = sum(relu(np.einsum("rcijk,ijko->rco", seen, p["conv_0"]["kernel"]) + p["conv_0"]["bias"]) for p in both)
    h = h.reshape(2, 2, 2, 2, -1).max((1, 3)).ravel()
    parts = [h @ p["dense"]["kernel"] + p["dense"]["bias"] for p in both]
    h = sum(relu(part) for part in parts)
    return sum(h @ p["head"]["kernel"] + p["head"]["bias"] for p in both), sum(parts)


def told(x: Any) -> Any:
    with np.errstate(divide="ignore"):
        large = np.abs(x) >= np.exp(-7)
        first = np.where(large, np.log(np.abs(x)) / 7, -1)
        return np.stack([first, np.where(large, np.sign(x), np.exp(7) * x)], -1)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def m(generator: Any, grads: Any) -> Any:
    h, (*hidden, last) = told(grads), list(zip(*jax.tree.map(np.asarray, tuple(generator)), strict=True))
    for kernel, bias in hidden:
        h = relu(h @ kernel + bias)
    return (h @ last[0] + last[1])[..., 0]


def d(generator: Any, grads: Any) -> Any:
    p = jax.tree.map(np.asarray, generator)
    h, c = (np.zeros((*grads.shape[1:], HIDDEN)) for _ in range(2))
    for grad in grads:
        f, i, o, u = np.split(np.concatenate([told(grad), h], -1) @ p.kernel + p.bias, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
        h = sigmoid(o) * np.tanh(c)
    return (h @ p.out_kernel + p.out_bias)[..., 0]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("shots", "samples"), [(1, None), (1, 2), (2, 6)], ids=["one_shot", "two_of_three", "pairs"])
def test_a_whole_episode_is_the_loop(shots: int, samples: int | None) -> None:
    """Every equation once more, with gradients of the slow network alone, p = 7, and keys that use Q*."""
    params, (support, query) = to_float64((loud(), episode(shots)))
    order_key, pair_key = jax.random.split(jax.random.key(1))
    labels, count = np.asarray(support.y), len(support.y) if samples is None else samples
    chosen = np.asarray(jax.random.permutation(order_key, len(support.y)))[:count]
    other = (chosen + np.asarray(jax.random.randint(pair_key, (count,), 1, len(support.y)))) % len(support.y)

    def cross_entropy(slow: Any, i: int) -> jax.Array:
        return -jax.nn.log_softmax(MODEL.apply(slow, support.x[i][None])[0][0])[support.y[i]]

    def contrast(slow: Any, i: int, j: int) -> jax.Array:
        one, two = MODEL.apply(slow, jnp.stack([support.x[i], support.x[j]]))[1]
        square = ((one - two) ** 2).sum()
        apart = jnp.maximum(1 - jnp.sqrt(square + 1e-8), 0) ** 2
        return jnp.where(support.y[i] == support.y[j], square, apart)

    of_class, of_pair = (jax.jit(jax.grad(loss)) for loss in (cross_entropy, contrast))
    if shots == 1:
        of_keys = [of_class(params.representation, i) for i in chosen]
    else:
        of_keys = [of_pair(params.representation, i, j) for i, j in zip(chosen, other, strict=True)]
        same = labels[chosen] == labels[other]
        assert same.any(), "pairs of both kinds"
        assert (chosen != other).all(), "never an example with itself"
        assert not same.all(), "pairs of both kinds"
    names = MODEL.fast_names()
    q_fast = jax.tree.map(
        lambda *g: d(params.task, np.stack([np.asarray(gi) for gi in g])),
        *({name: g["params"][name] for name in names} for g in of_keys),
    )
    fast = [
        jax.tree.map(lambda g: m(params.example, np.asarray(g)), of_class(params.base, i)["params"])
        for i in range(len(support.y))
    ]
    keys = [network(params.representation, q_fast, np.asarray(x))[1] for x in support.x]
    expected = []
    for x in np.asarray(query.x):
        r = network(params.representation, q_fast, x)[1]
        size = [np.sqrt((v**2).sum() + 1e-8) for v in (r, *keys)]
        a = np.array([r @ k / size[0] / s for k, s in zip(keys, size[1:], strict=True)])
        a = np.exp(a) / np.exp(a).sum()
        mixed = jax.tree.map(lambda *w, a=a: sum(ai * wi for ai, wi in zip(a, w, strict=True)), *fast)
        expected.append(network(params.base, mixed, x)[0])
    answer = jax.jit(metanet(MODEL, hidden=HIDDEN, samples=samples).predict)
    found = answer(params, support, query.x, jax.random.key(1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_activations_are_added_and_not_weights() -> None:
    slow = MODEL.init(jax.random.key(0), episode().support.x)
    opposite = jax.tree.map(lambda leaf: -leaf, slow["params"])
    x = episode().query.x
    keys = MODEL.apply(slow, x, {"conv_0": opposite["conv_0"]})[1]
    assert np.abs(keys).max() > 0.01, "relu(h) + relu(-h) is |h|, not 0"
    assert (keys < 0).any(), "keys have both signs"
    np.testing.assert_allclose(MODEL.apply(slow, x, jax.tree.map(jnp.zeros_like, opposite))[0], MODEL.apply(slow, x)[0])


def test_with_zero_generators_it_is_the_slow_network() -> None:
    params, (support, query) = loud(), episode()
    silent = params._replace(
        example=jax.tree.map(jnp.zeros_like, params.example), task=jax.tree.map(jnp.zeros_like, params.task)
    )
    found = predict(silent, support, query.x, jax.random.key(0))
    np.testing.assert_allclose(found, MODEL.apply(params.base, query.x)[0], atol=1e-6)
    without = metanet(MODEL, hidden=HIDDEN, example_level=False)
    found = without.predict(params, support, query.x, jax.random.key(0))
    np.testing.assert_allclose(found, MODEL.apply(params.base, query.x)[0], atol=1e-6)


def test_keys_use_the_task_s_fast_weights_unless_told_not_to() -> None:
    params, (support, _) = loud(), episode()
    slow = MODEL.apply(params.representation, support.x)[1]
    with_task = memorise(MODEL, params, support, jax.random.key(0))
    without = memorise(MODEL, params, support, jax.random.key(0), task_level=False)
    np.testing.assert_allclose(without.keys, slow, atol=1e-6)
    assert not np.allclose(with_task.keys, slow, atol=1e-3)


def test_the_learner_passes_its_ablations_on() -> None:
    params, (support, query) = loud(), episode()
    answers = {}
    for level in ("task_level", "example_level"):
        found = metanet(MODEL, hidden=HIDDEN, **{level: False}).predict(params, support, query.x, jax.random.key(0))
        memory = memorise(MODEL, params, support, jax.random.key(0), **{level: False})
        np.testing.assert_allclose(found, recall(MODEL, params, memory, query.x)[0], atol=1e-6)
        answers[level] = found
    whole = predict(params, support, query.x, jax.random.key(0))
    for answer in answers.values():
        assert not np.allclose(answer, whole, atol=1e-3)


def test_attention_is_a_distribution_over_the_support_set_and_finds_what_it_holds() -> None:
    params, (support, _) = loud(), episode()
    memory = memorise(MODEL, params, support, jax.random.key(0))
    _, attention = recall(MODEL, params, memory, support.x)
    assert attention.shape == (WAYS, WAYS)
    np.testing.assert_allclose(attention.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(attention.argmax(1), np.arange(WAYS))


@pytest.mark.usefixtures("float64")
def test_a_support_set_in_numpy_can_be_part_of_a_program() -> None:
    params, (support, query) = to_float64((loud(), episode()))
    known = jax.tree.map(np.asarray, support)
    found = jax.jit(lambda x: LEARNER.predict(params, known, x, jax.random.key(0)))(query.x)
    np.testing.assert_allclose(found, predict(params, support, query.x, jax.random.key(0)), rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_queries_do_not_influence_each_other() -> None:
    params, (support, query) = to_float64((loud(), episode()))
    together = predict(params, support, query.x, jax.random.key(0))
    alone = predict(params, support, query.x[1:2], jax.random.key(0))
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-12)


def test_relabelling_classes_permutes_answers_with_the_heads_columns() -> None:
    params, (support, query) = loud(), episode()
    order = jnp.array([1, 2, 0])

    def renamed(slow: Any) -> Any:
        head = slow["params"]["head"]
        moved = {name: jnp.zeros_like(leaf).at[..., order].set(leaf) for name, leaf in head.items()}
        return {"params": {**slow["params"], "head": moved}}

    moved = params._replace(base=renamed(params.base), representation=renamed(params.representation))
    before = predict(params, support, query.x, jax.random.key(0))
    after = predict(moved, Batch(support.x, order[support.y]), query.x, jax.random.key(0))
    np.testing.assert_allclose(after[:, order], before, atol=1e-4)


@pytest.mark.usefixtures("float64")
def test_meta_information_is_constant_unless_differentiated() -> None:
    params, task = to_float64((loud(), episode()))
    direction = random_direction(params, 0)
    grads = {}
    for flag in (False, True):
        learner = metanet(MODEL, hidden=HIDDEN, differentiate=flag)
        step = jax.jit(learner.meta_grad)
        grads[flag], _ = step(params, task, jax.random.key(1))
        if flag:
            expected = stencil_derivative(
                lambda p, step=step: step(p, task, jax.random.key(1))[1]["loss"], params, direction, 1e-6
            )
            assert inner_product(grads[flag], direction) == pytest.approx(expected, rel=1e-4)
    assert_trees_close(grads[False].example, grads[True].example, rtol=1e-9, atol=1e-12)
    assert not np.allclose(
        grads[False].base["params"]["conv_0"]["kernel"], grads[True].base["params"]["conv_0"]["kernel"], rtol=1e-3
    )


def test_more_shots_compare_pairs_and_generators_see_each_coordinate_alike() -> None:
    grads, metrics = jax.jit(LEARNER.meta_grad)(loud(), episode(shots=3), jax.random.key(0))
    assert np.isfinite(float(metrics["loss"]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    generators = init_example(jax.random.key(0), HIDDEN), init_task(jax.random.key(1), HIDDEN)
    tree = {"a": jax.random.normal(jax.random.key(2), (4, 2, 3))}
    order = jnp.array([1, 0])
    moved = jax.tree.map(lambda leaf: leaf[:, order], tree)
    np.testing.assert_allclose(
        from_each(generators[0], moved, 7.0)["a"], from_each(generators[0], tree, 7.0)["a"][:, order]
    )
    np.testing.assert_allclose(
        from_sequence(generators[1], moved, 7.0)["a"], from_sequence(generators[1], tree, 7.0)["a"][order], rtol=1e-6
    )


def test_no_queries_have_no_answers() -> None:
    assert predict(loud(), episode().support, jnp.zeros((0, 4, 4, 1)), jax.random.key(0)).shape == (0, WAYS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: metanet(MODEL, hidden=0), "hidden must be 1 or more, but is 0"),
        (
            lambda e: metanet(MODEL, hidden=HIDDEN, samples=4).predict(loud(), e.support, e.query.x, jax.random.key(0)),
            "samples must be between 1 and the 3 support examples, but is 4",
        ),
        (lambda e: metanet(AugmentedConv(2)).init(jax.random.key(0), e), r"support.y must lie in \[0, 2\)"),
        (
            lambda e: LEARNER.predict(loud(), e.support._replace(y=jnp.array([0, 1, 7])), e.query.x, jax.random.key(0)),
            r"support.y must lie in \[0, 3\), but holds labels 0..7",
        ),
        (
            lambda e: metanet(AugmentedConv(3, fast_layers=1), hidden=HIDDEN).predict(
                loud(), e.support, e.query.x, jax.random.key(0)
            ),
            "fast_layers=1 is the head alone",
        ),
        (lambda e: memorise(MODEL, loud(), e.support, jax.random.key(0), samples=0), "samples must be between 1 and"),
        (lambda e: AugmentedConv(3, features=0).init(jax.random.key(0), e.support.x), "features must be 1 or more"),
        (
            lambda e: AugmentedConv(3, fast_layers=9).fast_names(),
            "fast_layers must be between 1 and 7 layers, but is 9",
        ),
        (
            lambda e: metanet(AugmentedConv(3, fast_layers=9)).init(jax.random.key(0), e),
            "fast_layers must be between 1 and 7 layers, but is 9",
        ),
        (lambda e: MODEL.init(jax.random.key(0), jnp.zeros((2, 9))), r"x must hold images .* shape \(2, 9\)"),
        (
            lambda e: LEARNER.predict(loud(), e.support, e.query.x[:, 1:], jax.random.key(0)),
            "support.x and query_x must hold inputs of one shape",
        ),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(episode())


def test_a_support_set_that_is_short_or_has_no_labels_is_named() -> None:
    support, query = episode()
    for kept in (0, 2):
        short = jax.tree.map(lambda leaf, kept=kept: leaf[:kept], support)
        with pytest.raises(ValueError, match=f"ways=3, but the support set has {kept} examples"):
            jax.eval_shape(LEARNER.predict, loud(), short, query.x, jax.random.key(0))
    real = support._replace(y=support.y.astype(jnp.float32))
    with pytest.raises(TypeError, match="wants integer labels, but targets have dtype float32"):
        LEARNER.predict(loud(), real, query.x, jax.random.key(0))
    with pytest.raises(TypeError, match="wants integer labels, but targets have dtype float32"):
        LEARNER.init(jax.random.key(0), Episode(real, real))


def test_images_may_hold_whole_numbers() -> None:
    support, query = episode()
    pixels = jnp.arange(support.x.size, dtype=jnp.uint8).reshape(support.x.shape)
    found, expected = (
        LEARNER.predict(loud(), support._replace(x=x), query.x, jax.random.key(0))
        for x in (pixels, pixels.astype(jnp.float32))
    )
    np.testing.assert_array_equal(found, expected)
