import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from soaprl.cost.profiled import Measured, Measurement, Profile, plan_anchors
from soaprl.cost.profiled.claims import Claims
from soaprl.cost.profiled.store import VERSION
from soaprl.errors import CostError
from tests.cost.profiled_toys import SETTING, toy_graph

ROOT = Path(__file__).parents[2]
ROW = Measured(
    family="f", extents=(2, 3), kind="linear", times=Measurement(forward_s=1e-5, backward_s=2e-5, spread=0.1)
)
UNMEASURED = Measured(family="g", extents=(1,), kind="odd", times=None, reason="no such kernel")
# The shards of the toy graph's two families for 16 devices, and two updates.
TOTAL = len(plan_anchors(toy_graph(), 16)) + 2


@contextmanager
def measuring(
    profile: Path, log: Path, *, most: int = -1, rounds: int = 1
) -> Iterator[subprocess.Popen[str]]:
    """A process that is ready to measure all of the toy graph, and stalls after `most` measurements."""
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "envs", "agents"))
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cost.profiled_toys", str(profile), str(log), str(most), str(rounds)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert line_of(process) == "ready"
        yield process


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def rows(path: Path) -> list[Measured]:
    with Profile(path) as profile:
        return profile.all(SETTING)


def logged(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_what_is_put_is_found_again_by_another_reader(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with Profile(path, create=True) as profile:
        profile.put(SETTING, ROW)
        profile.put(SETTING, UNMEASURED)
        with Profile(path) as other:
            assert other.settings() == [SETTING]
            assert other.get(SETTING, "f", (2, 3)) == ROW
            assert other.get(SETTING, "f", (3, 2)) is None
            assert {row.family: row for row in other.all(SETTING)} == {"f": ROW, "g": UNMEASURED}


def test_the_first_measurement_of_a_shard_stays(tmp_path: Path) -> None:
    with Profile(tmp_path / "p.db", create=True) as profile:
        profile.put(SETTING, ROW)
        profile.put(
            SETTING,
            Measured(
                family="f", extents=(2, 3), kind="linear", times=Measurement(forward_s=9.0, backward_s=9.0)
            ),
        )
        assert profile.all(SETTING) == [ROW]


def measured_again(path: Path, *times_s: float) -> list[Measured]:
    """What a reader finds of a shard of 10 and 20 us that was measured again so often."""
    with Profile(path, create=True) as profile:
        profile.put(SETTING, ROW)
        for time_s in times_s:
            profile.put_again(
                SETTING, "f", (2, 3), Measurement(forward_s=time_s, backward_s=2 * time_s, repeats=3)
            )
        assert profile.get(SETTING, "f", (2, 3)) == profile.all(SETTING)[0]
    return rows(path)


def test_of_several_rounds_the_median_counts_and_all_are_kept(tmp_path: Path) -> None:
    (found,) = measured_again(tmp_path / "p.db", 4e-5, 1.5e-5)
    # Of 10, 40 and 15 us.
    expected = Measurement(forward_s=1.5e-5, backward_s=3e-5, spread=0.1, repeats=1 + 3 + 3)
    assert (found.times, found.rounds) == (expected, 3)
    (found,) = measured_again(tmp_path / "p.db", 2e-5)
    assert found.rounds == 4
    assert found.times is not None
    assert found.times.forward_s == pytest.approx(1.75e-5)


def test_a_later_round_that_was_changed_behind_its_back_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    measured_again(path, 4e-5)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE rounds SET forward_s = 1e-9")
    connection.close()
    with Profile(path) as profile, pytest.raises(CostError, match="checksum"):
        profile.all(SETTING)


def test_two_processes_measure_nothing_twice_and_nothing_is_left_out(tmp_path: Path) -> None:
    path, log = tmp_path / "p.db", tmp_path / "log"
    with measuring(path, log) as first, measuring(path, log) as second:
        begin(first)
        begin(second)
        assert (first.wait(), second.wait()) == (0, 0)
    lines = [line.split(" ", 1)[1] for line in logged(log)]
    assert len(rows(path)) == TOTAL == len(lines)
    # Both families have shards of the same extents: each is there twice, an update once.
    assert set(Counter(line for line in lines if line.startswith("linear")).values()) == {2}


def test_two_processes_measure_every_round_once(tmp_path: Path) -> None:
    path, log = tmp_path / "p.db", tmp_path / "log"
    with measuring(path, log, rounds=2) as first, measuring(path, log, rounds=2) as second:
        begin(first)
        begin(second)
        assert (first.wait(), second.wait()) == (0, 0)
    assert len(logged(log)) == 2 * TOTAL
    assert [row.rounds for row in rows(path)] == [2] * TOTAL


def test_what_one_process_is_measuring_the_other_leaves_alone_until_it_dies(tmp_path: Path) -> None:
    path, log = tmp_path / "p.db", tmp_path / "log"
    with measuring(path, log, most=5) as first, measuring(path, log) as second:
        begin(first)
        assert line_of(first) == "stalled"
        assert len(rows(path)) == 5
        begin(second)
        while len(rows(path)) < TOTAL - 1:
            assert second.poll() is None
            time.sleep(0.001)
        # All is there but what the first holds on to.
        assert second.poll() is None
        first.kill()
        assert second.wait() == 0
    assert len(rows(path)) == TOTAL == len(logged(log))


def test_a_process_that_is_killed_loses_nothing_it_measured_and_the_next_goes_on(tmp_path: Path) -> None:
    path, log = tmp_path / "p.db", tmp_path / "log"
    for number in (1, 2, 3):
        with measuring(path, log, most=7) as process:
            begin(process)
            assert line_of(process) == "stalled"
            process.kill()
        assert len(rows(path)) == 7 * number == len(logged(log))
    with measuring(path, log) as process:
        begin(process)
        assert process.wait() == 0
    assert len(rows(path)) == TOTAL == len(logged(log))


def test_a_process_killed_at_any_moment_loses_at_most_what_it_was_measuring(tmp_path: Path) -> None:
    path, log = tmp_path / "p.db", tmp_path / "log"
    for kills, wait_s in enumerate((0.0, 0.003, 0.011, 0.029), start=1):
        with measuring(path, log) as process:
            begin(process)
            time.sleep(wait_s)
            process.kill()
        assert len(logged(log)) - kills <= (len(rows(path)) if path.exists() else 0) <= len(logged(log))
    with measuring(path, log) as process:
        begin(process)
        assert process.wait() == 0
    assert len(rows(path)) == TOTAL


def test_a_claim_ends_with_the_process_that_has_it(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    script = (
        "import sys, time; from pathlib import Path; from soaprl.cost.profiled.claims import Claims\n"
        f"claims = Claims(Path({str(path)!r}))\n"
        "print(claims.take('it'), flush=True)\n"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdin is not None  # noqa: PT018
    assert holder.stdout.readline() == b"True\n"
    with Claims(path) as claims:
        assert not claims.take("it")
        assert claims.take("something else")
        holder.kill()
        holder.wait()
        assert claims.take("it")
    holder.stdin.close()
    holder.stdout.close()


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    path.write_text("times: many\n" * 100)
    with pytest.raises(CostError, match="damaged or none of SQLite's"):
        Profile(path, create=True)
    assert path.read_text() == "times: many\n" * 100


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE measurements (what TEXT)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(CostError, match="database of another program"):
        Profile(path, create=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("version", "age"), [(VERSION + 1, "a newer"), (VERSION - 1, "an older")])
def test_a_profile_of_another_version_says_which_soaprl_made_it(
    tmp_path: Path, version: int, age: str
) -> None:
    path = tmp_path / "p.db"
    Profile(path, create=True).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    with pytest.raises(CostError, match=f"made by {age} soaprl"):
        Profile(path)


def test_a_time_that_was_changed_behind_its_back_is_an_error_and_never_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with Profile(path, create=True) as profile:
        profile.put(SETTING, ROW)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE measurements SET forward_s = 1e-9")
    connection.close()
    with Profile(path) as profile, pytest.raises(CostError, match="checksum"):
        profile.all(SETTING)


def test_a_truncated_profile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with Profile(path, create=True) as profile:
        for k in range(400):
            profile.put(SETTING, Measured(family=f"f{k}", extents=(k,), kind="linear", times=ROW.times))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CostError, match="damaged"), Profile(path) as profile:
        profile.all(SETTING)


def test_a_profile_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(CostError, match="soaprl profile MODEL"):
        Profile(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
