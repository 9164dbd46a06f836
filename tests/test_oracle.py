"""The oracle and the token draw, against NumPy loops, known probabilities and damaged files."""

import functools
import io
import math
import os
import pathlib
import pickle
import random
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leakgan_jax import oracle, sampling
from leakgan_jax.oracle import OracleError, OracleParams

PUBLISHED = pathlib.Path(__file__).parents[2] / "shared" / "data" / "oracle"
ALMOST_ONE = 1 - 2**-24  # the float32 below 1
needs_published = pytest.mark.skipif(
    not (PUBLISHED / "target_params.npz").exists(), reason="the published oracle is not beside the repository"
)
init = jax.jit(oracle.init, static_argnums=(1, 2))
draw = jax.jit(sampling.draw)
row_uniform = jax.jit(sampling.row_uniform)
sample = jax.jit(oracle.sample, static_argnums=(2, 3))
log_prob = jax.jit(oracle.log_prob)


@functools.cache
def small(num_words=7, hidden=3):
    return init(jax.random.key(11), num_words, hidden)


def arrays_of(params):
    return [np.asarray(array) for array in params]


# --- a slow reference in float64 ---------------------------------------------------------------------------------


class SlowOracle:
    """One sentence, one token at a time."""

    def __init__(self, params):
        self.p = {name: np.asarray(array, np.float64) for name, array in params._asdict().items()}

    def start(self):
        width = self.p["bi"].shape[0]
        return np.zeros(width), np.zeros(width)

    def step(self, token, h, c):
        x = self.p["embedding"][token]
        pre = {g: x @ self.p["W" + g] + h @ self.p["U" + g] + self.p["b" + g] for g in ("i", "f", "og", "c")}
        gate = {g: 1 / (1 + np.exp(-pre[g])) for g in ("i", "f", "og")}
        c = gate["f"] * c + gate["i"] * np.tanh(pre["c"])
        h = gate["og"] * np.tanh(c)
        weights = np.exp(h @ self.p["Wo"] + self.p["bo"])
        return weights / weights.sum(), h, c

    def log_prob(self, sentence):
        result, token, (h, c) = [], 0, self.start()
        for following in sentence:
            probabilities, h, c = self.step(token, h, c)
            result.append(np.log(probabilities[following]))
            token = following
        return result

    def sample(self, row_key, length):
        result, token, (h, c) = [], 0, self.start()
        for position in range(length):
            probabilities, h, c = self.step(token, h, c)
            uniform = float(jax.random.uniform(jax.random.fold_in(row_key, position)))
            token = int(np.searchsorted(np.cumsum(probabilities), uniform, side="right"))
            result.append(token)
        return result


# --- the oracle --------------------------------------------------------------------------------------------------


def test_init_is_standard_normal_and_every_array_differs():
    params = init(jax.random.key(3), 200, 16)
    assert params.embedding.shape == (200, 16) and params.Wo.shape == (16, 200) and params.bo.shape == (200,)
    values = np.concatenate([array.ravel() for array in arrays_of(params)])
    assert all(array.dtype == jnp.float32 for array in params)
    assert len(np.unique(values)) > 0.999 * len(values)  # no key used twice
    assert abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.05
    with pytest.raises(ValueError, match="at least 1"):
        oracle.init(jax.random.key(3), 0, 16)


@pytest.mark.parametrize("batch, length", [(1, 1), (4, 6)])
def test_log_prob_matches_loops(batch, length):
    tokens = np.random.default_rng(batch).integers(0, 7, (batch, length))
    slow = [SlowOracle(small()).log_prob(row) for row in tokens]
    fast = log_prob(small(), jnp.asarray(tokens, jnp.int32))
    assert fast.dtype == jnp.float32
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-5)


def test_probabilities_of_all_sentences_sum_to_one():
    sentences = np.array(list(np.ndindex(4, 4, 4)), np.int32)
    params = small(4, 3)
    assert np.exp(np.asarray(log_prob(params, sentences)).sum(axis=1)).sum() == pytest.approx(1, abs=1e-5)


def test_two_word_oracle_known_by_hand():
    zeros = OracleParams(**{name: jnp.zeros(shape) for name, shape in oracle._shapes(2, 1, 1).items()})
    params = zeros._replace(bo=jnp.log(jnp.array([3.0, 1.0])))  # state stays 0: p = 3/4, 1/4 at every position
    tokens = jnp.array([[0, 0, 1, 0], [1, 0, 0, 0]], jnp.int32)
    expected = -(6 * math.log(3 / 4) + 2 * math.log(1 / 4)) / 8
    assert float(jax.jit(oracle.nll)(params, tokens)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch", [3, 4, 11])
def test_nll_in_chunks_is_the_plain_mean(batch, monkeypatch):
    monkeypatch.setattr(oracle, "_CHUNK", 4)
    tokens = np.random.default_rng(batch).integers(0, 7, (batch, 3), np.int32)
    chunked = jax.jit(lambda params, tokens: oracle.nll(params, tokens))  # a new function: traced with this _CHUNK
    assert float(chunked(small(), tokens)) == pytest.approx(-np.asarray(log_prob(small(), tokens)).mean(), rel=1e-6)


def test_tokens_are_checked():
    with pytest.raises(ValueError, match=r"at least one token, got shape \(0, 3\)"):
        oracle.nll(small(), jnp.zeros((0, 3), jnp.int32))
    for wrong in (jnp.zeros((3,), jnp.int32), jnp.zeros((2, 3))):
        with pytest.raises(AssertionError):
            oracle.log_prob(small(), wrong)


def test_sample_matches_loops():
    tokens = sample(small(), jax.random.key(8), 6, 5)
    slow = [SlowOracle(small()).sample(row_key, 5) for row_key in jax.random.split(jax.random.key(8), 6)]
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, slow)


def test_a_row_does_not_depend_on_its_batch_nor_a_token_on_the_length():
    many = sample(small(), jax.random.key(9), 6, 5)
    np.testing.assert_array_equal(
        jax.random.key_data(jax.random.split(jax.random.key(9), 2)),
        jax.random.key_data(jax.random.split(jax.random.key(9), 6))[:2],
    )  # so that the first two rows have the same keys
    np.testing.assert_array_equal(sample(small(), jax.random.key(9), 2, 5), many[:2])
    np.testing.assert_array_equal(sample(small(), jax.random.key(9), 6, 3), many[:, :3])


@needs_published
def test_published_oracle_scores_itself_as_published():
    params = oracle.load(PUBLISHED / "target_params.npz")
    tokens = sample(params, jax.random.key(0), 2000, 20)
    assert float(jax.jit(oracle.nll)(params, tokens)) == pytest.approx(5.75, abs=0.06)
    slow = [SlowOracle(params).log_prob(row) for row in np.asarray(tokens[:3])]
    np.testing.assert_allclose(log_prob(params, tokens[:3]), slow, atol=2e-4)


# --- the draw ----------------------------------------------------------------------------------------------------


def draw_one(logits, *uniforms):
    rows = np.broadcast_to(np.asarray(logits, np.float32), (len(uniforms), len(logits)))
    return np.asarray(draw(rows, np.asarray(uniforms, np.float32)))


@pytest.mark.parametrize("num_words", [1, 2, 3, 16, 101, 5000])
def test_draw_is_the_inverse_of_the_cumulative_distribution(num_words):
    rng = np.random.default_rng(num_words)
    logits = rng.normal(size=num_words).astype(np.float32) * 3
    uniforms = rng.random(200, np.float32)
    weights = np.exp(logits.astype(np.float64))
    slow = np.searchsorted(np.cumsum(weights / weights.sum()), uniforms, side="right")
    np.testing.assert_array_equal(draw_one(logits, *uniforms), slow)


@pytest.mark.parametrize("num_words", [2, 3, 101, 5000])
def test_draw_at_the_edges_takes_the_first_and_the_last_possible_word(num_words):
    logits = np.random.default_rng(1).uniform(-1, 1, num_words)
    assert draw_one(logits, 0.0, ALMOST_ONE).tolist() == [0, num_words - 1]
    assert draw_one(logits + 1e4, 0.0, ALMOST_ONE).tolist() == [0, num_words - 1]


@pytest.mark.parametrize("num_words", [2, 3, 101, 5000])
@pytest.mark.parametrize("where", ["start", "end", "both", "all but one", "every other", "whole groups"])
def test_draw_never_takes_an_impossible_word(num_words, where):
    index = np.arange(num_words)
    possible = {
        "start": index >= num_words // 2,
        "end": index < (num_words + 1) // 2,
        "both": (index >= num_words // 3) & (index <= num_words // 2),
        "all but one": index == num_words // 2,
        "every other": index % 2 == 1,
        "whole groups": (index // (math.isqrt(num_words - 1) + 1)) % 3 == 1 if num_words > 3 else index == 1,
    }[where]
    rng = np.random.default_rng(2)
    for scale in (0.1, 30.0):
        logits = np.where(possible, rng.normal(size=num_words) * scale, -np.inf)
        cumulative = np.cumsum(np.exp(logits - logits.max()))
        edges = rng.choice(cumulative / cumulative[-1], 50)
        near = [np.nextafter(np.float32(e), np.float32(side)) for e in edges for side in (0, 2)]
        drawn = draw_one(logits, 0.0, 2**-23, 2**-149, ALMOST_ONE, *np.clip(near, 0, ALMOST_ONE), *rng.random(96))
        assert drawn.min() >= 0 and drawn.max() < num_words and possible[drawn].all()


def test_draw_frequencies_match_probabilities():
    logits = np.array([0.0, 1.0, -2.0, 0.5, -0.5, 2.0, -1.0], np.float32)
    num = 20_000
    uniform = row_uniform(jax.random.split(jax.random.key(4), num), 3)
    counts = np.bincount(draw(np.broadcast_to(logits, (num, 7)), uniform), minlength=7)
    expected = num * np.exp(logits) / np.exp(logits).sum()
    assert ((counts - expected) ** 2 / expected).sum() < 22.5  # chi-square, 6 degrees of freedom: p = 0.001


def test_draw_casts_bfloat16_and_checks_shapes():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(50, 101)), jnp.bfloat16)
    uniform = np.random.default_rng(1).random(50, np.float32)
    expected = draw(logits.astype(jnp.float32), uniform)
    np.testing.assert_array_equal(draw(logits, uniform), expected)
    with pytest.raises(AssertionError):
        sampling.draw(logits, uniform[:1])


def test_draw_without_a_distribution_stays_in_range():
    rows = np.array([[-np.inf] * 5, [np.nan] * 5, [np.inf] * 5, [np.inf, 0, np.nan, 0, 0]], np.float32)
    drawn = np.asarray(draw(rows, np.full(4, 0.9, np.float32)))
    assert ((drawn >= 0) & (drawn < 5)).all()


def test_row_uniform_depends_on_its_row_and_position_alone():
    data = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(6), 5)))
    one = np.asarray(row_uniform(jax.random.wrap_key_data(data), 2))
    np.testing.assert_array_equal(row_uniform(jax.random.wrap_key_data(data[[3, 1]]), 2), one[[3, 1]])
    other = np.asarray(row_uniform(jax.random.wrap_key_data(data), 3))
    assert one.dtype == np.float32 and len({*one, *other}) == 10 and 0 <= one.min() and one.max() < 1


# --- files -------------------------------------------------------------------------------------------------------


def npz_bytes(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def good(**changes):
    return {**dict(zip(OracleParams._fields, arrays_of(small()), strict=True)), **changes}


def old_pickle(arrays):
    """Protocol 0 as Python 2 wrote it: byte strings, and NumPy's old module names."""

    def text(data):
        return b"S'" + b"".join(b"\\x%02x" % byte for byte in data) + b"'\n"

    items = [
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n("
        + b"".join(b"I%d\n" % size for size in array.shape)
        + b"tcnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        + text(array.tobytes())
        + b"tba"
        for array in arrays
    ]
    return b"(l" + b"".join(items) + b"."


def load_bytes(tmp_path, content, name="oracle.bin"):
    path = tmp_path / name
    path.write_bytes(content)
    return oracle.load(path)


def fails(tmp_path, content, words):
    with pytest.raises(OracleError) as caught:
        load_bytes(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "oracle.bin")) and "\n" not in message
    assert words in message


@needs_published
def test_the_published_files_hold_the_same_arrays():
    first, *others = [oracle.load(PUBLISHED / f"target_params{end}") for end in (".npz", ".pkl", "_py3.pkl")]
    assert first.embedding.shape == (5000, 32) and all(isinstance(array, jax.Array) for array in first)
    for other in others:
        for name in OracleParams._fields:
            np.testing.assert_array_equal(getattr(first, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
@pytest.mark.parametrize("kind", ["npz", "pickle 3", "pickle 4", "fortran", "pickle 0"])
def test_load_gives_back_what_was_written(tmp_path, kind, dtype):
    dtype = "<f4" if kind == "pickle 0" else dtype
    order = "F" if kind == "fortran" else "C"
    arrays = [array.astype(dtype, order=order) for array in arrays_of(small())]
    protocol = int(kind[-1]) if kind[-1].isdigit() else 3
    if kind == "npz":
        content = npz_bytes(**dict(zip(OracleParams._fields, arrays, strict=True)))
    else:
        content = pickle.dumps(arrays, protocol) if protocol else old_pickle(arrays)
    loaded = load_bytes(tmp_path, content)
    for name, array in zip(OracleParams._fields, arrays, strict=True):
        np.testing.assert_array_equal(getattr(loaded, name), array.astype(np.float32), err_msg=name)
        assert getattr(loaded, name).dtype == jnp.float32


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(OracleError, match="absent.npz: no such file"):
        oracle.load(tmp_path / "absent.npz")
    with pytest.raises(OracleError, match="is a folder"):
        oracle.load(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OracleError, match="not a regular file"):
        oracle.load(tmp_path / "pipe")


def test_sizes(tmp_path):
    fails(tmp_path, b"", "0 bytes")
    huge = tmp_path / "huge.npz"
    with open(huge, "wb") as file:
        file.truncate(2**30 + 1)  # sparse: takes no room
    with pytest.raises(OracleError, match="1,073,741,825 bytes"):
        oracle.load(huge)
    bomb = bytearray(npz_bytes(**good()))
    at = bomb.index(b"PK\x01\x02") + 24  # unpacked size in the first entry of the directory
    bomb[at : at + 4] = struct.pack("<I", 2**31)
    fails(tmp_path, bytes(bomb), "unpacks to")


@pytest.mark.parametrize("content", [b"hello", b"PK", b"\x80\x04.", b"\x93NUMPY\x01\x00", b"(l", b"\x00" * 99, b"}."])
def test_other_content(tmp_path, content):
    fails(tmp_path, content, "is neither an intact .npz nor an intact pickle")


class Runs:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("nest", [lambda x: x, lambda x: [x], lambda x: [(1, [x])], lambda x: [*arrays_of(small()), x]])
@pytest.mark.parametrize(
    "function, args, name",
    [(os.system, ("touch ran",), f"{os.system.__module__}.system"), (eval, ("open('ran', 'w')",), ".eval")],
)
def test_code_is_refused_and_not_run(tmp_path, monkeypatch, protocol, nest, function, args, name):
    monkeypatch.chdir(tmp_path)
    inner = nest(Runs(function, *args))
    if protocol < 3 and isinstance(inner, list) and len(inner) > 9:
        name = "_codecs.encode"  # how Python 3 writes an array's bytes in old protocols; met first, refused as well
    fails(tmp_path, pickle.dumps(inner, protocol), "holds more than NumPy arrays (")
    fails(tmp_path, pickle.dumps(inner, protocol), f"{name}): refused")
    assert not (tmp_path / "ran").exists()


def test_object_arrays_and_odd_names_are_refused(tmp_path):
    loaded = np.array([Runs(os.system, "false")], dtype=object)
    fails(tmp_path, pickle.dumps([loaded], 4), "system): refused")
    fails(tmp_path, pickle.dumps([np.array([None], dtype=object)] * 15, 4), "not float")
    fails(tmp_path, npz_bytes(**good(bi=np.array([None] * 3, dtype=object))), "has dtype object, should be float")
    fails(tmp_path, b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93.", r"(a\nb.c)")


def test_wrong_arrays(tmp_path):
    fails(tmp_path, pickle.dumps(list(good().values())[:14], 4), "holds 14 arrays, should hold 15")
    fails(tmp_path, pickle.dumps([1, 2], 4), "should be a list of 15 NumPy arrays")
    fails(tmp_path, pickle.dumps(np.zeros(3), 4), "should be a list of 15 NumPy arrays")
    fails(tmp_path, npz_bytes(**{k: v for k, v in good().items() if k not in ("bf", "Wo")}), "lacks the arrays bf, Wo;")
    fails(tmp_path, npz_bytes(**good(Uf=np.zeros((3, 2)))), "array Uf has shape (3, 2), should have (3, 3)")
    fails(tmp_path, npz_bytes(**good(bo=np.zeros(8))), "array bo has shape (8,), should have (7,)")
    fails(tmp_path, npz_bytes(**good(embedding=np.zeros((7, 0)))), "array embedding has shape (7, 0)")
    fails(tmp_path, npz_bytes(**good(Wo=np.zeros(7))), "array Wo has shape (7,)")
    fails(tmp_path, npz_bytes(**good(bc=np.zeros(3, int))), "array bc has dtype int64, should be float")
    for bad in (np.nan, -np.inf, 1e300):
        fails(tmp_path, npz_bytes(**good(bc=np.array([0, bad, 0]))), "array bc holds NaN, infinity")


def test_a_forged_memo_index_costs_no_memory(tmp_path):
    fails(tmp_path, b"\x80\x03]r\xff\xff\xff\xff.", "holds 0 arrays, should hold 15")


def packed(**arrays):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")  # NumPy and Python warn of odd headers
@pytest.mark.parametrize("kind", ["npz", "packed npz", "pickle 3", "pickle 4", "old pickle"])
def test_damaged_files_raise_oracle_error_alone(tmp_path, kind):
    arrays = arrays_of(small(2, 1))
    named = dict(zip(OracleParams._fields, arrays, strict=True))
    content = {
        "npz": lambda: npz_bytes(**named),
        "packed npz": lambda: packed(**named),
        "pickle 3": lambda: pickle.dumps(arrays, 3),
        "pickle 4": lambda: pickle.dumps(arrays, 4),
        "old pickle": lambda: old_pickle(arrays),
    }[kind]()
    rng = random.Random(kind)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.randrange(len(damaged))
            how = rng.randrange(5)
            if how < 2:
                damaged[at] = rng.randrange(256)
            elif how == 2:
                del damaged[at : at + rng.choice([1, 2, 100])]
            elif how == 3:
                damaged[at:at] = rng.choice([rng.randbytes(3), b"\xff" * 4, damaged[:50]])
            else:
                damaged[at:] = b""
            damaged = damaged or bytearray(b"x")
        try:
            load_bytes(tmp_path, bytes(damaged))
        except OracleError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 40  # some damage lies in the numbers, and cannot be told
