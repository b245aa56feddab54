"""Orderings of a finite pool of mini-batches, all of them or few that average alike.

Term by term, an expansion to order alpha^(t-1) looks at no more than t mini-batches at once. Averages over all
n! / (n-k)! orderings are therefore reached, exactly, by any set of orderings in which every t positions show every t
different batches equally often. Two such sets are the sharply transitive groups of a finite field with q elements:

| strength t | group | pool n | orderings |
|---|---|---|---|
| 2 | x -> a x + b over GF(q) | q | q (q - 1) |
| 3 | x -> (a x + b) / (c x + d) over GF(q) and infinity | q + 1 | (q + 1) q (q - 1) |

The first k points are the positions. For k = 8 of a pool of 8 these are 56 and 336 orderings where all would be 40,320.
"""

import itertools
import math

import numpy as np


def orderings(n: int, k: int, *, strength: int | None = None) -> np.ndarray:
    """Ordered choices of k from a pool of n mini-batches.

    Args:
        n: mini-batches in the pool.
        k: how many follow each other.
        strength: None for all n! / (n-k)! orderings; 2 or 3 for a set in which every pair or triple of positions
            shows every ordered pair or triple of batches equally often.

    Returns:
        Integers in `[0, n)`, `[orderings, k]`, no repeats within a row.

    Raises:
        ValueError: k is not in `[1, n]`, or no such set is known for this n.

    >>> len(orderings(8, 8, strength=2)), len(orderings(8, 8, strength=3)), len(orderings(4, 2))
    (56, 336, 12)
    """
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must lie between 1 and the number of mini-batches in the pool, {n}")
    if strength is None:
        return np.array(list(itertools.permutations(range(n), k)))
    if strength not in (2, 3):
        raise ValueError(f"strength must be None, 2 or 3, but is {strength}")
    q = n + 2 - strength
    if not _is_field(q):
        raise ValueError(
            f"strength={strength} wants a pool of {'q' if strength == 2 else 'q + 1'} mini-batches, q a prime, 4, 8 or "
            f"16, but n={n}; pool_size({k}, strength={strength}) is {pool_size(k, strength=strength)}"
        )
    return (_affine(q) if strength == 2 else _projective(q))[:, :k]


def pool_size(k: int, *, strength: int) -> int:
    """The smallest pool of at least k mini-batches that `orderings` of a strength exist for.

    Args:
        k: how many follow each other.
        strength: 2 or 3.

    Raises:
        ValueError: k is less than 1, or no sets of this strength are known.

    >>> pool_size(6, strength=2), pool_size(7, strength=3)
    (7, 8)
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, but is {k}")
    if strength not in (2, 3):
        raise ValueError(f"strength must be 2 or 3, but is {strength}")
    return next(n for n in itertools.count(max(k, strength)) if _is_field(n + 2 - strength))


def exact_orderings(n: int, k: int, order: int) -> np.ndarray:
    """Orderings whose average is that over all of them in every term up to an order in alpha, as few as are known.

    Raises:
        ValueError: for this pool none are known but all, and these are more than 50,000.
    """
    every = math.perm(n, k)
    for strength in range(order + 1, 4):
        size = n * (n - 1) * (n - 2 if strength == 3 else 1)
        if size < every and _is_field(n + 2 - strength):
            return orderings(n, k, strength=strength)
    if every > 50_000:
        raise ValueError(
            f"k={k} of {n} mini-batches have {every} orderings; a pool of {pool_size(k, strength=order + 1)} needs few"
        )
    return orderings(n, k)


def _affine(q: int) -> np.ndarray:
    """The images of the points 0 .. q-1 under all x -> a x + b, `[q (q-1), q]`."""
    plus, times = _field(q)
    return np.array([plus[times[a], b] for a in range(1, q) for b in range(q)])


def _projective(q: int) -> np.ndarray:
    """The images of 0 .. q-1 and infinity (written q) under all (a x + b) / (c x + d), `[(q+1) q (q-1), q+1]`."""
    plus, times = _field(q)
    inverse = np.argmax(times == 1, axis=1)
    # Up to a common factor, c = 1 with b other than a d, or c = 0 with d = 1 and a other than 0.
    maps = [(a, b, 1, d) for a in range(q) for b in range(q) for d in range(q) if b != times[a, d]]
    maps += [(a, b, 0, 1) for a in range(1, q) for b in range(q)]

    def image(a: int, b: int, c: int, d: int, x: int) -> int:
        top, bottom = (a, c) if x == q else (plus[times[a, x], b], plus[times[c, x], d])
        return int(times[top, inverse[bottom]]) if bottom else q

    return np.array([[image(*m, x) for x in range(q + 1)] for m in maps])


_MODULI = {4: 0b111, 8: 0b1011, 16: 0b10011}  # irreducible polynomials over GF(2)


def _field(q: int) -> tuple[np.ndarray, np.ndarray]:
    """Tables of sums and products in GF(q), `[q, q]` each."""
    a, b = np.meshgrid(np.arange(q), np.arange(q), indexing="ij")
    if q not in _MODULI:
        return (a + b) % q, a * b % q
    product, shifted = np.zeros_like(a), a
    for bit in range(q.bit_length() - 1):  # polynomials over GF(2), a bit for each coefficient
        product = np.where(b >> bit & 1, product ^ shifted, product)
        shifted = np.where(2 * shifted >= q, 2 * shifted ^ _MODULI[q], 2 * shifted)
    return a ^ b, product


def _is_field(q: int) -> bool:
    return q in _MODULI or (q > 1 and all(q % d for d in range(2, math.isqrt(q) + 1)))
