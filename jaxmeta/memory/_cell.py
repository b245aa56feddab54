"""The memory-augmented network: a controller, heads and a memory, one step at a time.

    x_t, y_{t-1}, r_{t-1}  ->  controller  ->  h_t  ->  heads  ->  memory  ->  r_t        o_t = W (h_t, r_t) + b

with an LSTM as controller

    f, i, o, u = W_x (x_t, y_{t-1}) + W_h (h_{t-1}, r_{t-1}) + b        (sigmoid of f, i, o and tanh of u)
    c_t = f c_{t-1} + i u        h_t = o tanh(c_t)

or a feed-forward one, h_t = tanh(W_x (x_t, y_{t-1}) + W_h r_{t-1} + b). What does not depend on the state, W_x and the
output, is one matrix product over the whole sequence, outside the scan.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta.memory._addressing import LRUAState, NTMHeads, NTMState, lrua_step, ntm_step
from jaxmeta.memory._recurrence import scan_deferred
from jaxmeta.nn import dot_general, lstm_update

Controller = Literal["lstm", "feedforward"]
Addressing = Literal["lrua", "ntm", "none"]
Written = Literal["own", "key"]
Kernels = dict[str, jax.Array]

_BLANK = 1e-6  # every entry of a memory nothing was written to


class CellState(NamedTuple):
    """What a memory-augmented cell carries from step to step.

    Attributes:
        hidden: `[features]`, h.
        cell: `[features]`, c; stays zero for a feed-forward controller.
        read: `[reads * width]`, r.
        memory: the memory's own state; None without one.
    """

    hidden: jax.Array
    cell: jax.Array
    read: jax.Array
    memory: LRUAState | NTMState | None


class Trace(NamedTuple):
    """What a memory did, step by step.

    Attributes:
        read_weights: `[steps, reads, slots]`.
        write_weights: `[steps, heads, slots]`; one head for an NTM.
        usage: `[steps, slots]`, after each step; zeros for an NTM, which keeps none.
    """

    read_weights: jax.Array
    write_weights: jax.Array
    usage: jax.Array


class Cell(NamedTuple):
    """One step of a memory-augmented network, as a pure function. Fields as `MANN`'s attributes."""

    controller: Controller
    features: int
    addressing: Addressing
    slots: int
    width: int
    reads: int
    decay: float
    read_input: bool
    written: Written
    strength: float

    @property
    def gates(self) -> int:
        """Pre-activations of the controller."""
        return self.features * (4 if self.controller == "lstm" else 1)

    def first_bias(self, key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        """1 for forget gates, 0 for all else."""
        del key
        return jnp.zeros(shape, dtype).at[: self.features * (self.controller == "lstm")].set(1)

    def kernels(self) -> dict[str, tuple[int, int]]:
        """Shapes of the kernels that a step multiplies by."""
        lstm, read = self.controller == "lstm", self.reads * self.width * (self.addressing != "none")
        fed_back = self.features * lstm + read * self.read_input
        lrua = self.reads * (1 + self.width * (2 if self.written == "own" else 1))
        heads = {"lrua": lrua, "ntm": (self.reads + 1) * (self.width + 6) + 2 * self.width}
        shapes = {
            "controller": (fed_back, self.gates),
            "heads": (self.features, heads.get(self.addressing, 0)),
        }
        return {name: shape for name, shape in shapes.items() if all(shape)}

    def step(self, kernels: Kernels, state: CellState, bias: Kernels) -> tuple[CellState, tuple[Any, Any], Kernels]:
        """To `(state, ((h, r), trace), fed)`; `bias["controller"]` is W_x (x_t, y_{t-1}) + b."""
        gates, fed = bias["controller"], {}
        if "controller" in kernels:
            back = [state.hidden] if self.controller == "lstm" else []
            back += [state.read] if self.read_input and self.addressing != "none" else []
            fed["controller"] = jnp.concatenate(back)
            gates += self._product(fed["controller"], kernels["controller"])
        hidden, cell = self._control(gates, state.cell)
        if self.addressing == "none":
            return CellState(hidden, cell, state.read, None), (hidden, None), fed
        step: Any = self._lrua if self.addressing == "lrua" else self._ntm
        memory, read, trace = step(state.memory, bias["heads"] + self._product(hidden, kernels["heads"]))
        read = read.ravel()
        outputs = jnp.concatenate([hidden, read])
        return CellState(hidden, cell, read, memory), (outputs, trace), {**fed, "heads": hidden}

    def _product(self, fed: jax.Array, kernel: jax.Array) -> jax.Array:
        """`fed @ kernel`, whose derivative is fast where a batch of episodes shares the kernel."""
        return dot_general(fed[None], kernel, (((1,), (0,)), ((), ())))[0]

    def _control(self, gates: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.controller == "feedforward":
            return jnp.tanh(gates), cell
        return lstm_update(gates, cell)

    def _lrua(self, memory: LRUAState, emitted: jax.Array) -> tuple[LRUAState, jax.Array, Trace]:
        gates, vectors = emitted[: self.reads], jnp.tanh(emitted[self.reads :].reshape(-1, self.reads, self.width))
        memory, read, write_weights = lrua_step(
            memory,
            vectors[0],
            jax.nn.sigmoid(gates),
            decay=self.decay,
            written=vectors[-1],
            strength=self.strength,
        )
        return memory, read, Trace(memory.read_weights, write_weights, memory.usage)

    def _ntm(self, memory: NTMState, emitted: jax.Array) -> tuple[NTMState, jax.Array, Trace]:
        write, heads = emitted[: 2 * self.width], emitted[2 * self.width :].reshape(self.reads + 1, -1)
        key, strength, gate, sharpness, shift = jnp.split(heads, [self.width + i for i in range(4)], axis=1)
        addressed = NTMHeads(
            jnp.tanh(key),
            jax.nn.softplus(strength[:, 0]),
            jax.nn.sigmoid(gate[:, 0]),
            jax.nn.softmax(shift),
            1 + jax.nn.softplus(sharpness[:, 0]),
        )
        erase, add = jax.nn.sigmoid(write[: self.width]), jnp.tanh(write[self.width :])
        memory, read, written = ntm_step(memory, addressed, erase, add)
        return memory, read, Trace(memory.weights[:-1], written, jnp.zeros(self.slots, erase.dtype))


class MANN(nn.Module):
    """A memory-augmented network over a sequence.

    Sizes are the paper's. Without a memory (`addressing="none"`) it is the paper's baseline, an LSTM or a
    feed-forward network on the same sequence. The LSTM's forget gates start with a bias of 1.

    Attributes:
        controller: `"lstm"` or `"feedforward"`.
        features: units of the controller.
        addressing: `"lrua"`, `"ntm"` (content and location) or `"none"`.
        slots: rows of the memory.
        width: entries of a row.
        reads: read heads. LRUA writes with each of them, an NTM with one head of its own.
        decay: LRUA's gamma; some re-implementations take 0.95.
        input_scale: how many times as wide as LeCun's the weights of x start. Those suit entries whose mean square is
            1; that of ink, at 20 x 20 pixels, is about 0.05, for which 4 makes up.
        read_input: feed what was read to the controller's next step. The paper's text says so, its equations do not.
        written: what a head of LRUA writes: `"own"`, a vector that the controller emits for it, as public
            re-implementations do; `"key"`, the key that it reads by, as in the paper's equation 7. Then one vector has
            to store the last input with its label and to look the new input up.
        strength: LRUA's inverse temperature of reading; 1 in the paper. See `lrua_step`.

    References:
        Santoro, Bartunov, Botvinick, Wierstra, Lillicrap 2016, arXiv:1605.06065; Graves, Wayne, Danihelka 2014,
        arXiv:1410.5401.
    """

    controller: Controller = "lstm"
    features: int = 200
    addressing: Addressing = "lrua"
    slots: int = 128
    width: int = 40
    reads: int = 4
    decay: float = 0.99
    input_scale: float = 1.0
    read_input: bool = True
    written: Written = "own"
    strength: float = 1.0

    @nn.compact
    def __call__(
        self, x: jax.Array, labels: jax.Array, state: CellState | None = None
    ) -> tuple[jax.Array, CellState, Trace | None]:
        """Runs over a sequence.

        Args:
            x: `[steps, ...]`, inputs, flattened here.
            labels: `[steps, d]`, the label of the step *before*, in code; zeros where there was none.
            state: what to start from; None for an empty memory.

        Returns:
            `(outputs, state, trace)`: `[steps, d]`, the state after the last step, and what the memory did (None
            without a memory).

        Raises:
            ValueError: an attribute is out of its range, there are more reads than slots, or labels or the state do
                not fit.
        """
        self._check()
        if labels.ndim != 2 or len(labels) != len(x):
            raise ValueError(f"labels must have shape [{len(x)}, d], one row for each of x, but have {labels.shape}")
        own, given = (jax.tree.map(jnp.shape, found) for found in (self.blank(), state))
        if state is not None and given != own:
            raise ValueError(f"state must be of a network like this, with shapes {own}, but has {given}")
        cell = self._cell()
        flat = x.reshape(len(x), math.prod(x.shape[1:]))
        # Each starts by a rule of its own: five numbers of a label would be lost among 400 of an image.
        wide = nn.initializers.variance_scaling(self.input_scale**2, "fan_in", "truncated_normal")
        seen = nn.Dense(cell.gates, kernel_init=wide, bias_init=cell.first_bias, name="input")(flat)
        told = nn.Dense(cell.gates, use_bias=False, name="label")(labels)
        shapes, init = cell.kernels(), nn.initializers.lecun_normal()
        biases = {"controller": seen + told}
        state = self.blank(biases["controller"].dtype) if state is None else state
        kernels = {name: self.param(name, init, shape, jnp.float32) for name, shape in shapes.items()}
        if "heads" in shapes:
            bias = self.param("heads_bias", nn.initializers.zeros, shapes["heads"][1:], jnp.float32)
            biases["heads"] = jnp.broadcast_to(bias, (len(x), len(bias)))
        end, (hidden, trace) = scan_deferred(cell.step, kernels, state, biases)
        return nn.Dense(labels.shape[1], name="output")(hidden), end, trace

    def _cell(self) -> Cell:
        return Cell(*(getattr(self, name) for name in Cell._fields))

    def blank(self, dtype: jnp.dtype | type = jnp.float32) -> CellState:
        """The state at the start of an episode: nothing written, and slot 0 the one used last."""
        self._check()
        zeros, first = jnp.zeros(self.features, dtype), jax.nn.one_hot(0, self.slots, dtype=dtype)
        rows, reads = jnp.full((self.slots, self.width), _BLANK, dtype), jnp.tile(first, (self.reads, 1))
        memory = {
            "lrua": LRUAState(rows, first, reads),
            "ntm": NTMState(rows, jnp.concatenate([reads, first[None]])),
            "none": None,
        }[self.addressing]
        return CellState(zeros, zeros, jnp.zeros(self.reads * self.width, dtype), memory)

    def _check(self) -> None:
        if self.controller not in get_args(Controller):
            raise ValueError(f"controller must be one of {get_args(Controller)}, but is {self.controller!r}")
        if self.addressing not in get_args(Addressing):
            raise ValueError(f"addressing must be one of {get_args(Addressing)}, but is {self.addressing!r}")
        if self.written not in get_args(Written):
            raise ValueError(f"written must be one of {get_args(Written)}, but is {self.written!r}")
        for name, least in (("features", 1), ("width", 1), ("reads", int(self.addressing != "none"))):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, but is {getattr(self, name)}")
        for name in ("input_scale", "strength"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, but is {getattr(self, name)}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], but is {self.decay}")
        if self.addressing != "none" and self.reads > self.slots:
            raise ValueError(f"reads must not be more than the memory's slots={self.slots}, but is {self.reads}")
