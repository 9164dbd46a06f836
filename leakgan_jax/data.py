"""Text corpora: lines of text become words, a vocabulary and two padded arrays of word ids.

A row is the ids of a sentence's words, END, then PAD to the length. PAD is one past the vocabulary
(`Config.pad_id`), so the generator cannot emit it. `END` is `Config.end_id`.
"""

import collections
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from leakgan_jax.config import Config, Tokenizer, shown

UNK, END = 0, 1  # ids; words follow from 2
MAX_LINE = 100_000  # characters; a longer line is no sentence, and reading stops there
MAX_TEXT = 500_000_000  # characters of a file; as words and counted n-grams they take many times that in bytes
MAX_LINES = 10_000_000  # of a file; some 1 GB as lists of words even if they are short
MAX_VOCABULARY = 2**24  # bytes of a vocabulary file; a million words and more

PARTIAL = ".partial"  # ends the names of files that are being written

PathLike = str | os.PathLike[str]


class DataError(ValueError):
    """Input that cannot be used; the message is one line that names the file and what would be right."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words a corpus knows, by id. The first two are `<unk>` and `<end>`; padding is not among them."""

    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.words)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        # Without <end>: where a text spells it out it is an unknown word, or it would end the sentence early.
        return {word: i for i, word in enumerate(self.words) if i != END}

    def encode(self, words: Sequence[str]) -> list[int]:
        """The id of each word, UNK for those not known. Adds no END."""
        return [self._ids.get(word, UNK) for word in words]

    def unknown(self, sentences: Iterable[Sequence[str]]) -> float:
        """The share of the words of `sentences` that are not known."""
        known = [word in self._ids for words in sentences for word in words]
        return 1 - sum(known) / max(1, len(known))

    def words_of(self, ids: Iterable[int]) -> list[str]:
        """The words of `ids`, `[T]` int, up to the first END or PAD."""
        words = []
        for i in np.asarray(ids).tolist():
            if i in (END, len(self)):
                break
            words.append(self.words[i])
        return words

    def decode(self, ids: Iterable[int]) -> str:
        """The same with spaces between."""
        return " ".join(self.words_of(ids))

    def save(self, path: PathLike) -> None:
        """Writes JSON for `load`. Whoever reads `path` sees the old file or the new one, never half of one.

        Raises `DataError` if it would be more than `load` reads.
        """
        content = json.dumps({"words": self.words, "format": _FORMAT}, ensure_ascii=False).encode()
        if len(content) > MAX_VOCABULARY:
            raise DataError(f"{path}: {len(self):,} words take over {MAX_VOCABULARY:,} bytes; raise min_count")
        write(pathlib.Path(path), content)

    @staticmethod
    def load(path: PathLike) -> "Vocabulary":
        """Reads what `save` wrote. Raises `DataError` if the file is missing or is anything else."""
        values = read_json(path, MAX_VOCABULARY, "a vocabulary file as saved with a run")
        if not isinstance(values, dict) or not isinstance(values.get("words"), list):
            raise DataError(f"{path}: not a vocabulary; it must be a JSON object with a list 'words'")
        if values.get("format") != _FORMAT:
            raise DataError(f"{path}: format is {shown(values.get('format'))}; this version reads format {_FORMAT}")
        words = tuple(values["words"])
        if words[:2] != _SPECIAL:
            raise DataError(f"{path}: the first two words are not <unk> and <end>, as they must be")
        for i, word in enumerate(words):
            if not isinstance(word, str) or word.split() != [word]:
                raise DataError(f"{path}: word {i} is {shown(word)}; it must be a string, not empty and without spaces")
        for word, count in collections.Counter(words).items():
            if count > 1:
                raise DataError(f"{path}: {shown(word)} is there {count} times; each word must be there once")
        return Vocabulary(words)


class Corpus(NamedTuple):
    """A corpus ready to train on: `[sentences, T]` int32 rows of word ids, END, PAD, and the same as words."""

    train: np.ndarray
    heldout: np.ndarray
    vocabulary: Vocabulary
    dropped: int  # sentences left out of both because they have more than T - 1 words
    duplicates: int  # held-out sentences that also occur, word for word, in train
    train_sentences: list[list[str]]  # the words of each row of train
    heldout_sentences: list[list[str]]
    test: list[list[str]] | None  # the test split of a dataset that has one: references, so of any length
    test_duplicates: int  # test sentences that also occur, word for word, in train
    source: dict[str, Any]  # what it was read from, full name or digest, and counts; equal where the data is


def load_corpus(config: Config, manual_dir: PathLike | None = None, data_dir: PathLike | None = None) -> Corpus:
    """Reads, tokenises and encodes `config.corpus`, or the dataset `config.dataset` (see `corpora.load`).

    Raises:
        DataError as `read_sentences`, `corpora.load` and `encode_corpus` do.
    """
    if config.corpus:
        source = {"corpus_sha256": digest(config.corpus)}  # first: it takes no pipe, which cannot be read twice
        sentences, test = read_sentences(config.corpus, config.lowercase, config.tokenizer), None
    else:
        from leakgan_jax import corpora  # tensorflow_datasets: for those who load a dataset

        dataset = corpora.resolve(config.dataset, manual_dir, data_dir)
        lines = corpora.load(dataset, manual_dir, data_dir)
        source = {"dataset": dataset} | {f"{split}_sha256": _digest_lines(lines[split]) for split in lines}
        words = {
            split: [tokenize(line, config.tokenizer, config.lowercase) for line in lines[split]] for split in lines
        }
        sentences, test = words["train"], words.get("test")
    corpus = encode_corpus(sentences, config, test)
    counts = {
        "train_sentences": len(corpus.train),
        "heldout_sentences": len(corpus.heldout),
        "dropped_as_too_long": corpus.dropped,
        "heldout_also_in_train": corpus.duplicates,
        "heldout_unknown_words": corpus.vocabulary.unknown(corpus.heldout_sentences),
    }
    if test is not None:
        counts |= {"test_sentences": len(test), "test_also_in_train": corpus.test_duplicates}
        counts["test_unknown_words"] = corpus.vocabulary.unknown(test)
    return corpus._replace(source=source | counts)


def read_lines(path: PathLike) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends, in order; blank lines are skipped.

    Any of the usual line ends will do, and a byte order mark is ignored. A pipe will do, one without a writer is empty.
    Raises:
        DataError, as the lines are read, if the file is missing, unreadable, without words, not UTF-8, binary, or
        has a line longer than `MAX_LINE`, more than `MAX_LINES` lines or more than `MAX_TEXT` characters.
    """
    empty, total = True, 0
    # With surrogateescape a byte that is not UTF-8 arrives in its place as a lone surrogate, which real UTF-8
    # never holds, so the message can point at it.
    with _opened(path, pipe=True, encoding="utf-8-sig", errors="surrogateescape") as file:
        read_line = functools.partial(file.readline, MAX_LINE + 1)  # bounds memory, whatever the file
        for number, line in enumerate(iter(read_line, ""), start=1):
            line = line.removesuffix("\n")
            if bad := _NOT_TEXT.search(line):
                raise DataError(f"{path}, line {number}: {_describe(bad)}")
            if len(line) > MAX_LINE:
                raise DataError(f"{path}, line {number}: over {MAX_LINE:,} characters; put one sentence on a line")
            total += max(1, len(line))  # a pipe may give blank lines for ever
            if total > MAX_TEXT:
                raise DataError(f"{path}: over {MAX_TEXT:,} characters; give a part of it")
            if number > MAX_LINES:
                raise DataError(f"{path}: over {MAX_LINES:,} lines; give a part of it")
            if line.strip():
                empty = False
                yield line
    if empty:
        raise DataError(f"{path}: no words in it; give text with one sentence a line")


def read_sentences(path: PathLike, lowercase: bool, tokenizer: Tokenizer = "whitespace") -> list[list[str]]:
    """The words of each line of a UTF-8 file that is not blank. Raises `DataError` as `read_lines` does."""
    return [tokenize(line, tokenizer, lowercase) for line in read_lines(path)]


def tokenize(line: str, tokenizer: Tokenizer, lowercase: bool) -> list[str]:
    """The words of a line, none of them with whitespace inside.

    Args:
        tokenizer: `whitespace` splits there; `nltk` is NLTK's word tokenizer, Penn Treebank's with newer
            punctuation, which writes double quotes as two single ones; `characters` takes every character that is
            not whitespace.
        lowercase: whether to lower-case before.
    """
    line = line.lower() if lowercase else line
    if tokenizer == "nltk":
        words = _nltk_tokenizer().tokenize(line)
    else:
        words = line.split() if tokenizer == "whitespace" else [c for c in line if not c.isspace()]
    return [sys.intern(word) for word in words]  # a corpus is kept as words: each is in memory once


def detokenize(words: Sequence[str], tokenizer: Tokenizer) -> str:
    """Readable text: spaces between words, none between characters, and NLTK's rules for its own.

    Punctuation that stands alone between spaces is taken for the work of an earlier tokenizer, as in the news
    (`They ' ll go , I think`), and is joined to its word.
    """
    if tokenizer == "nltk":
        return _nltk_detokenizer().detokenize(words)
    if tokenizer == "characters":
        return "".join(words)
    text = re.sub(r" ([.,!?;:%)\]}…]+)(?= |$)", r"\1", " ".join(words))
    text = re.sub(r"(^| )([(\[{$£€]) (?=\S)", r"\1\2", text)
    return re.sub(r"(?i)(\w) (['’]) ?(s|t|d|m|ll|re|ve)\b", r"\1\2\3", text)


def encode_corpus(sentences: Sequence[list[str]], config: Config, test: list[list[str]] | None = None) -> Corpus:
    """Drops what is too long, splits at random, and encodes with the vocabulary of the training split.

    The split does not depend on the seed of a run: runs of different seeds are to have the same one.

    A tenth of the sentences is held out, at most `config.num_heldout` and at least one. Both splits keep the
    order of `sentences`. `test` is passed on as it is. Does not read `config.vocab_size`: the vocabulary made here
    decides it.
    Raises:
        DataError if too few sentences, or no words, are left to train on; it names the corpus or dataset.
    """
    name, longest = config.corpus or config.dataset, config.length - 1
    # Cut off at the length instead, a long sentence would teach the model sentences without an end.
    kept = [words for words in sentences if len(words) <= longest]
    if sentences and not kept:
        shortest = min(map(len, sentences))
        raise DataError(
            f"{name}: every sentence is too long for length {config.length} ({longest} words and an end); "
            f"the shortest has {shortest} words, so give a length of at least {shortest + 1}"
        )
    if len(kept) < 2:
        raise DataError(f"{name}: {len(kept)} usable sentence(s) of {len(sentences)}; give at least 2")

    num_heldout = max(1, min(config.num_heldout, len(kept) // 10))
    order = np.random.default_rng(0).permutation(len(kept))
    heldout = [kept[i] for i in np.sort(order[:num_heldout])]
    train = [kept[i] for i in np.sort(order[num_heldout:])]
    if len(train) < config.batch_size:
        raise DataError(
            f"{name}: {len(train)} training sentence(s) with {num_heldout} held out; "
            f"give at least batch_size ({config.batch_size}), or lower it"
        )

    vocabulary = _make_vocabulary(train, config.min_count, name)
    seen = set(map(tuple, train))
    return Corpus(
        train=encode_rows(train, vocabulary, config.length),
        heldout=encode_rows(heldout, vocabulary, config.length),
        vocabulary=vocabulary,
        dropped=len(sentences) - len(kept),
        duplicates=sum(tuple(words) in seen for words in heldout),
        train_sentences=train,
        heldout_sentences=heldout,
        test=test,
        test_duplicates=sum(tuple(words) in seen for words in test or ()),
        source={},
    )


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file at once: readers see the old content or the new. An OSError names `path` and leaves the old.

    A link is replaced, not followed. What UTF-8 cannot hold (names of files may have it) is written as an escape.
    """
    content = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    # Of this process and this call alone, and new: whatever is there under a name that can be guessed may be a link.
    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}"
    try:
        kind = path.stat().st_mode
    except OSError:  # there is nothing, or a link to nothing
        kind = stat.S_IFREG
    if path.is_symlink() and os.readlink(path).startswith("/proc/"):  # /dev/stdout, whatever that is
        kind = 0
    if not stat.S_ISREG(kind):  # `--out /dev/null` is not to replace it
        what = "a directory" if stat.S_ISDIR(kind) else "not a regular file"
        raise OSError(errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL, f"{what}; give a file", str(path))
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def sync_folder(folder: pathlib.Path) -> None:
    """Waits until the names in a folder are on disk, where its file system can say so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_bytes(path: PathLike, most: int) -> bytes:
    """A regular file of at most `most` bytes. Raises `DataError` if it is missing, unreadable or anything else."""
    with _opened(path, "rb", most=most) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)  # room is made for as much as is asked for, so not for `most`
    if len(content) != size:
        raise DataError(f"{path}: changed while it was read; give a file that nothing writes to")
    return content


def read_json(path: PathLike, most: int, right: str) -> Any:
    """What a JSON file of at most `most` bytes holds. Raises `DataError`, which says to give `right`."""
    try:
        return parse_json(read_bytes(path, most).decode("utf-8"))
    except DataError:
        raise
    except ValueError as error:
        why = "not UTF-8" if isinstance(error, UnicodeError) else error
        raise DataError(f"{path}: not JSON ({why}); give {right}") from None


def parse_json(text: str) -> Any:
    """JSON as its standard has it, and no more than can be written, sorted and printed again.

    Refused are NaN and infinity, also by a number too large for float, repeated keys, lone surrogates, nesting of more
    than 20 levels and integers of thousands of digits.
    Raises:
        ValueError, of one printable line and without what `text` holds.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_repeats)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except MemoryError:
        raise ValueError("too large") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}, line {error.lineno} column {error.colno}") from None
    if _ESCAPED_SURROGATE.search(text) or text.count("[") + text.count("{") > _MAX_DEPTH:  # else there is no need
        for leaf in leaves(value):
            if isinstance(leaf, str) and _SURROGATE.search(leaf):
                raise ValueError("a lone surrogate, which is no character")
    return value


def leaves(value: Any) -> Iterator[Any]:
    """All that JSON holds which is neither object nor list, keys too. Raises ValueError if it is nested too deeply."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                yield from item
                below += item.values()
            elif isinstance(item, list):
                below += item
            else:
                yield item
        level = below
    if level:
        raise ValueError("nested too deeply")


def is_number(value: Any) -> bool:
    """Whether it can be drawn: neither infinite nor so large that the margin around it is."""
    return isinstance(value, int | float) and abs(value) < 1e100


def seal(values: dict[str, Any]) -> str:
    """SHA-256 of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name}, which is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number too large for float")
    return value


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key that is there twice")
    return values


def digest(path: PathLike) -> str:
    """SHA-256 of a file, in hex.

    Raises `DataError` if it is missing, unreadable, no regular file or too large to be text of `MAX_TEXT` characters.
    """
    sha = hashlib.sha256()
    with _opened(path, "rb", most=4 * MAX_TEXT) as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def _digest_lines(lines: Iterable[str]) -> str:
    sha = hashlib.sha256()
    for line in lines:
        sha.update(f"{line}\n".encode())
    return sha.hexdigest()


@functools.cache
def _nltk_tokenizer():
    from nltk.tokenize.destructive import NLTKWordTokenizer  # nltk.word_tokenize needs a download

    return NLTKWordTokenizer()


@functools.cache
def _nltk_detokenizer():
    from nltk.tokenize.treebank import TreebankWordDetokenizer

    return TreebankWordDetokenizer()


_SPECIAL = ("<unk>", "<end>")
_FORMAT = 1  # of the vocabulary file
_NOT_TEXT = re.compile(r"[\0\udc80-\udcff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MAX_DEPTH = 20  # of JSON


@contextlib.contextmanager
def _opened(
    path: PathLike, mode: str = "r", *, pipe: bool = False, most: int | None = None, **options: Any
) -> Iterator[IO[Any]]:
    """`open` for reading, with what the system refuses, then or while reading, as a `DataError`.

    Takes regular files of at most `most` bytes; with `pipe` also pipes and devices, `/dev/stdin` among them.
    """

    def opener(name: str, flags: int) -> int:
        # Without O_NONBLOCK, a named pipe without a writer would be waited for here.
        descriptor = os.open(name, flags | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode) and not pipe:
                raise DataError(f"{path}: not a regular file; give the path of one")
            if most is not None and found.st_size > most and stat.S_ISREG(found.st_mode):
                raise DataError(f"{path}: has {found.st_size:,} bytes; give one of at most {most:,}")
            os.set_blocking(descriptor, True)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    try:
        if b"\0" in os.fsencode(path):
            raise FileNotFoundError
        with open(path, mode, opener=opener, **options) as file:
            yield file
    except (FileNotFoundError, UnicodeEncodeError):  # the latter is of a name that no file can have
        raise DataError(f"{path}: no such file; give the path of a file that exists") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; give the path of a file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a file that you may read") from None


def _describe(bad: re.Match[str]) -> str:
    """What is wrong with a character that `_NOT_TEXT` found."""
    column = bad.start() + 1
    if bad.group() == "\0":
        return f"a NUL byte at column {column}, as in binary files; give plain text, saved as UTF-8"
    return f"not UTF-8 (byte 0x{ord(bad.group()) - 0xDC00:02x} at column {column}); save the file as UTF-8"


def _make_vocabulary(sentences: Iterable[Sequence[str]], min_count: int, name: str) -> Vocabulary:
    """The words seen at least `min_count` times: commonest first, then by the alphabet."""
    counts = collections.Counter(word for words in sentences for word in words if word not in _SPECIAL)
    words = [word for word in counts if counts[word] >= min_count]
    if not words:
        highest = max(counts.values(), default=0)
        raise DataError(f"{name}: min_count {min_count} leaves no words, the highest count is {highest}; lower it")
    return Vocabulary((*_SPECIAL, *sorted(words, key=lambda word: (-counts[word], word))))


def encode_rows(sentences: Sequence[Sequence[str]], vocabulary: Vocabulary, length: int) -> np.ndarray:
    """`[n, length]` int32: ids, END, PAD."""
    rows = np.full((len(sentences), length), len(vocabulary), np.int32)
    for row, words in zip(rows, sentences, strict=True):
        row[: len(words) + 1] = [*vocabulary.encode(words), END]
    return rows
