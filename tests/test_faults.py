"""The programs that hurt runs and weigh their keeping: what they compare must notice, and one trial from end to end."""

import json
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from benchmarks import faults, overhead
from benchmarks.faults import Ended, Result, Wrong
from leakgan_jax.config import preset

TABLE = ["| model | NLL |", "|---|--:|", "| MLE, best NLL_gen | 3.5 |", "| LeakGAN | 3.1 |"]
LINES = [{"unit": 1, "loss": 0.5, "seconds": 1.0}, {"unit": 2, "loss": 0.25, "nll_gen": None, "seconds": 2.0}]
REFUSED = "some progress\nleakgan: checkpoint 2 is damaged\n"


def make_run(out: Path, lines=LINES, table=TABLE, weights=(1.0, 2.0), bias=3.0) -> Path:
    """A made-up run directory with one checkpoint, of two arrays."""
    out.mkdir()
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / "report.md").write_text("# Report\n\n" + "\n".join(table) + "\n\nSome text.\n")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(out / "checkpoints" / "2" / "state", {"w": np.array(weights, np.float32), "b": np.float32(bias)})
    return out


def read(out: Path, **answers) -> Result:
    """As `Workshop.result`, with answers made up."""
    told = {which: ["a sample"] for which in faults.WHICH} | answers
    arrays = faults.stored_arrays(out / "checkpoints" / "2")
    return Result(faults.metric_lines(out), faults.steps(out)[-1], arrays, told, faults.table(out))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "whole")


def test_runs_that_differ_in_their_times_alone_are_the_same(whole, tmp_path):
    slower = make_run(tmp_path / "slower", lines=[line | {"seconds": 9.0} for line in LINES])
    assert faults.differences(read(whole), read(slower)) == []


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"lines": [LINES[0], LINES[1] | {"loss": 0.25000000000000006}]}, "line 2: loss is 0.25000000000000006"),
        ({"lines": [LINES[0], {k: v for k, v in LINES[1].items() if k != "nll_gen"}]}, "line 2: nll_gen"),
        ({"lines": LINES[:1]}, "1 lines, not 2"),
        ({"lines": [LINES[0], LINES[0], LINES[1]]}, "3 lines, not 2"),
        ({"weights": (1.0, 2.0000002)}, "'w'] differs"),
        ({"weights": (1.0,)}, "'w'] differs"),
        ({"table": [*TABLE[:3], "| LeakGAN | 3.2 |"]}, "has the row | LeakGAN | 3.2 |"),
        ({"table": TABLE[:3]}, "lacks the row | LeakGAN"),
        ({"table": [*TABLE[:2], *TABLE[3:]]}, "lacks the row | MLE, best"),
        ({"table": [*TABLE[:2], TABLE[3], TABLE[2]]}, "another order"),
    ],
)
def test_what_differs_is_noticed(changed, said, whole, tmp_path):
    found = faults.differences(read(whole), read(make_run(tmp_path / "other", **changed)))
    assert found and said in " ".join(found)


@pytest.mark.parametrize("which", faults.WHICH)
def test_a_changed_sample_is_noticed(which, whole):
    found = faults.differences(read(whole), read(whole, **{which: ["another"]}))
    assert found == [f"the {which} checkpoint says something else"]


def test_only_a_best_checkpoint_may_be_refused(whole, tmp_path):
    without = make_run(tmp_path / "without", table=[*TABLE[:2], *TABLE[3:]])
    assert faults.differences(read(whole), read(without, mle=None)) == []
    assert faults.differences(read(whole), read(whole, newest=None)) == ["the newest checkpoint says something else"]
    assert "lacks the row" in faults.differences(read(whole), read(without, best=None))[0]
    lacking = make_run(tmp_path / "lacking", table=TABLE[:3])
    assert "lacks the row | LeakGAN" in faults.differences(read(whole), read(lacking, mle=None))[0]


def test_a_newest_checkpoint_of_another_step_is_noticed(whole):
    other = read(whole)._replace(step=1)
    assert faults.differences(read(whole), other) == ["the newest checkpoint is 1, not 2"]


def test_a_broken_metric_line_is_no_result(tmp_path):
    out = make_run(tmp_path / "run")
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"unit": 3, "lo')
    with pytest.raises(Wrong, match="line 3"):
        faults.metric_lines(out)


def test_arrays_of_several_shares_are_one_state(whole, tmp_path):
    out = make_run(tmp_path / "run")
    state = out / "checkpoints" / "2" / "state"
    shutil.rmtree(state)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(state / "0", {"w": np.array([1.0, 2.0], np.float32)})
        writer.save(state / "1", {"b": np.float32(3)})
    assert read(out).arrays == read(whole).arrays
    shutil.rmtree(state / "1")
    assert read(out).arrays != read(whole).arrays


@pytest.mark.parametrize(
    "status, stderr, change, result, harmless, outcome",
    [
        (2, REFUSED, "", None, "", "refused"),
        (2, REFUSED, "metrics.jsonl", None, "", "FAILED"),
        (2, "Traceback (most recent call last)\n" + REFUSED, "", None, "", "FAILED"),
        (2, REFUSED + "and more\n", "", None, "", "FAILED"),
        (2, REFUSED + "leakgan: again\n", "", None, "", "FAILED"),
        (0, "checkpoint 2 is damaged; falling back to 1\n", "metrics.jsonl", {}, "", "fell back"),
        (0, "resuming after 2 of 4 units of work\n", "", {}, "", "FAILED"),  # unnoticed
        (0, "resuming after 2 of 4 units of work\n", "", {}, "never read", "resumed identically"),
        (0, "note: rounding may differ from before, as this did change: cpus (2, now 1)\n", "", {}, "", "FAILED"),
        (0, "checkpoint 2 is damaged; falling back to 1\n", "", {"step": 1}, "never read", "FAILED"),
        (0, "", "", {"answers": {"newest": ["a sample"], "best": None, "mle": ["a sample"]}}, "", "refused"),
        (1, REFUSED, "", None, "", "FAILED"),
        (-6, "", "", None, "", "FAILED"),
    ],
)
def test_damage_is_refused_told_or_a_failure(status, stderr, change, result, harmless, outcome, whole):
    before, expected = faults.tree(whole), read(whole)
    after = before | ({change: "changed"} if change else {})
    came_to = None if result is None else expected._replace(**result)
    judged = faults.judge_damage(Ended(status, stderr), before, after, expected, came_to, harmless)
    assert judged[0] == outcome and judged[1]


def test_lines_that_are_told_as_lost_are_not_missed(whole):
    expected = read(whole)
    left = expected._replace(lines=expected.lines[1:])
    told = "metrics.jsonl: the lines of 1 of 2 units are lost or damaged, and left out of curves and report\n"
    assert faults.differences(expected, faults.told_lines(told, expected, left)) == []
    assert faults.differences(expected, faults.told_lines("", expected, left))
    for other in (told.replace("1 of 2", "2 of 2"), told.replace("1 of 2", "1 of 0")):  # one is missing, of two
        assert faults.differences(expected, faults.told_lines(other, expected, left))
    changed = left._replace(lines=[left.lines[0] | {"loss": 7.0}])
    assert "loss is 7.0" in faults.differences(expected, faults.told_lines(told, expected, changed))[0]


def test_a_lost_or_changed_file_is_in_the_tree_and_a_lock_is_not(tmp_path):
    out = make_run(tmp_path / "run")
    before = faults.tree(out)
    (out / "run.lock").touch()
    assert faults.tree(out) == before
    (out / "checkpoints" / "3").mkdir()
    assert faults.tree(out).keys() - before == {"checkpoints/3"}


@pytest.mark.parametrize(
    "harm", [faults.flip, faults.flip_record, faults.truncate, faults.empty, faults.half_written, faults.delete]
)
def test_harm_is_one_thing_and_the_seed_s_choice(harm, whole, tmp_path):
    told = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        out = shutil.copytree(whole, tmp_path / name / "run")
        (out / "config.json").write_text("{}")
        before = faults.tree(out)
        told.append((harm(out, random.Random(5)), after := faults.tree(out)))
        changed = {path for path in before.keys() | after if before.get(path) != after.get(path)}
        assert changed and (harm in (faults.half_written, faults.delete) or len(changed) == 1)
    assert told[0] == told[1]


def test_a_stop_is_of_the_moment_and_told(tmp_path):
    out = make_run(tmp_path / "run")

    def stop(unit, status, stderr):
        trial = {"signal": "SIGTERM", "unit": unit, "outcome": "resumed identically", "why": ""}
        faults._check_stopped(trial, Ended(status, stderr), 143, out)
        return trial["outcome"]

    assert stop(2, 143, "leakgan: stopped and saved\n") == "resumed identically"
    assert stop(3, 143, "leakgan: stopped and saved\n") == "FAILED"  # the checkpoint is of an earlier moment
    assert stop(2, -15, "") == stop(2, 0, "leakgan: stopped and saved\n") == stop(2, 143, "") == "FAILED"


@pytest.mark.parametrize(
    "stderr, metrics, outcome",
    [
        ("resuming after 2 of 4 units\n2 units of work to do", "", "resumed identically"),
        ("resuming after 1 of 4 units\n3 units of work to do", "", "FAILED"),
        ("4 units of work to do", "", "FAILED"),
        ("resuming after 2 of 4 units\n2 units of work to do", '{"unit": 1}', "FAILED"),
    ],
)
def test_a_unit_done_twice_is_noticed(stderr, metrics, outcome, tmp_path):
    out = make_run(tmp_path / "run")
    trial, lines = {"unit": 2, "outcome": "resumed identically", "why": ""}, (out / "metrics.jsonl").read_bytes()
    if metrics:
        (out / "metrics.jsonl").write_text(metrics)
    faults._check_goes_on((trial, lines), Ended(0, stderr), out)
    assert trial["outcome"] == outcome


def test_rounding_is_near_and_more_is_not():
    a = [{"loss": 1.0, "kind": "mle"}]
    assert faults.near(a, [{"loss": 1.0000001, "kind": "mle"}], 1e-5) == []
    for other in ([{"loss": 1.001, "kind": "mle"}], [{"loss": 1.0, "kind": "generator"}], [{"kind": "mle"}], []):
        assert len(faults.near(a, other, 1e-5)) == 1


def test_trials_of_other_code_and_skipped_ones_are_made_again(tmp_path):
    path = tmp_path / "trials.jsonl"
    book = faults.Book(path, "code", 0)
    book.add("flip", 0, [{"outcome": "refused", "why": ""}], 1.0)
    book.add("full", 0, [{"outcome": "skipped", "why": "no mount"}], 1.0)
    book.add("kill", 0, [{"outcome": "resumed identically", "why": ""}] * 3, 1.0)
    with open(path, "a") as file:
        file.write('{"kind": "fl')  # a session that was cut
    same = faults.Book(path, "code", 0)
    assert list(faults.tasks(same, "flip", 3, {("flip", 1)})) == [(2, 1)]
    assert list(faults.tasks(same, "full", 1, set())) == [(0, 1)]
    assert list(faults.tasks(same, "kill", 10, set())) == [(1, 4), (2, 3)]
    for other in (faults.Book(path, "other", 0), faults.Book(path, "code", 1)):
        assert other.trials == []


TRAIN = """
import json, os, pathlib, signal, sys, time

fault, out = os.environ.get("FAULT", ""), pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
stop, units, places = [], 12, out / "checkpoints"
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda n, _: fault == "deaf" or stop.append(n))
places.mkdir(parents=True, exist_ok=True)
(out / "config.json").write_text("{}")
done = max((int(p.name) for p in places.iterdir() if p.name.isdigit()), default=0)
state = int((places / str(done)).read_text()) + (fault == "drift") if done else 1
metrics = out / "metrics.jsonl"
lines = [line for line in metrics.read_text().splitlines() if json.loads(line)["unit"] <= done] if done else []
metrics.write_text("".join(line + "\\n" for line in lines))
if done:
    print(f"resuming after {done - (fault == 'again')} of {units} units of work", file=sys.stderr)
print(f"{units - done} units of work to do", file=sys.stderr, flush=True)
for unit in range(done + 1, units + 1):
    time.sleep(0.03)
    if fault == "crash" and unit == 4 and not done:
        sys.exit("Traceback")
    state = (state * 31 + unit) % 1009
    if not (fault == "lose" and done and unit == done + 1):
        with open(metrics, "a") as file:
            file.write(json.dumps({"unit": unit, "state": state, "seconds": time.time()}) + "\\n")
    stopped = list(stop)
    if unit % 3 == 0 or stopped and fault != "forget":
        (places / "new.partial").write_text(str(state))
        time.sleep(0.02)
        (places / "new.partial").rename(places / str(unit))
    if stopped:
        print("leakgan: stopped and saved", file=sys.stderr)
        sys.exit(128 + stopped[0])
(out / "report.md").write_text(f"| {state} |\\n")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A workshop whose runs are those of a script, which a second suffices for."""
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setattr(faults, "COMMAND", [sys.executable, str(tmp_path / "train.py")])
    monkeypatch.setattr(faults, "stored_arrays", lambda checkpoint: {"state": checkpoint.read_text()})
    monkeypatch.setattr(faults.Workshop, "answer", lambda shop, out, which: ["a sample"])

    def workshop(fault: str):
        monkeypatch.delenv("FAULT", raising=False)
        shop = faults.Workshop(tmp_path / "shop", seed=0)
        assert shop.units == 12  # the run left alone has no fault
        monkeypatch.setenv("FAULT", fault)
        return faults.Workshop(tmp_path / "shop", seed=0)

    return workshop


@pytest.mark.parametrize(
    "fault, signals, said",
    [
        ("", ["SIGKILL", "SIGTERM", "SIGINT"], ""),
        ("drift", ["SIGKILL"], "state is"),
        ("lose", ["SIGKILL"], "metrics.jsonl has"),
        ("deaf", ["SIGTERM"], "status 0, not 143"),
        ("again", ["SIGINT"], "and then: resuming after"),
        ("forget", ["SIGTERM"], "left the checkpoints"),
        ("crash", ["SIGKILL"], "ended of itself, with status 1"),
    ],
)
def test_kills_tell_a_run_that_goes_on_right_from_one_that_does_not(fault, signals, said, stand_in, monkeypatch):
    shop = stand_in(fault)
    monkeypatch.setattr(faults, "SIGNALS", {name: faults.SIGNALS[name] for name in signals})

    class Chosen(random.Random):  # after unit 4 each time, at once
        randint = staticmethod(lambda low, high: 4)
        uniform = staticmethod(lambda low, high: low)
        choices = staticmethod(lambda *_: ["unit"])

    trials = faults.kill(shop, Chosen(2), shop.folder / "killed", len(signals))
    assert len(trials) == len(signals)
    assert all(trial["outcome"] == ("FAILED" if fault else "resumed identically") for trial in trials)
    assert all(said in trial["why"] for trial in trials)


def test_a_session_goes_on_where_it_stopped(stand_in, tmp_path, monkeypatch, capsys):
    stand_in("")
    argv = "--faults kill --kills 5 --seed 1".split()
    argv += ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results.jsonl")]
    assert faults.main(argv) == 0
    line = json.loads((tmp_path / "results.jsonl").read_text())
    assert line["kind"] == "kill" and line["trials"] == line["resumed_identically"] == 5 and not line["failed"]
    assert "| kill | 5 | 5 | 0 | 0 | 0 | 0 |" in capsys.readouterr().out
    trials = (tmp_path / "out" / "trials.jsonl").read_text()
    assert faults.main(argv) == 0
    assert (tmp_path / "out" / "trials.jsonl").read_text() == trials


# --- Overhead --------------------------------------------------------------------------------------------------------


def test_time_within_another_is_counted_once(monkeypatch):
    clock = iter(range(100))  # every look at it is a second
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    account = overhead.Account()
    inner = account.timed("inner", lambda: None)
    outer = account.timed("outer", lambda: [inner(), inner()])
    unit = account.timed("unit", lambda config, kind: outer())
    unit(None, "mle")
    assert account.seconds == {"inner": [1, 1], "outer": [3], "unit, mle": [2]}
    account.over = True
    inner()
    assert account.seconds["inner"] == [1, 1] and account.seconds["table"] == [1]


def test_overhead_is_of_one_run_and_compile_time_apart(tiny_config, fast_compile, monkeypatch):
    sizes = {"pretrain_rounds": 1, "pretrain_draws": 2, "mle_epochs": 4, "adversarial_iterations": 0, "eval_every": 2}
    config = tiny_config(num_train=10, num_heldout=5, draw_size=5, eval_samples=10, **sizes)
    monkeypatch.setattr(overhead, "KEEPING", (*overhead.KEEPING, ("nothing", "leakgan_jax.run", "no_such_function")))
    parts, missing = overhead.measured(config)
    by_name = {part.name: part for part in parts}
    assert "leakgan_jax.run.no_such_function" in missing and "leakgan_jax.rundir.append" not in missing
    assert by_name["unit, mle"].calls == 4 and by_name["unit, discriminator"].calls == 2
    assert by_name["evaluation"].calls == 3 and by_name["metric lines"].calls >= 6
    assert by_name["checkpoint: write, sync, rename"].calls == 1  # the last is the best
    assert by_name["unit, mle"].total < by_name["unit, mle"].first  # which compiled
    assert by_name["metric lines"].total > by_name["metric lines"].first
    assert "table" not in by_name


def test_checks_in_units_are_timed_without_them(tiny_config, fast_compile, monkeypatch):
    config = tiny_config(num_train=10, num_heldout=5)
    traced = []

    def nothing(config, state, tokens, key):
        traced.append("without")
        return state, {}

    parts = [overhead.Part("unit, mle", 4, 1.0, 1.0, 4.0), overhead.Part("evaluation", 3, 1.0, 1.0, 3.0)]
    monkeypatch.setattr(overhead, "COMPILED", ())
    assert overhead.in_units(config, parts, 3, 0.0) is None
    monkeypatch.setattr(overhead, "COMPILED", (("leakgan_jax.training", "mle_epoch", nothing),))
    part = overhead.in_units(config, parts, 3, 0.0)
    assert traced and part.calls == 4


def test_presets_for_the_benchmark_are_synthetic(capsys, tmp_path):
    assert not preset("quickstart").is_text
    with pytest.raises(SystemExit) as stop:
        overhead.main(["--preset", "coco", "--out", str(tmp_path / "out.jsonl")])
    assert stop.value.code == 2 and "synthetic" in capsys.readouterr().err
