"""Coverage-guided fuzzing of what reads files from elsewhere: `python tests/guided.py [SECONDS]`, 60 by default.

Each reader gets its share of the time in a process of its own, where Atheris sees which branches of this library and of
zipfile, pickle and json an input reaches, and changes the inputs that reach new ones. Prints the executions of each
reader and every input after which it did anything but return or refuse in one printable line. Exit status 1 if any did.
"""

import contextlib
import os
import re
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve()
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # its folder is made, outside of where readers may write
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

try:
    import atheris
except ImportError:
    sys.exit("tests/guided.py needs Atheris: pip install atheris")


def readers(folder: Path) -> dict:
    """By name: a reader of bytes, and inputs to begin with."""
    import test_fuzz as known

    from leakgan_jax import data, oracle, rundir, sweep
    from leakgan_jax.config import Config, preset

    def at(name, read):
        def reader(content: bytes) -> None:
            (folder / name).write_bytes(content)
            read(folder / name)

        return reader

    def parsed(content: bytes):
        """The JSON that stands for a file here; None if it is none."""
        try:
            return data.parse_json(content.decode("utf-8"))
        except ValueError as error:
            assert type(error) in (ValueError, UnicodeDecodeError), error
            return None

    def sealed(content: bytes) -> None:
        record = parsed(content)
        if isinstance(record, dict):
            rundir.write_record(folder, record)
            rundir.open_run(folder)

    def settings(content: bytes) -> None:
        Config.from_json(parsed(content))

    def unfinished(content: bytes) -> None:
        kept = parsed(content)
        if isinstance(kept, dict):
            path = folder / "sweep.partial.json"
            data.write(path, known.json.dumps({**kept, "sha256": data.seal(kept)}))
            sweep.kept_rows(path, known.ABOUT, ["MLE, best NLL_gen", "LeakGAN"])

    def scored(content: bytes) -> None:
        first, _, second = content.partition(b"\xff\xff")
        (folder / "h.txt").write_bytes(first)
        (folder / "r.txt").write_bytes(second or first)
        status, out, err = known.command("metrics", folder / "h.txt", "--references", folder / "r.txt", "--json")
        if status:
            known.assert_one_line(err)
        else:
            data.parse_json(out)

    def corpus(path: Path) -> None:
        data.load_corpus(preset("coco", corpus=str(path), batch_size=1, tokenizer="whitespace"))

    dumped = known.json.dumps
    rows = {"about": known.ABOUT, "rows": known.ROWS}
    return {
        "vocabulary": (at("vocabulary.json", data.Vocabulary.load), [dumped(known.VOCABULARY_JSON).encode()]),
        "config file": (at("config.json", lambda path: rundir.open_run(path.parent)), [known.sealed()]),
        "config, sealed": (sealed, [dumped(known.RECORD).encode()]),
        "settings": (settings, [dumped(known.RECORD["config"]).encode()]),
        "metric lines": (at("metrics.jsonl", lambda path: rundir.keep_lines(path, 4)), [known.lines_text(known.LINES)]),
        "unfinished sweep": (unfinished, [dumped(rows).encode()]),
        "corpus": (at("corpus.txt", corpus), [known.TEXT.encode()]),
        "text to score": (scored, [known.TEXT.encode() + b"\xff\xff" + known.TEXT.encode()]),
        "oracle": (at("oracle.bin", oracle.load), [*known.SEEDS, *known.BOMBS.values()][:6]),
    }


def fuzz(name: str, folder: Path, seconds: int) -> None:
    """Never returns: libFuzzer, below Atheris, ends the process."""
    import test_fuzz as known

    reader, seeds = readers(folder / "inside")[name]
    for number, seed in enumerate(seeds):
        if len(seed) < 2**16:
            (folder / "corpus" / str(number)).write_bytes(seed)

    def one(content: bytes) -> None:
        with known.watched(folder):
            try:
                reader(content)
            except known.OURS as error:
                assert known.config.is_printable(str(error)) and len(str(error)) < 1500, str(error)

    options = [
        f"-max_total_time={seconds}",
        "-max_len=8192",
        "-timeout=60",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/crash-", str(folder / "corpus")], one)
    atheris.Fuzz()


def main(seconds: int) -> int:
    with atheris.instrument_imports(include=["leakgan_jax", "zipfile", "pickle", "json"]):
        import json.decoder  # noqa: F401
        import pickle  # noqa: F401
        import zipfile  # noqa: F401

        from leakgan_jax import config, data, oracle, run, rundir, sweep  # noqa: F401
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # every write waits for the disk
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        names = list(readers(Path(folder)))
    total = failed = 0
    for name in names:
        with tempfile.TemporaryDirectory(dir=memory) as folder, open(f"{folder}/log", "w+", errors="replace") as log:
            for inner in ("inside", "corpus"):
                (Path(folder) / inner).mkdir()
            child = os.fork()  # so that all is imported once
            if not child:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                fuzz(name, Path(folder), max(1, seconds // len(names)))
            _, status = os.waitpid(child, 0)
            log.seek(0)
            said = log.read()
            found = re.search(r"number_of_executed_units: (\d+)", said)
            executions = int(found[1]) if found else 0
            crashes = list(Path(folder).glob("crash-*"))
            print(f"{name:<18}{executions:>9,} executions  {len(crashes)} crashes", flush=True)
            for crash in crashes:
                print("  ", crash.read_bytes()[:2000])
            if crashes or status or not executions:
                print(said[-4000:])
                failed += 1
            total += executions
    print(f"{'all':<18}{total:>9,} executions  {failed} readers with crashes")
    return 1 if failed else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 60))
