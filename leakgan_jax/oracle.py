"""The oracle of the synthetic task: a fixed, random LSTM language model that makes the data and scores samples.

Source: Yu et al. 2017, SeqGAN, arXiv:1609.05473, section "Synthetic data"; used again by Guo et al. 2018,
LeakGAN, arXiv:1709.08624. The score of a generator is `nll` of its samples, in nats a token; the published
oracle's own samples of 20 tokens score 5.750. `E` is the embedding width, `H` the hidden width.
"""

import io
import math
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from leakgan_jax import data, parallel, sampling
from leakgan_jax.config import printable, shown
from leakgan_jax.types import Array, Key

START = 0  # an ordinary word of the vocabulary, as in the published oracle
_MAX_BYTES = 2**30
_MAX_STEPS = 100_000  # opcodes of a pickle, entries of an archive: the real ones have a few hundred, and 15
_DRAWN = 5_000  # sentences drawn at a time; 100 MB of logits at 5,000 words
_CHUNK = 500  # sentences; 200 MB of logits at 20 tokens and 5,000 words


class OracleError(ValueError):
    """A parameter file is unusable; one line that names the file and what would be right."""


class OracleParams(NamedTuple):
    """float32 parameters, in the order and under the names of the published file.

    Gates are input (i), forget (f), output (og) and candidate (c): `x @ W + h @ U + b`, logits `h @ Wo + bo`.
    """

    embedding: Array  # [V, E]
    Wi: Array  # [E, H]
    Ui: Array  # [H, H]
    bi: Array  # [H]
    Wf: Array
    Uf: Array
    bf: Array
    Wog: Array
    Uog: Array
    bog: Array
    Wc: Array
    Uc: Array
    bc: Array
    Wo: Array  # [H, V]
    bo: Array  # [V]


class _Carry(NamedTuple):
    token: Array  # [B] int32, drawn last
    hidden: Array  # [B, H]
    cell: Array  # [B, H]


def load(path: str | os.PathLike) -> OracleParams:
    """Reads oracle parameters from an `.npz` of named arrays or from the published pickle (a list of 15).

    The kind is told by content, not by name. Nothing in the file is run: an archive is read without pickles, and
    a pickle by a reader that knows lists, tuples, numbers, strings and NumPy's arrays, and no other callable.
    Arrays may be float16, float32 or float64; they become float32.

    Raises:
        OracleError if the file is missing, a folder, empty, over 1 GB (also when unpacked), of another kind, holds
        anything but the 15 float arrays, or if these are not finite or their shapes do not fit one another.
    """
    path = pathlib.Path(path)
    try:
        if path.is_dir():
            raise OracleError("is a folder; give the .npz or .pkl file itself")
        if not path.exists():
            raise OracleError("no such file; give the oracle's .npz or .pkl")
        if not path.is_file():
            raise OracleError("is not a regular file; give the oracle's .npz or .pkl")
        size = path.stat().st_size
        if not 0 < size <= _MAX_BYTES:
            raise OracleError(f"has {size:,} bytes; an oracle has more than none and at most {_MAX_BYTES:,}")
        content = data.read_bytes(path, _MAX_BYTES)
        arrays = _read_npz(content) if content.startswith(b"PK") else _read_pickle(content)
        return OracleParams(**_validated(arrays))
    except data.DataError as error:
        raise OracleError(str(error)) from None
    except OracleError as error:
        raise OracleError(f"{path}: {error}") from None
    except OSError as error:
        raise OracleError(f"{path}: cannot be read ({error.strerror}); give a readable .npz or .pkl") from error
    except Exception as error:  # what zipfile, NumPy and pickle raise on damaged content has no common class
        message = "is neither an intact .npz nor an intact pickle of the 15 oracle arrays"
        raise OracleError(f"{path}: {message} ({type(error).__name__})") from error


def init(key: Key, vocab_size: int, hidden: int) -> OracleParams:
    """A new oracle: every parameter from N(0, 1), embedding as wide as `hidden`.

    Source: Yu et al. 2017, section "Synthetic data". Consumes `key`.
    Raises:
        ValueError if a size is below 1.
    """
    if vocab_size < 1 or hidden < 1:
        raise ValueError(f"vocab_size and hidden must be at least 1, got {vocab_size} and {hidden}")
    shapes = _shapes(vocab_size, hidden, hidden)
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    return OracleParams(**{name: jax.random.normal(keys[name], shape, jnp.float32) for name, shape in shapes.items()})


def sample(params: OracleParams, key: Key, num: int, length: int) -> Array:
    """Draws `num` sentences of `length` tokens from START; pure, `num` and `length` static. Consumes `key`.

    Returns:
        `[num, length]` int32. Token t of row r comes of `row_uniform(split(key, num)[r], t)`, whatever `length`.
    """
    table, recurrent = _fused_gates(params)
    # A row has its own key, so rows need not be drawn together, and memory is bounded.
    batch = min(num, _DRAWN)
    row_keys = jax.random.split(key, -(-num // batch) * batch).reshape(-1, batch)
    tokens = jax.lax.map(lambda keys: _sample_rows(params, table, recurrent, keys, length), row_keys)
    return tokens.reshape(-1, length)[:num]


def _sample_rows(params: OracleParams, table: Array, recurrent: Array, row_keys: Key, length: int) -> Array:
    """One sentence a key, `[B, length]`."""
    num = row_keys.shape[0]

    def step(carry: _Carry, position: Array) -> tuple[_Carry, Array]:
        hidden, cell = _lstm(table[carry.token], recurrent, carry.hidden, carry.cell)
        token = sampling.draw(_logits(params, hidden), sampling.row_uniform(row_keys, position))
        return _Carry(token, hidden, cell), token

    zeros = jnp.zeros((num, recurrent.shape[0]), jnp.float32)
    start = parallel.spread(_Carry(jnp.full((num,), START, jnp.int32), zeros, zeros))
    _, tokens = jax.lax.scan(step, start, jnp.arange(length))
    return tokens.T


def log_prob(params: OracleParams, tokens: Array) -> Array:
    """log p(x_t | x_1..x_{t-1}) of every token.

    Args:
        tokens: `[B, T]` int in [0, V); not checked. Builds `[T, B, V]` logits: see `nll` for many sentences.
    Returns:
        `[B, T]` float32, nats, at most 0.
    Raises:
        AssertionError, at trace time, if `tokens` is not a matrix of integers.
    """
    chex.assert_rank(tokens, 2)
    chex.assert_type(tokens, int)
    table, recurrent = _fused_gates(params)
    seen = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=START)

    def step(state: tuple[Array, Array], gates: Array) -> tuple[tuple[Array, Array], Array]:
        state = _lstm(gates, recurrent, *state)
        return state, state[0]

    zeros = jnp.zeros((tokens.shape[0], recurrent.shape[0]), jnp.float32)
    _, hidden = jax.lax.scan(step, (zeros, zeros), table[seen.T])  # [T, B, H]
    logits = _logits(params, hidden)
    chosen = jnp.take_along_axis(logits, tokens.T[..., None], axis=-1)[..., 0]
    return (chosen - jax.nn.logsumexp(logits, axis=-1)).T


def nll(params: OracleParams, tokens: Array) -> Array:
    """Mean of -log p over all tokens: "NLL-oracle" of the papers, lower is better.

    Args:
        tokens: `[B, T]` int in [0, V), `B, T >= 1`; taken 500 sentences at a time to bound memory.
    Returns:
        `[]` float32, nats a token.
    Raises:
        ValueError if there are no tokens; AssertionError, at trace time, as in `log_prob`.
    """
    chex.assert_rank(tokens, 2)
    if not tokens.size:
        raise ValueError(f"tokens must hold a sentence of at least one token, got shape {tokens.shape}")
    num_full, length = tokens.shape[0] // _CHUNK, tokens.shape[1]
    full = tokens[: num_full * _CHUNK].reshape(num_full, _CHUNK, length)
    total = jnp.sum(log_prob(params, tokens[num_full * _CHUNK :]))  # of the rest; 0 if there is none
    if num_full:
        total += jnp.sum(jax.lax.map(lambda chunk: jnp.sum(log_prob(params, chunk)), full))
    return -total / tokens.size


def _fused_gates(params: OracleParams) -> tuple[Array, Array]:
    """What a word adds to the four gates, `[V, 4H]`, and what the state is multiplied by, `[H, 4H]`."""
    kernel = jnp.concatenate([params.Wi, params.Wf, params.Wog, params.Wc], axis=1)
    recurrent = jnp.concatenate([params.Ui, params.Uf, params.Uog, params.Uc], axis=1)
    bias = jnp.concatenate([params.bi, params.bf, params.bog, params.bc])
    return _matmul(params.embedding, kernel) + bias[None], recurrent


def _lstm(gates: Array, recurrent: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
    """One step: the input's part of the gates `[B, 4H]`, state -> hidden and cell, each `[B, H]`."""
    into, forget, out, candidate = jnp.split(gates + _matmul(hidden, recurrent), 4, axis=-1)
    cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(into) * jnp.tanh(candidate)
    return jax.nn.sigmoid(out) * jnp.tanh(cell), cell


def _logits(params: OracleParams, hidden: Array) -> Array:
    """`[..., H]` -> `[..., V]`."""
    return _matmul(hidden, params.Wo) + jnp.expand_dims(params.bo, range(hidden.ndim - 1))


def _matmul(x: Array, y: Array) -> Array:
    """Full float32 on every device: the oracle is a yardstick, and accelerators would round to 10 bits or fewer."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def _shapes(num_words: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shape of every array, by name, in the published order."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (num_words, width)}
    for gate in ("i", "f", "og", "c"):
        shapes |= {f"W{gate}": (width, hidden), f"U{gate}": (hidden, hidden), f"b{gate}": (hidden,)}
    return shapes | {"Wo": (hidden, num_words), "bo": (num_words,)}


def _validated(arrays: dict[str, np.ndarray]) -> dict[str, Array]:
    """The 15 arrays as finite float32 on the device; sizes are told from `embedding` and `Wo`."""
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise OracleError(f"array {name} has dtype {printable(str(array.dtype))[:80]}, should be float")
    if (total := sum(array.nbytes for array in arrays.values())) > _MAX_BYTES:  # a pickle may name one many times
        raise OracleError(f"holds {total:,} bytes of arrays, should be at most {_MAX_BYTES:,}")
    for name in ("embedding", "Wo"):
        if arrays[name].ndim != 2 or not arrays[name].size:
            raise OracleError(
                f"array {name} has shape {shown(arrays[name].shape)}, should be a matrix that is not empty"
            )
    num_words, width = arrays["embedding"].shape
    for name, shape in _shapes(num_words, width, arrays["Wo"].shape[0]).items():
        if arrays[name].shape != shape:
            found = shown(arrays[name].shape)
            raise OracleError(f"array {name} has shape {found}, should have {shape} to fit embedding and Wo")
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, which is told below
        arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise OracleError(f"array {name} holds NaN, infinity or more than float32 can, should be finite")
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def _read_npz(content: bytes) -> dict[str, np.ndarray]:
    """Arrays by name. Of NumPy's reader the header alone: the rest of it allocates whatever a header claims."""
    if content.count(b"PK\1\2") > _MAX_STEPS:  # of the central directory: an object for each, before any is read
        raise OracleError(f"has over {_MAX_STEPS:,} entries, should have 15")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if (unpacked := sum(entry.file_size for entry in archive.infolist())) > _MAX_BYTES:
            raise OracleError(f"unpacks to {unpacked:,} bytes, should be at most {_MAX_BYTES:,}")
        if missing := [name for name in OracleParams._fields if f"{name}.npy" not in entries]:
            raise OracleError(f"lacks the arrays {', '.join(missing)}; should hold {', '.join(OracleParams._fields)}")
        return {name: _read_npy(archive, entries[f"{name}.npy"], name) for name in OracleParams._fields}


def _read_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> np.ndarray:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA takes what memory a file asks for
        raise OracleError(f"array {name} is packed in a way that NumPy never uses, should be stored or deflated")
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        if dtype.kind != "f":
            raise OracleError(f"array {name} has dtype {printable(str(dtype))[:80]}, should be float")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size > entry.file_size:
            raise OracleError(
                f"array {name} is of shape {shown(shape)}, for which its {entry.file_size:,} bytes are few"
            )
        return np.frombuffer(file.read(size), dtype).reshape(shape, order="F" if fortran else "C")


def _read_pickle(content: bytes) -> dict[str, np.ndarray]:
    items = _Unpickler(io.BytesIO(content), encoding="latin1").load()  # latin1: byte strings of Python 2
    if not isinstance(items, list) or not all(isinstance(item, _PickledArray) for item in items):
        raise OracleError("is a pickle of something else, should be a list of 15 NumPy arrays")
    if len(items) != len(OracleParams._fields):
        raise OracleError(f"holds {len(items)} arrays, should hold 15: {', '.join(OracleParams._fields)}")
    return {name: item.array() for name, item in zip(OracleParams._fields, items, strict=True)}


class _PickledDtype:
    """Stands for `numpy.dtype` while unpickling."""

    def __init__(self, code, align=False, copy=False):
        self.code, self.order = code, "="

    def __setstate__(self, state):
        self.order = state[1]


class _PickledArray:
    """Stands for `numpy.ndarray`: NumPy's own `__setstate__` is native code that trusts what it is given."""

    def __init__(self, *_):  # the arguments of `_reconstruct`, which makes an empty array
        self.state: Any = None

    def __setstate__(self, state):
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        if dtype.code not in ("f2", "f4", "f8") or dtype.order not in ("<", ">", "="):
            raise OracleError("holds an array that is not float, should hold 15 float arrays")
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, dtype.order + dtype.code).reshape(shape, order="F" if fortran else "C")


_STAND_INS = {
    "numpy.core.multiarray._reconstruct": _PickledArray,
    "numpy._core.multiarray._reconstruct": _PickledArray,
    "numpy.ndarray": _PickledArray,
    "numpy.dtype": _PickledDtype,
}
_OPCODES = """
PROTO FRAME MARK STOP GLOBAL STACK_GLOBAL REDUCE BUILD NONE NEWTRUE NEWFALSE INT LONG BININT BININT1 BININT2 EMPTY_LIST
LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET STRING
BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8
"""


def _code(name: str) -> int:
    return getattr(pickle, name)[0]


def _counted(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def step(unpickler: "_Unpickler") -> None:
        unpickler.steps += 1
        if unpickler.steps > _MAX_STEPS:
            raise OracleError(f"is a pickle of over {_MAX_STEPS:,} steps, should be a list of 15 NumPy arrays")
        load(unpickler)

    return step


class _Unpickler(pickle._Unpickler):
    """Reads arrays alone. In Python, not C: there opcodes can be left out, and a forged memo index costs no memory.

    Left out are dicts and sets (hashing nested tuples can take for ever), bytearrays (allocated before they are
    read), and every other way to make objects. Steps are counted: a byte of an opcode can make an object of 60.
    """

    steps = 0

    def load_reduce(self) -> None:
        stack = self.stack  # type: ignore[attr-defined]
        if type(stack[-1]) is not tuple:  # a string would be spread, character by character
            raise OracleError("is a pickle that no pickler writes, should be a list of 15 NumPy arrays")
        super().load_reduce()  # type: ignore[misc]

    dispatch = {code: _counted(pickle._Unpickler.dispatch[code]) for code in map(_code, _OPCODES.split())}
    dispatch[pickle.REDUCE[0]] = _counted(load_reduce)

    def find_class(self, module: str, name: str) -> type:
        if stand_in := _STAND_INS.get(f"{module}.{name}"):
            return stand_in
        found = f"{module}.{name}"[:80].encode("unicode_escape").decode()
        raise OracleError(f"holds more than NumPy arrays ({found}): refused; should be a list of 15 arrays")
