"""MANN: addressing against numbers and loops written out, sequences, labels, and the bugs of public code."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import inner_product, random_direction, stencil_derivative, to_float64

from jaxmeta import Batch, Episode, MetaLearner, mann, memory, presets, tasks
from jaxmeta.memory import MANN
from jaxmeta.memory._labels import one_step_late, words
from jaxmeta.memory._recurrence import scan_deferred

WAYS, FEATURES, SLOTS, WIDTH, READS = 3, 7, 6, 4, 2
SMALL: dict[str, Any] = {"features": FEATURES, "slots": SLOTS, "width": WIDTH, "reads": READS}


def small_episode(shots: int = 2, queries: int = 3, inputs: int = 5) -> Episode:
    keys = jax.random.split(jax.random.key(0))
    sizes = (shots, queries)
    batches = (
        Batch(jax.random.normal(key, (WAYS * n, inputs)), jnp.repeat(jnp.arange(WAYS), n))
        for key, n in zip(keys, sizes, strict=True)
    )
    return Episode(*batches)


@functools.partial(jax.jit, static_argnums=0)
def apply(model: MANN, params: Any, x: jax.Array, labels: jax.Array, state: Any = None) -> Any:
    return model.apply(params, x, labels, state)


@functools.partial(jax.jit, static_argnums=0)
def initialise(model: MANN, x: jax.Array, labels: jax.Array) -> Any:
    return model.init(jax.random.key(1), x, labels)


@functools.partial(jax.jit, static_argnums=0)
def predict(learner: MetaLearner, params: Any, support: Batch, query_x: jax.Array) -> jax.Array:
    return learner.predict(params, support, query_x, jax.random.key(3))


# Addressing


def test_one_step_is_the_worked_example() -> None:
    state = memory.LRUAState(
        jnp.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]),
        jnp.array([0.9, 0.2, 0.6]),
        jnp.array([[0.7, 0.1, 0.2]]),
    )
    np.testing.assert_array_equal(memory.least_used(state.usage, 1), [[0, 1, 0]])
    after, read, written = memory.lrua_step(state, jnp.array([[0.6, -0.8]]), jnp.array([0.5]), decay=0.99)
    close = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(written, [[0.35, 0.55, 0.10]], **close)
    np.testing.assert_allclose(after.memory, [[1.21, -0.28], [0.33, -0.44], [0.56, 0.42]], **close)
    cosines = memory.cosine(jnp.array([[0.6, -0.8]]), after.memory)
    np.testing.assert_allclose(cosines, [[0.764911, 1.0, 0.0]], **close)
    np.testing.assert_allclose(after.read_weights, [[0.366247, 0.463310, 0.170442]], **close)
    np.testing.assert_allclose(read, [[0.691499, -0.234820]], **close)
    np.testing.assert_allclose(after.usage, [1.607247, 1.211310, 0.864442], **close)


def test_least_used_is_least_in_order_and_among_equals_the_first() -> None:
    """Public code sliced a descending top-k from the front, and so wrote over what was used most."""
    usage = np.array([0.5, 0.1, 0.9, 0.1, 0.0, 0.9])
    found = np.asarray(memory.least_used(jnp.asarray(usage), 4)).argmax(1)
    np.testing.assert_array_equal(found, np.argsort(usage, kind="stable")[:4])
    np.testing.assert_array_equal(memory.least_used(jnp.zeros(4), 4), np.eye(4))
    before = memory.LRUAState(jnp.ones((4, 2)), jnp.array([0.4, 0.1, 0.9, 0.2]), jnp.full((2, 4), 0.25))

    def written_and_read(usage: jax.Array) -> tuple[jax.Array, jax.Array]:
        after, read, _ = memory.lrua_step(before._replace(usage=usage), jnp.eye(2), jnp.zeros(2), decay=0.9)
        return after.memory, read

    assert not any(np.asarray(part).any() for part in jax.jacobian(written_and_read)(before.usage))
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"count must be between 1 and the 4 slots, but is {count}"):
            memory.least_used(before.usage, count)


def test_each_head_writes_to_a_slot_of_its_own_and_the_least_used_row_alone_is_erased() -> None:
    """Public code erased another of the n slots than the least used."""
    before = memory.LRUAState(jnp.ones((4, 2)), jnp.array([0.4, 0.1, 0.9, 0.2]), jnp.full((2, 4), 0.25))
    keys = jnp.array([[10.0, 20.0], [30.0, 40.0]])
    after, _, written = memory.lrua_step(before, keys, jnp.zeros(2), decay=0.9)
    np.testing.assert_array_equal(written, [[0, 1, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(after.memory, [[1, 1], [10, 20], [1, 1], [31, 41]])
    kept, _, where_read = memory.lrua_step(before, keys, jnp.ones(2), decay=0.9)
    np.testing.assert_array_equal(where_read, before.read_weights)
    np.testing.assert_array_equal(kept.memory[1], 0.25 * keys.sum(0))


def test_cosines_divide_by_both_norms_and_rows_of_zeros_have_gradients() -> None:
    """Public code divided by the key's norm twice."""
    keys, rows = jnp.array([[3.0, 4.0]]), jnp.array([[10.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(memory.cosine(keys, rows), [[0.6, 0.0]], atol=1e-6)
    np.testing.assert_allclose(memory.cosine(keys, 7 * rows), memory.cosine(5 * keys, rows), atol=1e-6)
    for grad in jax.grad(lambda k, m: memory.cosine(k, m).sum(), (0, 1))(jnp.zeros((1, 2)), rows):
        assert np.isfinite(grad).all()


def test_shifts_and_sharpening_move_and_sharpen() -> None:
    one = jnp.ones(1)
    heads = memory.NTMHeads(jnp.ones((1, 2)), one, 0 * one, jnp.array([[0.0, 0.5, 0.5]]), 3 * one)
    found = memory.address(jnp.array([[0.0, 0.0, 1.0]]), jnp.zeros((3, 2)), heads)
    np.testing.assert_allclose(found, [[0.5, 0.0, 0.5]], atol=1e-6)
    uneven = heads._replace(shift=jnp.array([[0.0, 0.25, 0.75]]))
    np.testing.assert_allclose(
        memory.address(jnp.array([[0.0, 0.0, 1.0]]), jnp.zeros((3, 2)), uneven), [[27 / 28, 0.0, 1 / 28]], atol=1e-6
    )


def test_rows_of_zeros_are_finite_in_half_precision() -> None:
    one = jnp.ones(1, jnp.float16)
    heads = memory.NTMHeads(jnp.ones((1, 2), jnp.float16), one, 0 * one, jnp.eye(3, dtype=jnp.float16)[1:2], one)
    rows = jnp.zeros((3, 2), jnp.float16)
    assert not memory.cosine(heads.key, rows).any()
    found = memory.cosine(heads.key / 16, heads.key)
    assert (found.dtype, float(found[0, 0])) == (jnp.float16, pytest.approx(1, abs=2e-3))
    np.testing.assert_allclose(memory.cosine(jnp.array([[3, 4]]), jnp.array([[4, -3]])), 0, atol=1e-6)
    sharp = heads._replace(shift=jnp.eye(3, dtype=jnp.float16)[1:2])
    one_hot = jnp.eye(128, dtype=jnp.float16)[:1]
    np.testing.assert_allclose(memory.address(one_hot, jnp.zeros((128, 2), jnp.float16), sharp), one_hot, atol=2e-3)
    grads = jax.grad(lambda *at: memory.address(*at, heads)[0, 0], (0, 1))(jnp.eye(3, dtype=jnp.float16)[:1], rows)
    assert all(np.isfinite(leaf).all() for leaf in grads)


@pytest.mark.parametrize("slots", [3, 128])
def test_sharpening_is_finite_where_powers_are_too_small_for_a_float(slots: int) -> None:
    one = jnp.ones(1)
    heads = memory.NTMHeads(jnp.ones((1, 2)), one, 0 * one, jnp.array([[0.2, 0.6, 0.2]]), 40 * one)

    def addressed(weights: jax.Array, heads: memory.NTMHeads) -> jax.Array:
        return memory.address(weights, jnp.zeros((slots, 2)), heads)

    weights = jnp.full((1, slots), 1 / slots)
    np.testing.assert_allclose(addressed(weights, heads), weights, rtol=1e-4)
    grads = jax.grad(lambda *at: addressed(*at)[0, 0], (0, 1))(weights, heads)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


# The recurrence, against a loop in NumPy


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cosines(keys: Any, rows: Any) -> Any:
    norms = [np.sqrt((v**2).sum(-1) + 1e-8) for v in (keys, rows)]
    return keys @ rows.T / norms[0][:, None] / norms[1][None, :]


def loop(params: Any, model: MANN, x: Any, labels: Any) -> Any:
    """The whole network, step by step, in float64."""
    p = jax.tree.map(np.asarray, params["params"])
    h, c, r = np.zeros(FEATURES), np.zeros(FEATURES), np.zeros(READS * WIDTH)
    rows = np.full((SLOTS, WIDTH), 1e-6)
    first = np.eye(SLOTS)[0]
    usage, w_read, w_ntm = first.copy(), np.tile(first, (READS, 1)), np.tile(first, (READS + 1, 1))
    outputs = []
    for x_t, y_t in zip(x, labels, strict=True):
        gates = x_t @ p["input"]["kernel"] + p["input"]["bias"] + y_t @ p["label"]["kernel"]
        fed = ([h] if model.controller == "lstm" else []) + (
            [r] if model.read_input and model.addressing != "none" else []
        )
        if fed:
            gates = gates + np.concatenate(fed) @ p["controller"]
        if model.controller == "lstm":
            f, i, o, u = np.split(gates, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
            h = sigmoid(o) * np.tanh(c)
        else:
            h = np.tanh(gates)
        if model.addressing == "none":
            outputs.append(h @ p["output"]["kernel"] + p["output"]["bias"])
            continue
        emitted = h @ p["heads"] + p["heads_bias"]
        if model.addressing == "lrua":
            s, vectors = sigmoid(emitted[:READS])[:, None], np.tanh(emitted[READS:].reshape(-1, READS, WIDTH))
            k = vectors[0]
            order = np.argsort(usage, kind="stable")
            w_write = s * w_read + (1 - s) * np.eye(SLOTS)[order[:READS]]
            rows[order[0]] = 0
            for w, vector in zip(w_write, k if model.written == "key" else vectors[1], strict=True):
                rows = rows + np.outer(w, vector)
            w_read = softmax(model.strength * cosines(k, rows))
            usage = model.decay * usage + w_read.sum(0) + w_write.sum(0)
        else:
            erase, add = sigmoid(emitted[:WIDTH]), np.tanh(emitted[WIDTH : 2 * WIDTH])
            heads = emitted[2 * WIDTH :].reshape(READS + 1, -1)

            def weights(head: Any, before: Any, rows: Any) -> Any:
                beta, g, gamma = np.log1p(np.exp(head[WIDTH])), sigmoid(head[WIDTH + 1]), head[WIDTH + 2]
                s = softmax(head[WIDTH + 3 :])
                content = softmax(beta * cosines(np.tanh(head[:WIDTH])[None], rows)[0])
                w = g * content + (1 - g) * before
                w = np.array([sum(s[j] * w[(i - (j - 1)) % SLOTS] for j in range(3)) for i in range(SLOTS)])
                w = (w + 1e-8) ** (1 + np.log1p(np.exp(gamma)))
                return w / w.sum()

            w_ntm[-1] = weights(heads[-1], w_ntm[-1], rows)
            rows = rows * (1 - np.outer(w_ntm[-1], erase)) + np.outer(w_ntm[-1], add)
            for j in range(READS):
                w_ntm[j] = weights(heads[j], w_ntm[j], rows)
            w_read = w_ntm[:-1]
        r = (w_read @ rows).ravel()
        outputs.append(np.concatenate([h, r]) @ p["output"]["kernel"] + p["output"]["bias"])
    return np.array(outputs)


VARIANTS = [
    {},
    {"addressing": "ntm"},
    {"controller": "feedforward"},
    {"addressing": "none"},
    {"controller": "feedforward", "addressing": "none"},
    {"read_input": False, "decay": 0.95, "strength": 5.0},
    {"written": "key"},
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_whole_episode_is_the_loop(variant: dict[str, Any]) -> None:
    model = MANN(**{**SMALL, **variant})
    x = jax.random.normal(jax.random.key(0), (30, 5), jnp.float64)
    labels = jax.random.normal(jax.random.key(1), (30, WAYS), jnp.float64)
    params = jax.tree.map(lambda leaf: 2 * leaf + 0.1, to_float64(initialise(model, x, labels)))
    outputs, _, _ = apply(model, params, x, labels)
    np.testing.assert_allclose(outputs, loop(params, model, np.asarray(x), np.asarray(labels)), atol=1e-10, rtol=0)


def test_weights_of_inputs_start_as_wide_as_is_said() -> None:
    x, labels = jnp.ones((1, 400)), jnp.ones((1, 5))
    narrow, wide = (MANN(input_scale=scale).init(jax.random.key(0), x, labels)["params"] for scale in (1.0, 4.0))
    assert float(narrow["input"]["kernel"].std()) == pytest.approx(400**-0.5, rel=0.01)
    np.testing.assert_allclose(wide["input"]["kernel"], 4 * narrow["input"]["kernel"], rtol=1e-5)
    np.testing.assert_array_equal(wide["label"]["kernel"], narrow["label"]["kernel"])
    np.testing.assert_array_equal(narrow["input"]["bias"], np.repeat([1.0, 0.0], [200, 600]), "forget gates, the rest")
    episode = Episode(*[Batch(jnp.ones((5, 20, 20, 1)), jnp.arange(5))] * 2)
    preset = presets.build(presets.settings("mann", "glyphs")).learner.init(jax.random.key(0), episode)
    assert float(preset["params"]["input"]["kernel"].std()) == pytest.approx(4 / 20, rel=0.01)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_gradient_is_that_of_finite_differences(variant: dict[str, Any]) -> None:
    model, episode = MANN(**{**SMALL, **variant}), to_float64(small_episode())
    learner = mann(model, ways=WAYS)
    params = jax.tree.map(lambda leaf: 2 * leaf + 0.1, to_float64(learner.init(jax.random.key(0), episode)))
    found = jax.jit(lambda p, e: learner.meta_grad(p, e, jax.random.key(1)))
    grads, value = found(params, episode)[0], lambda p: found(p, episode)[1]["loss"]
    direction = random_direction(params, 0)
    expected = stencil_derivative(value, params, direction, 1e-4)
    assert inner_product(grads, direction) == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("float64")
def test_the_deferred_gradient_is_the_scan_s() -> None:
    def step(kernels, h, bias):
        h_next = jnp.tanh(bias["w"] + h @ kernels["w"])
        return h_next, h_next**2, {"w": h}

    def plain(kernel, h, biases):
        return jax.lax.scan(lambda h, b: step({"w": kernel}, h, {"w": b})[:2], h, biases)

    def deferred(kernel, h, biases):
        return scan_deferred(step, {"w": kernel}, h, {"w": biases})

    kernel, h = jax.random.normal(jax.random.key(0), (3, 3)), jnp.ones(3)
    biases = jax.random.normal(jax.random.key(1), (9, 3))

    def total(run):
        return lambda *args: sum(leaf.sum() for leaf in jax.tree.leaves(run(*args)))

    found, expected = (jax.grad(total(run), (0, 1, 2))(kernel, h, biases) for run in (deferred, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


def test_gradients_are_finite_from_an_empty_memory_and_through_erased_rows() -> None:
    episode = small_episode(shots=4, queries=6)
    for addressing in ("lrua", "ntm"):
        learner = mann(MANN(**SMALL, addressing=addressing), ways=WAYS)
        params = learner.init(jax.random.key(0), episode)
        grads, _ = jax.jit(learner.meta_grad)(params, episode, jax.random.key(1))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


# Sequences and labels


def test_labels_come_one_step_late_and_no_answer_sees_its_own() -> None:
    """Changing label t changes answers after t alone; public code augmented inputs and threw the result away."""
    model = MANN(**SMALL)
    x, y = jax.random.normal(jax.random.key(0), (9, 5)), jnp.arange(9) % WAYS
    params = initialise(model, x, jax.nn.one_hot(y, WAYS))
    answers = [apply(model, params, x, one_step_late(jax.nn.one_hot(z, WAYS)))[0] for z in (y, y.at[4].set(0))]
    changed = np.asarray(answers[0] != answers[1]).any(1)
    assert not changed[:5].any()
    assert changed[5:].all()


def test_strings_are_distinct_fresh_and_right_only_if_all_letters_are() -> None:
    spelled = words("strings", 1000, jax.random.key(0))  # drawn with replacement, some 150 would come up again
    assert spelled.letters.shape == (1000, 5)
    assert len({tuple(row) for row in np.asarray(spelled.letters).tolist()}) == 1000
    assert not np.array_equal(spelled.letters, words("strings", 1000, jax.random.key(1)).letters)
    labels = jnp.array([3, 8])
    outputs = 5.0 * spelled.write(labels)
    assert outputs.shape == (2, 25)
    np.testing.assert_array_equal(spelled.right(outputs, labels), [True, True])
    np.testing.assert_array_equal(spelled.class_scores(outputs).argmax(1), labels)
    one_wrong = outputs.at[0, :5].set(jnp.roll(outputs[0, :5], 1))
    np.testing.assert_array_equal(spelled.right(one_wrong, labels), [False, True])


def test_an_episode_of_strings_has_words_of_its_own() -> None:
    """From the same weights, on the same examples in the same order, other words make other answers and losses."""
    episode, model = small_episode(), MANN(**SMALL)
    learner = mann(model, ways=WAYS, code="strings")
    params = learner.init(jax.random.key(0), episode)
    blank = jax.tree.map(jnp.zeros_like, params)
    _, metrics = learner.meta_grad(blank, episode, jax.random.key(1))
    assert float(metrics["loss"]) == pytest.approx(5 * np.log(5), rel=1e-6), "five letters, each guessed"

    # All of one class and alike, in whatever order: what a key changes are the words. Known labels would lack classes.
    alike = Batch(jnp.ones((WAYS, 5)), jnp.zeros(WAYS, int))
    read = jax.jit(functools.partial(memory.read_episode, model, ways=WAYS, code="strings"))
    answer = jax.jit(learner.predict)
    keys = [jax.random.key(i) for i in range(4)]
    assert len({float(read(params, alike, key).loss) for key in keys}) == 4
    assert len({tuple(np.asarray(answer(params, alike, alike.x[:1], key))[0].tolist()) for key in keys}) == 4


def test_the_loss_is_a_cross_entropy_of_outputs_as_they_are() -> None:
    """Public code took the softmax of a softmax."""
    outputs, labels = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([0])
    expected = np.log(np.exp([2.0, 0.0, -1.0]).sum()) - 2.0
    assert float(words("one_hot", 3, jax.random.key(0)).loss(outputs, labels)) == pytest.approx(expected, rel=1e-6)
    uniform = words("strings", 3, jax.random.key(0)).loss(jnp.zeros((2, 25)), jnp.array([0, 1]))
    assert float(uniform) == pytest.approx(5 * np.log(5), rel=1e-6), "five letters, added"


def test_accuracy_by_presentation_counts_each_class_by_itself() -> None:
    labels = jnp.array([2, 2, 0, 2, 0])
    right = jnp.array([False, True, True, False, True])
    np.testing.assert_allclose(memory.by_instance(right, labels, 3), [0.5, 1.0, 0.0])
    assert np.isnan(memory.by_instance(right, labels, 4)[3])


def test_relabelling_classes_permutes_answers_with_the_weights_that_read_and_write_them() -> None:
    model = MANN(**SMALL)
    order = jnp.array([2, 0, 1])
    x, y = jax.random.normal(jax.random.key(0), (9, 5)), jnp.arange(9) % WAYS
    params = initialise(model, x, jax.nn.one_hot(y, WAYS))
    p = params["params"]
    label = {"kernel": p["label"]["kernel"].at[order].set(p["label"]["kernel"])}
    output = {
        "kernel": p["output"]["kernel"].at[:, order].set(p["output"]["kernel"]),
        "bias": p["output"]["bias"].at[order].set(p["output"]["bias"]),
    }
    renamed = {"params": {**p, "label": label, "output": output}}
    before, _, _ = apply(model, params, x, jax.nn.one_hot(y, WAYS))
    after, _, _ = apply(model, renamed, x, jax.nn.one_hot(order[y], WAYS))
    np.testing.assert_allclose(after[:, order], before, atol=1e-5)


@pytest.mark.parametrize("code", ["one_hot", "strings"])
def test_queries_are_answered_alone_from_the_same_memory(code: memory.Code) -> None:
    episode, learner = small_episode(), mann(MANN(**SMALL), ways=WAYS, code=code)
    params = learner.init(jax.random.key(0), episode)
    answer = functools.partial(predict, learner, params)
    together = answer(episode.support, episode.query.x)
    assert together.shape == (len(episode.query.x), WAYS)
    np.testing.assert_allclose(together[4:5], answer(episode.support, episode.query.x[4:5]), atol=1e-5)
    np.testing.assert_allclose(together[::-1], answer(episode.support, episode.query.x[::-1]), atol=1e-5)
    other = Batch(episode.support.x[::-1], episode.support.y)
    changed = answer(other, episode.query.x)
    assert not np.allclose(together, changed, atol=1e-5), "the support set decides"


def test_a_query_is_the_next_step_of_the_sequence() -> None:
    episode, model = small_episode(), MANN(**SMALL)
    learner = mann(model, ways=WAYS)
    params = learner.init(jax.random.key(0), episode)
    order_key, _ = jax.random.split(jax.random.key(3))
    order = jax.random.permutation(order_key, len(episode.support.y))
    shown = jax.nn.one_hot(episode.support.y[order], WAYS)
    x = jnp.concatenate([episode.support.x[order], episode.query.x[2:3]])
    outputs, _, _ = apply(model, params, x, jnp.concatenate([jnp.zeros((1, WAYS)), shown]))
    found = predict(learner, params, episode.support, episode.query.x)[2]
    np.testing.assert_allclose(found, jax.nn.log_softmax(outputs[-1]), atol=1e-5)


def test_training_reads_support_and_query_in_an_order_of_the_key_s() -> None:
    episode, model = small_episode(), MANN(**SMALL)
    params = mann(model, ways=WAYS).init(jax.random.key(0), episode)
    batch = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *episode)
    first, second = (memory.read_episode(model, params, batch, jax.random.key(i), ways=WAYS) for i in (0, 1))
    assert sorted(first.labels.tolist()) == sorted(batch.y.tolist())
    assert first.labels.tolist() != second.labels.tolist()
    assert first.trace is not None
    assert first.trace.read_weights.shape == (15, READS, SLOTS)
    np.testing.assert_allclose(first.trace.read_weights.sum(-1), 1.0, rtol=1e-5)


def test_memory_is_empty_at_the_start_of_every_episode() -> None:
    """What a learner has read before does not matter: each support set starts from a blank memory of its own."""
    model, episode = MANN(**SMALL), small_episode()
    blank = model.blank()
    assert blank.memory is not None
    np.testing.assert_array_equal(blank.memory.memory, np.float32(1e-6))
    np.testing.assert_array_equal(blank.memory.usage, np.eye(SLOTS)[0])
    np.testing.assert_array_equal(blank.memory.read_weights, np.tile(np.eye(SLOTS)[0], (READS, 1)))
    assert not any(np.asarray(leaf).any() for leaf in (blank.hidden, blank.cell, blank.read))
    labels = jax.nn.one_hot(episode.support.y, WAYS)
    params = initialise(model, episode.support.x, labels)
    default, state, _ = apply(model, params, episode.support.x, labels)
    from_blank, _, _ = apply(model, params, episode.support.x, labels, blank)
    continued, _, _ = apply(model, params, episode.support.x, labels, state)
    np.testing.assert_array_equal(default, from_blank)
    assert not np.allclose(default, continued)


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: mann(MANN(**{**SMALL, "reads": 7}), ways=3).init(jax.random.key(0), e), ValueError, "slots=6"),
        (
            lambda e: MANN(reads=-1, addressing="none").init(jax.random.key(0), e.support.x, e.support.x),
            ValueError,
            "reads must be 0",
        ),
        (
            lambda e: MANN(features=0).init(jax.random.key(0), e.support.x, e.support.x),
            ValueError,
            "features must be 1",
        ),
        (
            lambda e: MANN(decay=1.5).init(jax.random.key(0), e.support.x, e.support.x),
            ValueError,
            r"decay must be in \(0",
        ),
        (
            lambda e: MANN(input_scale=0.0).init(jax.random.key(0), e.support.x, e.support.x),
            ValueError,
            "input_scale must be positive and finite, but is 0.0",
        ),
        (
            lambda e: MANN(strength=-1.0).init(jax.random.key(0), e.support.x, e.support.x),
            ValueError,
            "strength must be positive and finite, but is -1.0",
        ),
        (lambda e: mann(MANN(**SMALL), ways=1), ValueError, "ways must be 2 or more, but is 1"),
        (lambda e: mann(MANN(**SMALL), ways=3126, code="strings"), ValueError, "there are 3125 strings of 5 letters"),
        (lambda e: mann(MANN(**SMALL), ways=3, code="words"), ValueError, "code must be one of"),  # type: ignore
        (lambda e: mann(MANN(**SMALL, addressing="dnc"), ways=3).init(jax.random.key(0), e), ValueError, "addressing"),
        (lambda e: mann(MANN(**SMALL, controller="gru"), ways=3).init(jax.random.key(0), e), ValueError, "controller"),
        (
            lambda e: memory.read_episode(MANN(**SMALL), {}, e.query, jax.random.key(0), ways=2),
            ValueError,
            r"batch.y must lie in \[0, 2\), but holds labels 0..2",
        ),
        (lambda e: mann(MANN(**SMALL), ways=2).predict({}, *e, jax.random.key(0)), ValueError, "support.y must lie in"),
        (
            lambda e: mann(MANN(**SMALL), ways=4).predict({}, *e, jax.random.key(0)),
            ValueError,
            "ways=4, but the support set has 3 distinct labels",
        ),
        (lambda e: mann(MANN(**SMALL), ways=2).init(jax.random.key(0), e), ValueError, r"support.y must lie in \[0, 2"),
        (
            lambda e: memory.read_episode(
                MANN(**SMALL), {}, Batch(*(a[:2] for a in e.support)), jax.random.key(0), ways=3
            ),
            ValueError,
            "the sequence has 2 examples, fewer than its ways=3 classes",
        ),
        (
            lambda e: memory.read_episode(
                MANN(**SMALL), {}, Batch(e.support.x, e.support.x), jax.random.key(0), ways=3
            ),
            TypeError,
            "wants integer labels, but targets have dtype float32",
        ),
        (
            lambda e: MANN(**SMALL).init(jax.random.key(0), e.support.x, jnp.zeros((2, 3))),
            ValueError,
            r"labels must have shape \[6, d\]",
        ),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(small_episode())


def test_targets_and_queries_that_do_not_fit_are_named_at_once() -> None:
    episode, learner = small_episode(), mann(MANN(**SMALL), ways=3)
    with pytest.raises(TypeError, match="wants integer labels, but targets have dtype float32"):
        learner.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), episode))
    params = jax.eval_shape(learner.init, jax.random.key(0), episode)
    with pytest.raises(TypeError, match=r"support\.y must be an array with an example axis"):
        learner.predict(params, Batch(episode.support.x, [0, 1, 2]), episode.query.x, jax.random.key(0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"support\.x and query_x must hold inputs of one shape"):
        learner.predict(params, episode.support, episode.query.x[:, :-1], jax.random.key(0))


@pytest.mark.parametrize("code", ["one_hot", "strings"])
def test_under_jit_a_label_that_is_no_class_makes_all_nan(code: Any) -> None:
    (support, query), learner = small_episode(), mann(MANN(**SMALL), ways=3, code=code)
    params = jax.jit(learner.init)(jax.random.key(0), Episode(support, query))
    step, predict = jax.jit(learner.meta_grad), jax.jit(learner.predict)
    assert np.isfinite(predict(params, support, query.x, jax.random.key(0))).all()
    for label in (-1, 7):
        strange = support._replace(y=support.y.at[0].set(label))
        grads, metrics = step(params, Episode(strange, query), jax.random.key(0))
        assert np.isnan(metrics["loss"])
        assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(grads))
        assert np.isnan(predict(params, strange, query.x, jax.random.key(0))).all()


@pytest.mark.parametrize("addressing", ["lrua", "ntm", "none"])
def test_gradients_have_the_types_of_their_parameters(addressing: Any) -> None:
    learner = mann(MANN(**SMALL, addressing=addressing), ways=3)
    params = jax.eval_shape(learner.init, jax.random.key(0), small_episode())
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    grads, _ = jax.eval_shape(learner.meta_grad, half, small_episode(), jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.dtype, grads) == jax.tree.map(lambda leaf: leaf.dtype, half)


BEFORE = memory.LRUAState(jnp.ones((3, 2)), jnp.ones(3), jnp.ones((2, 3)))
ONE = jnp.ones(2)
HEADS = memory.NTMHeads(jnp.ones((2, 2)), ONE, ONE, jnp.ones((2, 3)), ONE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: memory.lrua_step(BEFORE, jnp.ones((1, 2)), ONE, decay=0.9), r"keys must have shape \[2, 2\]"),
        (lambda: memory.lrua_step(BEFORE, jnp.ones((2, 3)), ONE, decay=0.9), r"keys must have .* but has \[2, 3\]"),
        (lambda: memory.lrua_step(BEFORE, jnp.ones((2, 2)), ONE[:1], decay=0.9), r"gates must have shape \[2\]"),
        (
            lambda: memory.lrua_step(BEFORE, jnp.ones((2, 2)), ONE, decay=0.9, written=jnp.ones((3, 2))),
            r"written must have shape \[2, 2\], but has \[3, 2\]",
        ),
        (
            lambda: memory.lrua_step(
                BEFORE._replace(read_weights=jnp.ones((4, 3))), jnp.ones((4, 2)), jnp.ones(4), decay=0.9
            ),
            "4 heads read and write, each a slot of its own, but the memory has 3",
        ),
        (
            lambda: memory.address(jnp.ones((2, 3)), BEFORE.memory, HEADS._replace(shift=jnp.ones((2, 4)))),
            r"shift must have shape \[2, 3\], but has \[2, 4\]",
        ),
        (
            lambda: memory.address(jnp.ones((2, 3)), BEFORE.memory, HEADS._replace(gate=ONE[:1])),
            r"gate must have shape \[2\], but has \[1\]",
        ),
        (lambda: memory.address(jnp.ones((2, 4)), BEFORE.memory, HEADS), r"memory must have shape \[4, 2\]"),
        (
            lambda: memory.ntm_step(memory.NTMState(BEFORE.memory, jnp.ones((3, 3))), HEADS, ONE, ONE),
            r"key must have shape \[3, 2\], but has \[2, 2\]",
        ),
        (
            lambda: memory.ntm_step(memory.NTMState(BEFORE.memory, jnp.ones((2, 3))), HEADS, ONE[:1], ONE),
            r"erase must have shape \[2\], but has \[1\]",
        ),
        (
            lambda: memory.lrua_step(
                jax.tree.map(lambda leaf: leaf[None], BEFORE), jnp.ones((1, 2, 2)), jnp.ones((1, 2)), decay=0.9
            ),
            r"read_weights must have shape \[reads slots\], but has \[1, 2, 3\]: map over what is more",
        ),
        (
            lambda: memory.ntm_step(memory.NTMState(BEFORE.memory, jnp.ones((1, 3))), HEADS, ONE, ONE),
            "an NTM writes with one head and reads with the others, but has 1",
        ),
        (lambda: MANN(addressing="dnc").blank(), "addressing must be one of"),  # type: ignore
        (
            lambda: MANN(**SMALL).init(
                jax.random.key(0), jnp.ones((2, 5)), jnp.ones((2, 3)), MANN(**{**SMALL, "slots": 9}).blank()
            ),
            "state must be of a network like this",
        ),
    ],
)
def test_what_does_not_fit_the_memory_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_empty_sequence_has_no_answers_and_changes_nothing() -> None:
    model = MANN(**SMALL)
    params = initialise(model, jnp.ones((2, 5)), jnp.ones((2, WAYS)))
    outputs, state, _ = model.apply(params, jnp.ones((0, 5)), jnp.ones((0, WAYS)))  # type: ignore
    assert outputs.shape == (0, WAYS)
    jax.tree.map(np.testing.assert_array_equal, state, model.blank())


@pytest.mark.usefixtures("float64")
def test_weights_are_in_single_precision_whatever_the_default_is() -> None:
    params = MANN(**SMALL).init(jax.random.key(0), jnp.ones((2, 5)), jnp.ones((2, WAYS)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_it_learns_to_bind() -> None:
    """On clean vectors, the second presentation soon beats chance by far: the label was stored and found."""
    import optax

    from jaxmeta import fit

    def sample(data: Any, key: jax.Array) -> Episode:
        x = jax.random.normal(key, (WAYS, 8))
        batches = (Batch(jnp.repeat(x, n, axis=0), jnp.repeat(jnp.arange(WAYS), n)) for n in (1, 3))
        return Episode(*batches)

    learner = mann(MANN(features=32, slots=8, width=8, reads=1), ways=WAYS)
    source = tasks.Source(sample, (), {"name": "vectors"})
    result = fit(learner, source, optax.adam(1e-2), steps=500, meta_batch=16, chunk=8, progress=False)
    first, last = result.history[0], result.history[-1]
    assert last["instance_2"] > 0.6 > first["instance_2"] + 0.1
    assert last["instance_1"] < 0.6, "what was never shown cannot be known"


def test_the_benchmark_judges_by_presentation_and_tells_how_sharply_it_reads() -> None:
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import mann as benchmark

    model = MANN(**SMALL)
    source = tasks.episodes(tasks.glyphs("test", classes=20, image_size=8), ways=WAYS, shots=1, queries=9)
    episode = source.sample(source.data, jax.random.key(0))
    params = mann(model, ways=WAYS).init(jax.random.key(0), episode)
    found, largest = benchmark.judge(model, params, source, ways=WAYS, code="one_hot", episodes=2, seed=3)
    for key, row in zip(jax.random.split(jax.random.key(3), 2), found, strict=True):
        sample_key, read_key = jax.random.split(key)
        batch = jax.tree.map(lambda *parts: jnp.concatenate(parts), *source.sample(source.data, sample_key))
        reading = memory.read_episode(model, params, batch, read_key, ways=WAYS)
        seen, right = np.zeros(WAYS, int), np.zeros(10)
        for label, answer in zip(np.asarray(reading.labels), np.asarray(reading.right), strict=True):
            right[seen[label]] += answer / WAYS
            seen[label] += 1
        np.testing.assert_allclose(row, right, rtol=1e-6)
    assert largest is not None
    assert 1 / SLOTS < largest < 1
    blind = MANN(**SMALL, addressing="none")
    params = mann(blind, ways=WAYS).init(jax.random.key(0), episode)
    assert benchmark.judge(blind, params, source, ways=WAYS, code="one_hot", episodes=2, seed=3)[1] is None
