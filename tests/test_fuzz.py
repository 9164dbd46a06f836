"""Files from strangers: whatever is in them, a reader returns or says in one line what is wrong.

Nothing else is raised, nothing in a file is run, nothing is written beside it. LEAKGAN_FUZZ says how many cases a
property gets, dear ones fewer: LEAKGAN_FUZZ=1000 python -m pytest -n 0 tests/test_fuzz.py
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_run import TINY

from leakgan_jax import checkpoint, cli, config, data, oracle, report, run, rundir, sweep
from leakgan_jax.config import Config, ConfigError, preset
from leakgan_jax.data import DataError, Vocabulary
from leakgan_jax.oracle import OracleError
from leakgan_jax.rundir import RunError

CASES = int(os.environ.get("LEAKGAN_FUZZ", 12))
OURS = (ConfigError, DataError, OracleError, RunError, checkpoint.CheckpointError)
run_cases: collections.Counter[str] = collections.Counter()
pytestmark = pytest.mark.usefixtures("fast_compile")


def fuzzed(*strategies, cost: int = 1):
    """Hypothesis without what stands in the way of slow readers; a `cost` of 10 gets a tenth of the cases."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    cases = max(5, CASES // cost)
    limits = settings(max_examples=cases, deadline=None, database=None, suppress_health_check=quiet)
    repeatable = settings(limits, derandomize="LEAKGAN_FUZZ" not in os.environ)
    return lambda test: repeatable(given(*strategies)(test))


# --- What no reader may do ----------------------------------------------------------------------------

_watching: list[tuple[str, list[str]]] = []
_STARTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
    "ctypes.dlopen",
)


# Which arguments are paths that change; the last one is a folder that is open, or -1.
_CHANGES = {
    "os.remove": slice(1),
    "os.rmdir": slice(1),
    "os.mkdir": slice(1),
    "os.chmod": slice(1),
    "os.rename": slice(2),
    "os.link": slice(1, 2),
    "os.symlink": slice(1, 2),
}


def _audit(event: str, args: tuple) -> None:
    if not _watching:
        return
    folder, seen = _watching[-1]
    if event in _STARTS:
        seen.append(f"{event} {args!r}"[:200])
    paths = args[:1] if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else ()
    if event in _CHANGES and args[-1] == -1:  # else within a folder that is open
        paths = args[_CHANGES[event]]
    for path in paths:
        if not isinstance(path, int):  # a file that is open
            folder_of, name = os.path.split(os.fsdecode(path))
            path = os.path.join(os.path.realpath(folder_of), name)
            cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or folder
            if path != os.devnull and os.path.commonpath([path, folder]) != folder and not path.startswith(cache):
                seen.append(f"{event} of {path}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def watched(folder: Path, seconds: int = 60):
    """Fails if what is within starts a process, writes outside `folder` or waits for ever."""

    def late(*_):
        seen.append(f"still at it after {seconds} seconds")  # a reader may take what is raised here for damage
        raise AssertionError(seen[-1])

    seen: list[str] = []
    before = signal.signal(signal.SIGALRM, late)
    _watching.append((os.path.realpath(folder), seen))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        _watching.pop()
        signal.signal(signal.SIGALRM, before)
    assert not seen


def outcome(reader, folder: Path, *names: str):
    """What a reader returns, or None if it refuses in one printable line that has one of `names`."""
    run_cases[getattr(reader, "func", reader).__name__] += 1
    with watched(folder):
        try:
            return reader()
        except OURS as error:
            message = str(error)
    assert config.is_printable(message) and len(message) < 1000 + len(str(folder)), message
    assert not names or any(name in message for name in names), message
    return None


@pytest.fixture
def place(tmp_path):
    """A folder, the only one that may change."""
    folder = tmp_path / "inside"
    folder.mkdir()
    yield folder
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


@pytest.fixture(scope="module", autouse=True)
def counted():
    yield
    if "LEAKGAN_FUZZ" in os.environ:
        print(f"\n{sum(run_cases.values()):,} cases: {dict(run_cases)}", file=sys.__stderr__)


# --- What strangers write -----------------------------------------------------------------------------

ODD_JSON = [
    b"", b"null", b"[]", b"{}", b"NaN", b"[Infinity]", b'{"a": -Infinity}', b"1e999", b'"\\ud800"', b'{"\\udfff": 1}',
    b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"a":' * 50_000, b"[[" * 15 + b"]]" * 15, b"1" * 5_000, b"\xff\xfe{}",
    b"\xef\xbb\xbf{}", b'"\x1b[31m"', b"'a'", b"{,}", b"\0", b"true", b'"' + b"a" * 100_000 + b'"',
]  # fmt: skip


def each(cases):
    """Every one of `cases`, beside those that are drawn."""
    return lambda test: functools.reduce(lambda test, case: example(case)(test), cases, test)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**63, -(2**64), 10**30, 10**400, -(10**400), 0.5, 1e-300, 1e308, -0.0, 1e100]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["\x1b[2J", "a\nb", "\ud800", "x" * 5_000, "../../x", "\0", "\u202e", "/dev/zero", "<end>", "nan"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
edits = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 2**20),
        st.one_of(
            st.binary(max_size=6), st.sampled_from([b"\xff" * 8, b"[" * 2_000, b"9" * 5_000, b"\\ud800", b"NaN"])
        ),
    ),
    min_size=1,
    max_size=4,
)


def mangle(content: bytes, how) -> bytes:
    """Bits flipped, bytes put in, bytes left out, the rest cut off."""
    for kind, at, new in how:
        at %= len(content) + 1
        if kind == 0 and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << len(new) % 8]) + content[at + 1 :]
        elif kind == 1:
            content = content[:at] + new + content[at:]
        elif kind == 2:
            content = content[:at] + content[at + 1 + len(new) :]
        elif kind == 3:
            content = content[:at]
    return content


def damaged(content: bytes):
    """What `content` becomes, or something odd in its place."""
    return edits.map(lambda how: mangle(content, how)) | st.sampled_from(ODD_JSON) | st.binary(max_size=40)


@st.composite
def altered(draw, good):
    """A JSON value of which some parts, at any depth, are replaced, left out or added."""
    good = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 3))):
        at = good
        while isinstance(at, dict | list) and at:
            names = list(at) if isinstance(at, dict) else range(len(at))
            name = draw(st.sampled_from(names))
            if isinstance(at[name], dict | list) and at[name] and draw(st.booleans()):
                at = at[name]
                continue
            what = draw(st.integers(0, 5))
            if what == 0:
                del at[name]
            elif what == 1 and isinstance(at, dict):
                at[draw(st.text(max_size=6))] = draw(values)
            else:
                at[name] = draw(values)
            break
    return good


# --- JSON, vocabularies, configs ----------------------------------------------------------------------


@fuzzed(damaged(b'{"words": ["<unk>", "a"], "x": [1, 2.5e3, null, {"y": "\\u00e9"}]}'))
@each(ODD_JSON)
def test_any_bytes_as_json(place, content):
    (place / "file.json").write_bytes(content)
    value = outcome(lambda: [data.read_json(place / "file.json", 150_000, "JSON")], place, "file.json")
    if value:  # then it can be written, printed and read again
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        assert data.parse_json(json.dumps(value)) == value


@pytest.mark.parametrize("content", [b"[NaN]", b"[1e999]", b'{"a": 1, "a": 2}', b'"\\ud800"', b"[" * 21 + b"]" * 21])
def test_json_that_would_not_come_back_is_refused(content, tmp_path):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(DataError, match="file.json: not JSON"):
        data.read_json(tmp_path / "file.json", 100, "JSON")


VOCABULARY = Vocabulary(("<unk>", "<end>", "a", "naïve", "猫", "dog"))
VOCABULARY_JSON = {"words": list(VOCABULARY.words), "format": 1}


@fuzzed(damaged(json.dumps(VOCABULARY_JSON).encode()) | altered(VOCABULARY_JSON).map(lambda v: json.dumps(v).encode()))
@example(json.dumps({**VOCABULARY_JSON, "words": ["<unk>", "<end>", "\x1b[2J a\n" * 999]}).encode())
def test_any_bytes_as_a_vocabulary(place, content):
    path = place / "vocabulary.json"
    path.write_bytes(content)

    def vocabulary():
        return Vocabulary.load(path)

    if loaded := outcome(vocabulary, place, "vocabulary.json"):
        loaded.save(path)
        assert Vocabulary.load(path) == loaded and loaded.decode(range(len(loaded))) == "<unk>"


RECORD = {
    "config": json.loads(json.dumps(preset("quickstart").to_json())),
    "seed": 0,
    "seeds": 1,
    "data": {"corpus_sha256": "ab", "train_sentences": 3, "heldout_unknown_words": 0.5},
    "data_dir": "",
    "command": "leakgan train",
    "versions": {"jax": "1"},
    "device": "cpu",
}


def opened(folder):
    def open_run():
        return rundir.open_run(folder)

    return outcome(open_run, folder, "config.json", str(folder))


def sealed() -> bytes:
    return json.dumps({**RECORD, "sha256": data.seal(RECORD)}, indent=2).encode()


@fuzzed(damaged(sealed()))
def test_a_config_file_that_differs_is_refused(place, content):
    (place / "config.json").write_bytes(content)
    found = opened(place)
    assert found is None or {**found[2]} == RECORD  # as when an exponent is spelt with the other e


@fuzzed(st.integers(0, 8 * len(sealed()) - 1))
def test_a_flipped_bit_of_a_config_file_is_refused(place, bit):
    content = bytearray(sealed())
    content[bit // 8] ^= 1 << bit % 8
    (place / "config.json").write_bytes(content)
    found = opened(place)
    assert found is None or found[2] == RECORD


@pytest.mark.parametrize(
    "old, new", [(b'"seed": 0', b'"seed": 1'), (b'"sha256": "', b'"sha256": "0'), (b"sha256", b"s")]
)
def test_a_config_file_changed_by_hand_is_refused(old, new, place):
    at = sealed().rindex(old)  # of the record's own
    (place / "config.json").write_bytes(sealed()[:at] + new + sealed()[at + len(old) :])
    with pytest.raises(RunError, match="config.json was changed"):
        rundir.open_run(place)


@fuzzed(altered(RECORD))
@example({**RECORD, "seeds": 10**9})
@example({**RECORD, "command": "\x1b[2J"})
@example({**RECORD, "config": {**RECORD["config"], "pretrain_rounds": 10**9}})
@example({**RECORD, "config": {**RECORD["config"], "rescale_slope": 10**400}})
def test_a_config_file_with_a_digest_of_its_own(place, record):
    """Of someone who can make digests: what is in it is checked all the same."""
    with contextlib.suppress(ValueError):  # seal does not hold where the reader would refuse
        (place / "config.json").write_text(json.dumps({**record, "sha256": data.seal(record)}), encoding="utf-8")
    found = opened(place)
    if found is not None:
        settings, seed, _ = found
        assert Config.from_json(settings.to_json()) == settings
        assert max(settings.pretrain_rounds, settings.adversarial_iterations) <= 10**6  # `schedule` lists them all
        assert len(run.schedule(settings)) <= 10**6
        np.random.default_rng(seed), jax.random.key(seed)
        assert all(config.is_printable(leaf) for leaf in data.leaves(record) if isinstance(leaf, str))
        for name in ("rescale_slope", "generator_lr", "discriminator_l2"):
            float(getattr(settings, name))


fields = st.sampled_from([field.name for field in dataclasses.fields(Config)])
anything = values | st.sampled_from([10**5_000, (1, 2), (10**5_000,), {1}, object(), b"x", float("nan")])


@fuzzed(st.dictionaries(fields, anything, max_size=4) | st.dictionaries(st.text(), anything, max_size=2) | anything)
@each([{"rescale_slope": 10**400}, {"length": 10**5_000}, {"corpus": "\x1b[2J"}, {"corpus": "x" * 9_000}, [1], None])
def test_any_settings(place, given):
    def from_json():
        return Config.from_json(given)

    if made := outcome(from_json, place):
        assert Config.from_json(json.loads(json.dumps(made.to_json()))) == made
        assert all(config.is_printable(v) and len(v) <= 4096 for v in made.to_json().values() if isinstance(v, str))


# --- Text -----------------------------------------------------------------------------------------------

TEXT = "A man rides a horse\nthe dog, it's asleep.\n猫 naïve “x”\n" * 6
texts = st.one_of(
    edits.map(lambda how: mangle(TEXT.encode(), how)),
    st.text().map(lambda text: text.encode(errors="surrogatepass")),
    st.lists(st.text(max_size=12), max_size=30).map(lambda lines: "\n".join(lines).encode(errors="replace")),
    st.binary(max_size=60),
    st.sampled_from([b"\n" * 5_000, b"a" * 100_002, b"a\0b", b"\xff\xfea\0", b"\x1b[2J <end> <unk>\n" * 9, b"\r\r\r"]),
)
tokenizers = st.sampled_from(["whitespace", "nltk", "characters"])


@fuzzed(texts, tokenizers, st.booleans())
def test_any_bytes_as_a_corpus(place, content, tokenizer, lowercase):
    path = place / "corpus.txt"
    path.write_bytes(content)
    settings = preset("coco", corpus=str(path), tokenizer=tokenizer, lowercase=lowercase, batch_size=1)

    def load_corpus():
        return data.load_corpus(settings)

    if corpus := outcome(load_corpus, place, "corpus.txt"):
        corpus.vocabulary.save(place / "vocabulary.json")
        assert Vocabulary.load(place / "vocabulary.json") == corpus.vocabulary
        assert corpus.train.max() <= len(corpus.vocabulary) and corpus.train.shape[1] == settings.length
        for row, words in zip(corpus.train, corpus.train_sentences, strict=True):
            known = [word if corpus.vocabulary.encode([word]) != [0] else "<unk>" for word in words]
            assert corpus.vocabulary.words_of(row) == known


def command(*argv) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(word) for word in argv])
    return status, out.getvalue(), err.getvalue()


def assert_one_line(err: str) -> None:
    last = err.splitlines()[-1]
    assert err.endswith("\n") and "Traceback" not in err and last.startswith("leakgan: "), err
    assert all(config.is_printable(line) for line in err.split("\n"))


@fuzzed(texts, texts, tokenizers, st.booleans(), cost=5)
def test_any_bytes_as_text_to_score(place, hypotheses, references, tokenizer, lowercase):
    for name, content in (("h.txt", hypotheses), ("r.txt", references)):
        (place / name).write_bytes(content)
    options = ["--tokenizer", tokenizer, *["--lowercase"] * lowercase, "--train", place / "r.txt", "--json"]

    def metrics():
        return command("metrics", place / "h.txt", "--references", place / "r.txt", *options)

    status, out, err = outcome(metrics, place)
    assert status in (0, 2)
    if status:
        assert_one_line(err)
        assert "h.txt" in err or "r.txt" in err
    else:
        scores = data.parse_json(out)  # so no NaN
        assert 0 <= scores["bleu_2"] <= 1 and scores["hypotheses"] >= 2


@fuzzed(st.text(max_size=30) | st.sampled_from(["a", "a " * 99, "\ud800", "<end>", "1" * 300, "\x1b[2J a", "٣"]))
def test_any_prefix(place, text):
    for made, vocabulary in ((preset("synthetic20"), None), (preset("coco", corpus="x"), VOCABULARY)):
        ids = outcome(functools.partial(run.read_prefix, made, vocabulary, text), place, "prefix")
        assert ids is None or 0 < len(ids) < made.length and all(0 <= i < made.vocab_size for i in ids)


# --- What a run has written ---------------------------------------------------------------------------

LINES = [
    {"phase": "pretrain", "step": i, "unit": i, "kind": "mle", "manager_loss": 1.5 / i, "seconds": 0.1 * i}
    | ({"nll_oracle": 5.0, "nll_gen": 4.0 + i, "nll_div": 3.0, "distinct": 1.0} if i % 2 else {})
    for i in range(1, 6)
]


def lines_text(lines) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def kept(place, content: bytes, done: int = 4):
    """The lines that are left of a file, and what was said of the others."""
    path, said, told = place / "metrics.jsonl", [], []
    path.write_bytes(content)

    def keep_lines():
        return [rundir.keep_lines(path, done, on_loss=said.append)]

    def written():
        return [rundir.keep_lines(path, done, rundir.lines_digest(LINES[:done]), told.append)]

    believed = outcome(written, place, "metrics.jsonl")
    assert believed in (None, [LINES[:done]]) or (believed == [[]] and told)  # refused, as written, or lost and told
    path.write_bytes(content)
    result = outcome(keep_lines, place, "metrics.jsonl")
    assert result is not None and len(said) <= 1 and all(config.is_printable(line) for line in said)
    [lines] = result
    assert [line["unit"] for line in lines] == sorted({line["unit"] for line in lines}) and len(lines) <= done
    assert path.read_bytes() == lines_text(lines)
    assert all(v is None or data.is_number(v) for line in lines for k, v in line.items() if k not in ("phase", "kind"))
    assert said or len(lines) == done  # nothing is lost without a word
    return lines


@fuzzed(damaged(lines_text(LINES)))
@example(lines_text(LINES))
@example(lines_text(LINES)[:-9])
@example(lines_text(LINES[:1] + LINES[2:]))
def test_any_bytes_as_metric_lines(place, content):
    kept(place, content)


@fuzzed(altered(LINES), cost=2)
@example([{**LINES[0], "nll_oracle": None}, *LINES[1:]])
@example([{**LINES[0], "nll_gen": 1e99, "step": 2**70}, *LINES[1:]])
@example([{**LINES[0], "nll_gen": "high"}, *LINES[1:]])
@example([*LINES[:3], {**LINES[3], "manager_loss": 7.0}])
def test_any_values_as_metric_lines(place, lines):
    lines = kept(place, "".join(json.dumps(line) + "\n" for line in lines).encode())
    if run_cases["draw_curves"] <= CASES // 10:  # a picture takes as long as a hundred other cases
        run_cases["draw_curves"] += 1
        report.draw_curves(place / "curves.png", preset("quickstart"), [lines], [5.0])


def test_lost_lines_are_told_without_a_digest_too(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(lines_text(LINES[:1] + LINES[2:]))
    said = []
    assert rundir.keep_lines(tmp_path / "metrics.jsonl", 4, on_loss=said.append) == [LINES[0], *LINES[2:4]]
    assert len(said) == 1 and "the lines of 1 of 4 units" in said[0]


def test_lines_digest_continues():
    whole = rundir.lines_digest(LINES)
    assert rundir.lines_digest(LINES[2:], rundir.lines_digest(LINES[:2])) == whole != rundir.lines_digest(LINES[::-1])


def sweep_row(model, temperature):
    row = {"model": model, "temperature": temperature, "rule": "method1"} | dict.fromkeys(sweep._NUMBERS, 3)
    return row | dict.fromkeys(sweep._NLLS, 1.5)


ABOUT = {
    "run": "x", "versions": {"jax": "1"}, "seed": 3, "references": "the test split", "device": "cpu", "inputs": "ab",
    "language_model": {"hidden": 3, "epochs": 2},
}  # fmt: skip
ROWS = [sweep_row("real", None), *(sweep_row("MLE, best NLL_gen", t) for t in sweep.TEMPERATURES[:3])]


def assert_rows(place, content: bytes) -> None:
    (place / "sweep.partial.json").write_bytes(content)
    said = []

    def kept_rows():
        models = ["MLE, best NLL_gen", "LeakGAN"]
        return [sweep.kept_rows(place / "sweep.partial.json", ABOUT, models, on_loss=said.append)]

    [rows] = outcome(kept_rows, place)
    assert all(config.is_printable(line) for line in said)
    if rows:
        sweep_rows = [*rows, *(ROWS[len(rows) :])]
        assert "| real |" in report.sweep_report({**ABOUT, "rows": sweep_rows})
        if run_cases["draw_sweep"] <= CASES // 50:
            run_cases["draw_sweep"] += 1
            report.draw_sweep(place, sweep_rows)


@fuzzed(
    damaged(json.dumps({"about": ABOUT, "rows": ROWS, "sha256": data.seal({"about": ABOUT, "rows": ROWS})}).encode())
)
def test_any_bytes_as_an_unfinished_sweep(place, content):
    assert_rows(place, content)


@fuzzed(altered({"about": ABOUT, "rows": ROWS}))
@example({"about": ABOUT, "rows": ROWS})
@example({"about": ABOUT, "rows": [{**ROWS[0], "nll_oracle": None}, *ROWS[1:]]})
@example({"about": ABOUT, "rows": [*ROWS[:1], {**ROWS[1], "bleu_2": "high"}]})
def test_any_rows_as_an_unfinished_sweep(place, content):
    assert_rows(place, json.dumps({**content, "sha256": data.seal(content)}).encode())


def test_rows_of_a_sweep_come_back(place):
    path, said = place / "sweep.partial.json", []
    sweep.keep_rows(path, ABOUT, ROWS)
    assert sweep.kept_rows(path, ABOUT, ["MLE, best NLL_gen"], on_loss=said.append) == ROWS and not said
    assert sweep.kept_rows(path, {**ABOUT, "seed": 4}, ["MLE, best NLL_gen"], on_loss=said.append) == [] and not said
    path.write_bytes(path.read_bytes().replace(b"1.5", b"1.4", 1))
    assert sweep.kept_rows(path, ABOUT, ["MLE, best NLL_gen"], on_loss=said.append) == [] and "damaged" in said[0]


# --- Oracles ----------------------------------------------------------------------------------------------

_rng = np.random.default_rng(0)
ARRAYS = {
    name: _rng.normal(size=shape).astype(np.float32)
    for name, shape in oracle._shapes(num_words=4, width=2, hidden=2).items()
}


def npz(arrays=ARRAYS, method=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                file.write(array) if isinstance(array, bytes) else np.lib.format.write_array(file, array)
    return buffer.getvalue()


def npy(shape: str, descr: str = "'<f4'") -> bytes:
    """An array file of 8 bytes of numbers whose header claims any shape."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 8


PICKLES = [pickle.dumps(list(ARRAYS.values()), protocol) for protocol in (2, 3, 4)]
SEEDS = [npz(), npz(method=zipfile.ZIP_DEFLATED), *PICKLES[1:]]
headers = st.builds(
    npy,
    st.sampled_from(
        ["(2,)", "(10**9,)", "(1000000000000,)", "(-1,)", "(-3, -4)", "(2, 0)", "2", "(" * 60, "((2,),)", "(True,)"]
    ),
    st.sampled_from(
        ["'<f4'", "'>f8'", "'|O'", "'<i4'", "[('\\x1b[2J', '<f4')]", "('<f4', (10**6,))", "'<f16'", "None"]
    ),
)
oracles = st.one_of(
    st.sampled_from(SEEDS).flatmap(lambda content: edits.map(lambda how: mangle(content, how))),
    st.tuples(st.sampled_from(list(ARRAYS)), headers).map(lambda one: npz({**ARRAYS, one[0]: one[1]})),
    st.binary(max_size=60).map(lambda content: b"\x80\x04" + content + b"."),
    st.binary(max_size=60),
)


@pytest.mark.filterwarnings("ignore")  # NumPy and Python warn of odd headers
@fuzzed(oracles)
def test_any_bytes_as_an_oracle(place, content):
    (place / "oracle.bin").write_bytes(content)

    def load():
        return oracle.load(place / "oracle.bin")

    if params := outcome(load, place, "oracle.bin"):
        assert all(np.isfinite(array).all() for array in params)


class Runs:
    def __reduce__(self):
        return subprocess.call, (["touch", "ran"],)


BIG = 2**24
BOMBS = {
    "a header of a terabyte": npz({**ARRAYS, "bi": npy("(250000000000,)")}),
    "a header of 100 MB": npz({**ARRAYS, "bi": npy("(25000000,)")}),
    "a pickle of lists": b"\x80\x04" + b"]" * BIG + b".",
    "a string as arguments": b"\x80\x04cnumpy\ndtype\nB" + BIG.to_bytes(4, "little") + b"x" * BIG + b"R.",
    "entries without end": npz() + b"PK\x01\x02" * 200_000,
    "a packed method of its own": npz(method=zipfile.ZIP_LZMA),
    "code": pickle.dumps([Runs()], 2),
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_oracle_file_takes_no_more_memory_than_it_is_worth(name, place, monkeypatch):
    monkeypatch.chdir(place)
    path = place / "oracle.bin"
    path.write_bytes(BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises(OracleError), watched(place):
            oracle.load(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(BOMBS[name]) + 2**22
    finally:
        tracemalloc.stop()
    assert [p.name for p in place.iterdir()] == ["oracle.bin"]


def test_one_array_many_times_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "_MAX_BYTES", 3_000)
    square = np.zeros((8, 8), np.float32)
    path = tmp_path / "oracle.pkl"
    path.write_bytes(pickle.dumps([square] * 15, 4))
    assert path.stat().st_size < 3_000
    with pytest.raises(OracleError, match="holds 3,840 bytes of arrays"):
        oracle.load(path)


# --- Files that are no files, and links ---------------------------------------------------------------

READERS = {
    "vocabulary.json": lambda folder: Vocabulary.load(folder / "vocabulary.json"),
    "config.json": rundir.open_run,
    "metrics.jsonl": lambda folder: rundir.keep_lines(folder / "metrics.jsonl", 3),
    "sweep.partial.json": lambda folder: sweep.kept_rows(folder / "sweep.partial.json", ABOUT, ["LeakGAN"]),
    "oracle.npz": lambda folder: oracle.load(folder / "oracle.npz"),
    "corpus.txt": lambda folder: data.load_corpus(preset("coco", corpus=str(folder / "corpus.txt"))),
    "digest": lambda folder: data.digest(folder / "digest"),
    "lines.txt": lambda folder: list(data.read_lines(folder / "lines.txt")),
}


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "a loop", "a large file"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file(name, kind, place):
    path = place / name
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a loop":
        path.symlink_to(path)
    else:
        with open(path, "wb") as file:
            file.truncate(2**33)  # sparse: takes no room
    with watched(place, seconds=20), pytest.raises(OURS) as caught:
        READERS[name](place)
    assert name in str(caught.value) and config.is_printable(str(caught.value))


def test_text_to_score_may_come_through_a_pipe(place):
    os.mkfifo(place / "pipe")
    with subprocess.Popen(["/bin/sh", "-c", f"sleep 0.2; printf 'a b\\nc\\n' > {place}/pipe"]):
        reader = os.open(place / "pipe", os.O_RDONLY)  # as a shell's <( ) is: open before and after
        with watched(place, seconds=20):
            assert list(data.read_lines(f"/dev/fd/{reader}")) == ["a b", "c"]
        os.close(reader)


def test_links_are_not_followed_by_what_is_written(tmp_path, monkeypatch):
    other, run_ = tmp_path / "other", tmp_path / "run"
    run_.mkdir()
    other.write_text("precious")
    for name in ("metrics.jsonl", "samples.txt", ".samples.txt.partial"):
        (run_ / name).symlink_to(other)
    with pytest.raises(OSError, match="a link"):
        rundir.append(run_ / "metrics.jsonl", LINES[0])
    data.write(run_ / "samples.txt", "new")
    assert (run_ / "samples.txt").read_text() == "new" and not (run_ / "samples.txt").is_symlink()
    assert rundir.keep_lines(run_ / "metrics.jsonl", 3) == []
    rundir.append(run_ / "metrics.jsonl", LINES[0])
    assert (run_ / "metrics.jsonl").read_bytes() == lines_text(LINES[:1])
    # And where the temporary name is known, nor is a link that waits there.
    monkeypatch.setattr(data.secrets, "token_hex", lambda size: "0")
    (run_ / f".curves.png.{os.getpid()}-0.partial").symlink_to(other)
    with pytest.raises(FileExistsError):
        data.write(run_ / "curves.png", b"x")
    assert other.read_text() == "precious"
    os.mkfifo(run_ / "pipe")
    with watched(run_, seconds=20), pytest.raises(OSError):
        rundir.append(run_ / "pipe", LINES[0])
    (run_ / "null").symlink_to(os.devnull)
    for name in ("pipe", "null"):  # nor is what a file cannot take the place of replaced by one
        with pytest.raises(OSError, match="not a regular file"):
            data.write(run_ / name, "x")
    (run_ / "stdout").symlink_to("/proc/self/fd/1")
    with pytest.raises(OSError, match="not a regular file"):
        data.write(run_ / "stdout", "x")
    assert (run_ / "pipe").is_fifo() and (run_ / "null").is_symlink()


def test_text_that_utf8_cannot_hold_is_written(tmp_path):
    data.write(tmp_path / "x", "a \udcff b")
    assert (tmp_path / "x").read_bytes() == b"a \\udcff b"


def test_a_terminal_gets_no_control_characters(place):
    path = place / "a\x1b[2J\nb.txt"
    path.write_bytes(b"\xff")
    status, out, err = command("metrics", path, "--references", path)
    assert (status, out) == (2, "") and err.count("\n") == 1 and "a\\x1b[2J\\nb.txt" in err
    status, out, err = command("sample", place, "--num", "1", "--checkpoint", "x" * 90_000)
    assert status == 2 and len(err) < 3_000


def test_a_name_that_a_terminal_cannot_encode_is_escaped(place, monkeypatch):
    path = place / "猫.txt"
    path.write_text("a b\nb a\n")
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", printed)
    assert cli.main(["metrics", str(path), "--references", str(path)]) == 0
    printed.flush()
    assert b"\\u732b.txt" in printed.buffer.getvalue()


def test_a_folder_whose_name_is_not_unicode_is_refused(place):
    out = os.path.join(place, "run\udcff")
    for argv in (["train", "--out", out, *TINY], ["sample", out, "--num", "1"]):
        status, _, err = command(*argv)
        assert status == 2 and "not Unicode" in err and err.count("\n") == 1, err
    assert not list(place.iterdir())


def test_lines_without_end_are_refused(place, monkeypatch):
    (place / "text.txt").write_text("a\n" * 30)
    monkeypatch.setattr(data, "MAX_LINES", 20)
    with pytest.raises(DataError, match="text.txt: over 20 lines"):
        list(data.read_lines(place / "text.txt"))
    monkeypatch.setattr(rundir, "MAX_METRIC_LINES", 20)
    with pytest.raises(RunError, match="text.txt has over 20 lines"):
        rundir.read_lines(place / "text.txt", 100)


# --- Whole directories --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, fast_compile):
    out = tmp_path_factory.mktemp("fuzz") / "run"
    assert command("train", "--out", out, *TINY, "--pretrain-rounds", 1, "--adversarial-iterations", 0)[0] == 0
    return out


def commands(out: Path) -> dict[str, list]:
    return {
        "sample": ["sample", out, "--num", 3, "--seed", 1, "--json"],
        "evaluate": ["evaluate", out, "--num", 20, "--json"],
        "train": ["train", "--out", out, "--resume"],
    }


def results(name: str, out: Path, printed: str):
    """What a command is for: what it prints, or what is there after training."""
    if name != "train":
        return printed
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    return lines, (out / "report.md").read_text().split("![")[0], (out / "samples.txt").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(finished, out)
    found = {}
    for name, argv in commands(out).items():
        status, printed, _ = command(*argv)
        assert status == 0
        found[name] = results(name, out, printed)
    return found


FAULTS = ("flip", "truncate", "empty", "delete", "folder", "link", "pipe")


def disturb(path: Path, fault: str, at: int, outside: Path) -> None:
    content = path.read_bytes()
    if fault == "flip" and content:
        at %= 8 * len(content)
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        return
    if fault in ("truncate", "empty"):
        path.write_bytes(content[: at % (len(content) + 1)] if fault == "truncate" else b"")
        return
    path.unlink()
    if fault == "folder":
        path.mkdir()
    elif fault == "link":
        path.symlink_to(outside)
    elif fault == "pipe":
        os.mkfifo(path)


@fuzzed(
    st.sampled_from(["sample", "evaluate", "train"]),
    st.sampled_from(FAULTS),
    st.integers(0, 2**16),
    st.randoms(),
    cost=5,
)
def test_any_file_of_a_run_disturbed(finished, undisturbed, tmp_path, name, fault, at, rng):
    out, outside = tmp_path / "run", tmp_path / "outside"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(finished, out)
    outside.write_text("precious")
    top = sorted(path for path in out.iterdir() if path.is_file())
    below = sorted(path for path in (out / "checkpoints").rglob("*") if path.is_file())
    # Tensorstore would wait for a pipe, which no copy of a run brings along.
    path = rng.choice(top if fault == "pipe" or rng.random() < 0.6 else below)
    disturb(path, fault, at, outside)

    def disturbed():
        return command(*commands(out)[name])

    status, printed, err = outcome(disturbed, tmp_path)
    about = f"{name}, {fault} of {path.relative_to(out)} at {at}: {status}\n{err}"
    assert outside.read_text() == "precious", about
    if status:
        assert status == 2 and printed == "", about
        assert_one_line(err)
        return
    assert "Traceback" not in err, about
    if name == "train" and path.name == ("metrics.jsonl" if "lines of" in err else "samples.txt"):
        return  # lines that are lost stay lost, and a finished run draws no samples; to read a pipe takes for ever
    found = results(name, out, printed)
    assert found == undisturbed[name] or (name != "train" and "falling back" in err), about


def forge(out: Path, change, step: int | None = None) -> None:
    """Changes the manifest of a run's newest checkpoint, as a stranger would: its digest holds again."""
    place = max((path for path in (out / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
    record = json.loads((place / "MANIFEST").read_bytes().partition(b"\n")[2])
    body = json.dumps(change(record)).encode()
    (place / "MANIFEST").write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    if step is not None:
        place.rename(place.with_name(str(step)))


@fuzzed(st.data(), st.sampled_from(["sample", "evaluate", "train"]), st.booleans(), cost=5)
def test_any_manifest_whose_digest_holds(finished, tmp_path, drawn, name, within):
    out = tmp_path / "run"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(finished, out)
    forge(out, lambda r: r | {"extra": drawn.draw(altered(r["extra"]))} if within else drawn.draw(altered(r)))

    def forged():
        return command(*commands(out)[name])

    status, _, err = outcome(forged, tmp_path)
    assert status in (0, 2), err
    if status:
        assert_one_line(err)
    assert "Traceback" not in err, err


EXTRAS = {
    "seconds": ["x", None, [1], -1.0, 1e30],
    "lowest_nll_gen": ["x", [1], None],
    "metrics_sha256": [7, None, "0" * 63, "0" * 64],
    "lines_lost": [{"a": 1}, "\x1b[2J", "x" * 10_000],
    "mle_last": [7, None, [], [{}], [{"nll_oracle": "x"}], [[1]], ["x"]],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in EXTRAS.items() for value in values])
def test_what_a_checkpoint_remembers_must_be_a_runs(finished, tmp_path, name, value):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    forge(out, lambda r: r | {"extra": r["extra"] | {name: value}})
    status, _, err = command("train", "--out", out, "--resume")
    assert status == 2 and (name in err or "metrics.jsonl is damaged" in err), err
    assert_one_line(err)


@pytest.mark.parametrize("argv", [["train", "--resume", "--out"], ["sample"], ["evaluate", "--sweep"]])
def test_a_step_that_is_not_of_the_schedule(finished, tmp_path, argv):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    forge(out, lambda r: r | {"step": 99}, step=99)
    status, printed, err = command(*argv, out)
    assert (status, printed) == (2, "") and "checkpoint 99 of 3 units: step" in err, err
    assert_one_line(err)


def test_links_to_other_folders_are_refused_where_a_run_would_write(finished, tmp_path):
    out, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(finished, out)
    (out / "checkpoints").rename(other)
    (other / "9.dropped").mkdir()  # what a run deletes
    (out / "checkpoints").symlink_to(other)
    status, _, err = command("train", "--out", out, "--resume")
    assert status == 2 and "is a link" in err and (other / "9.dropped").exists()
    assert command("sample", out, "--num", 1)[0] == 0  # reads alone


def test_leftovers_of_a_killed_write_are_cleared(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / ".curves.png.1-ab.partial").write_text("half")
    assert command("train", "--out", out, "--resume")[0] == 0
    assert not list(out.glob(".*.partial"))


# --- Prepared datasets --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from leakgan_jax import corpora

    folder = tmp_path_factory.mktemp("prepared")
    (folder / "train.txt").write_text(TEXT, encoding="utf-8")
    lines = corpora.load("text_lines", folder / "train.txt", folder / "tfds")
    return folder, corpora.resolve("text_lines", folder / "train.txt", folder / "tfds"), lines


@fuzzed(edits, st.randoms(), cost=3)
def test_any_damage_to_a_prepared_dataset(prepared, tmp_path, how, rng):
    from leakgan_jax import corpora

    folder, name, lines = prepared
    place = tmp_path / "inside"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "tfds", place)
    path = rng.choice(sorted(path for path in place.rglob("*") if path.is_file()))
    path.write_bytes(mangle(path.read_bytes(), how))

    def load():
        return corpora.load(name, data_dir=place)

    found = outcome(load, place, str(place))
    assert found is None or found == lines or path.suffix == ".json", path


def test_a_home_that_nobody_has(prepared):
    from leakgan_jax import corpora

    with pytest.raises(DataError, match="data_dir is '~nobody-of-that-name/x'"):
        corpora.load(prepared[1], data_dir="~nobody-of-that-name/x")


@fuzzed(
    st.text(max_size=20) | st.sampled_from(["text_lines/../..", "text_lines//etc", "emnlp2017_news/\x1b", "x" * 9_000])
)
@each(["text_lines/../..", "emnlp2017_news/\x1b", "x" * 9_000])
def test_any_name_of_a_dataset(place, name):
    from leakgan_jax import corpora

    def load():
        return corpora.load(name, data_dir=place)

    assert outcome(load, place) is None and not list(place.iterdir())
