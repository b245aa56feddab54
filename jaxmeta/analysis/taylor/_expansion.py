r"""Where MAML, first-order MAML and Reptile go, as a power series in the inner rate.

One task, mini-batch losses L_1 .. L_k, phi_1 = phi and phi_{i+1} = phi_i - alpha r_i g_i with g_i = grad L_i(phi_i).
At phi itself write G_i, H_i and T_i for the first three derivatives of L_i; T_i[u, v] is a vector, symmetric in u, v.

**Positions.** With S_i = sum_{j<i} r_j G_j,

    phi_i - phi = -alpha S_i + alpha^2 sum_{j<i} r_j H_j S_j + O(alpha^3).

**Inner gradients**, by Taylor's theorem at phi:

    g_i = G_i - alpha H_i S_i + alpha^2 (H_i sum_{j<i} r_j H_j S_j + 1/2 T_i[S_i, S_i]) + O(alpha^3).         (1)

**First-order MAML** is g_k, and **Reptile** (phi_1 - phi_{k+1}) / alpha = sum_i r_i g_i.

**MAML** multiplies g_k by the Jacobians of the inner steps, with the Hessians where the steps are taken,
H_j(phi_j) = H_j - alpha T_j[S_j, .] + O(alpha^2):

    (I - alpha r_1 H_1(phi_1)) .. (I - alpha r_{k-1} H_{k-1}(phi_{k-1})) g_k
      = g_k - alpha sum_{j<k} r_j H_j G_k
        + alpha^2 (  sum_{j<k} r_j H_j H_k S_k               from the Jacobian's first order and g_k's
                   + sum_{j<k} r_j T_j[S_j, G_k]             from the Hessian having moved
                   + sum_{i<j<k} r_i r_j H_i H_j G_k )       from two Jacobians.                               (2)

**Averages.** Where the mini-batches are exchangeable, the mean of such a product depends only on which of its batches
are one and the same. A word names it, a letter for each different batch in order of appearance:

| word | mean | | word | mean |
|---|---|---|---|---|
| `g` | AvgGrad = E[G_a] | | `HHg:abc` .. | E[H_a H_b G_c], or with equal letters, of one batch |
| `Hg:ab` | AvgGradInner = E[H_a G_b] | | `T:abc` .. | E[T_a[G_b, G_c]], and so on |
| `Hg:aa` | Self = E[H_a G_a] | | | |

Self - AvgGradInner is the covariance of H and G over a task's mini-batches, half the gradient of the trace of G's:
where a mini-batch meets itself, variance takes agreement's place.

`expansion` adds up (1) and (2) word by word. With different batches and r = 1 that gives

| | `g` | `Hg:ab` | `HHg:abc` | `HHg:aba` | `T:abc` | `T:abb` |
|---|---|---|---|---|---|---|
| MAML | 1 | -2 (k-1) | 2 (k-1)(k-2) | k-1 | (k-1)(k-2) | (k-1)/2 |
| first-order MAML | 1 | -(k-1) | (k-1)(k-2)/2 | 0 | (k-1)(k-2)/2 | (k-1)/2 |
| Reptile | k | -k (k-1)/2 | k (k-1)(k-2)/6 | 0 | k (k-1)(k-2)/6 | k (k-1)/4 |

in powers of alpha. Reptile's AvgGrad comes k times: notes on the paper that print 2 are right for k = 2 alone.
"""

import collections
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

Method = Literal["maml", "fomaml", "reptile"]

WORDS = (
    ("g",),
    ("Hg:ab", "Hg:aa"),
    ("HHg:abc", "HHg:aab", "HHg:aba", "HHg:abb", "HHg:aaa", "T:abc", "T:aab", "T:abb", "T:aaa"),
)


class Expansion(NamedTuple):
    """What a method's mean meta-gradient is predicted to be.

    Attributes:
        method: `"maml"`, `"fomaml"` or `"reptile"`.
        batches: which mini-batch each step sees, numbered from 0 as they appear; for MAML and first-order MAML the last
            is the test batch.
        rates: r_i, each adaptation step's rate in units of alpha.
        scale: what the gradient is multiplied by; 1 but for normalised Reptile.
        coefficients: of each word, times alpha to the power of its order.
    """

    method: Method
    batches: tuple[int, ...]
    rates: tuple[float, ...]
    scale: float
    coefficients: Mapping[str, float]

    @property
    def k(self) -> int:
        """Mini-batches in all, the test batch among them, as the paper counts them."""
        return len(self.batches)

    @property
    def different(self) -> int:
        """How many different mini-batches there are."""
        return max(self.batches) + 1

    @property
    def avg_grad(self) -> float:
        """The coefficient of AvgGrad."""
        return self.coefficients["g"]

    @property
    def avg_grad_inner(self) -> float:
        """The coefficient of alpha AvgGradInner."""
        return self.coefficients["Hg:ab"]

    @property
    def self_term(self) -> float:
        """The coefficient of alpha Self."""
        return self.coefficients["Hg:aa"]


def expansion(
    method: Method,
    k: int,
    *,
    test_batch: Literal["included", "separate"] = "included",
    batches: Sequence[int] | None = None,
    rates: Sequence[float] | None = None,
    normalised: bool = False,
) -> Expansion:
    """The coefficients that a method's mean meta-gradient has to second order in alpha.

    Args:
        method: `"maml"`, `"fomaml"` or `"reptile"`.
        k: how many mini-batches. The paper counts all: MAML adapts on k - 1 and tests on the k-th, Reptile adapts on
            all k.
        test_batch: `"separate"`: k counts adaptation steps alone. MAML and first-order MAML then test on one more
            batch, and Reptile leaves it unused.
        batches: which mini-batch each of them is, as `reused_support`, `shared_tail` and `cycling` make them; None for
            all different.
        rates: each adaptation step's rate in units of alpha, r_1 .. r_{k-1} (Reptile, and with a separate test batch:
            .. r_k); None for 1.
        normalised: Reptile divided by alpha k.

    Returns:
        An `Expansion`.

    Raises:
        ValueError: the method is unknown, k is less than 1, `batches` or `rates` has another length than it must, a
            rate is not positive, or something other than Reptile is to be normalised.

    >>> found = expansion("reptile", 5)
    >>> found.avg_grad, found.avg_grad_inner
    (5.0, -10.0)
    >>> expansion("maml", 5, batches=shared_tail(5, 1)).coefficients["Hg:aa"]
    -2.0

    References:
        Nichol, Achiam, Schulman 2018, arXiv:1803.02999, section 5.1, for `g` and `Hg:ab` with equal rates and
        different batches.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {get_args(Method)}, but is {method!r}")
    if test_batch not in ("included", "separate"):
        raise ValueError(f'test_batch must be "included" or "separate", but is {test_batch!r}')
    _check_whole("k", k)
    if normalised and method != "reptile":
        raise ValueError(f"normalised=True divides Reptile by k, but method={method!r}")
    tested = method != "reptile"
    total = k + 1 if tested and test_batch == "separate" else k
    given = tuple(range(total)) if batches is None else tuple(batches)
    if len(given) != total:
        raise ValueError(f"batches must name {total} mini-batches for k={k}, but names {len(given)}: {given}")
    seen: dict[int, int] = {}
    labels = tuple(seen.setdefault(batch, len(seen)) for batch in given)
    steps = total - tested
    speeds = (1.0,) * steps if rates is None else tuple(float(rate) for rate in rates)
    if len(speeds) != steps or not all(0 < rate < math.inf for rate in speeds):
        raise ValueError(
            f"rates must hold {steps} positive finite numbers, one for each adaptation step, but is {speeds}"
        )
    scale = 1 / k if normalised else 1.0
    found: dict[str, float] = collections.defaultdict(float)
    if method == "reptile":
        for i in range(total):
            _add_inner_gradient(found, i, labels, speeds, scale * speeds[i])
    else:
        _add_inner_gradient(found, total - 1, labels, speeds, 1.0)
    if method == "maml":
        _add_jacobians(found, labels, speeds)
    return Expansion(method, labels, speeds, scale, {word: found[word] for order in WORDS for word in order})


def reused_support(steps: int) -> tuple[int, ...]:
    """One support batch for all adaptation steps, then another to test on (Reptile: to step on).

    Raises:
        ValueError: there are fewer than 1 steps.

    >>> reused_support(3)
    (0, 0, 0, 1)
    """
    _check_whole("steps", steps)
    return (0,) * steps + (1,)


def shared_tail(k: int, m: int) -> tuple[int, ...]:
    """Labels of k batches, of which m of the k - 1 earlier ones are the last.

    Raises:
        ValueError: k is less than 1, or m is not in `[0, k - 1]`.

    >>> shared_tail(4, 1)
    (0, 1, 2, 0)
    """
    _check_whole("k", k)
    if not isinstance(m, numbers.Integral) or not 0 <= m <= k - 1:
        raise ValueError(f"m={m} must be whole and lie between 0 and the number of earlier batches, {k - 1}")
    return (0,) * m + tuple(range(1, k - m)) + (0,)


def cycling(k: int, n: int) -> tuple[int, ...]:
    """Labels of k batches that go through n batches in turn, again and again.

    Raises:
        ValueError: k or n is less than 1.

    >>> cycling(5, 2)
    (0, 1, 0, 1, 0)
    """
    _check_whole("k", k)
    _check_whole("n", n)
    return tuple(i % n for i in range(k))


def _check_whole(name: str, value: int) -> None:
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number, 1 or more, but is {value!r}")


def word_of(kind: str, *batches: int) -> str:
    """The word of a product of derivatives of these batches.

    >>> word_of("HHg", 4, 2, 4), word_of("T", 7, 3, 7)
    ('HHg:aba', 'T:aab')
    """
    if kind == "T" and batches[2] == batches[0]:
        batches = (batches[0], batches[2], batches[1])  # T is symmetric in its last two
    letters: dict[int, str] = {}
    return f"{kind}:" + "".join(letters.setdefault(batch, "abc"[len(letters)]) for batch in batches)


def _add_inner_gradient(found: dict[str, float], i: int, b: Sequence[int], r: Sequence[float], weight: float) -> None:
    """Equation (1) for g_i, times a weight."""
    found["g"] += weight
    for j in range(i):
        found[word_of("Hg", b[i], b[j])] -= weight * r[j]
        for m in range(j):
            found[word_of("HHg", b[i], b[j], b[m])] += weight * r[j] * r[m]
        for m in range(i):
            found[word_of("T", b[i], b[j], b[m])] += weight * r[j] * r[m] / 2


def _add_jacobians(found: dict[str, float], b: Sequence[int], r: Sequence[float]) -> None:
    """What equation (2) adds to g_k."""
    last = len(b) - 1
    for j in range(last):
        found[word_of("Hg", b[j], b[last])] -= r[j]
        for m in range(last):
            found[word_of("HHg", b[j], b[last], b[m])] += r[j] * r[m]
        for m in range(j):
            found[word_of("T", b[j], b[m], b[last])] += r[j] * r[m]
            found[word_of("HHg", b[m], b[j], b[last])] += r[j] * r[m]
