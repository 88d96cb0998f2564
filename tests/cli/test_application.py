import signal
import subprocess
import sys

import pytest

from soaprl.cli import application, run


@pytest.fixture
def broken_command(monkeypatch: pytest.MonkeyPatch) -> str:
    """A subcommand with a fault of our own."""
    commands = list(application.app.registered_commands)
    monkeypatch.setattr(application.app, "registered_commands", commands)

    @application.app.command("broken")
    def broken() -> None:
        raise AssertionError("tasks are sorted")

    return "broken"


def test_our_fault_is_exit_code_1_with_a_short_plea_to_report_it(
    capsys: pytest.CaptureFixture[str], broken_command: str
) -> None:
    assert run([broken_command]) == 1
    message = capsys.readouterr().err
    assert "AssertionError: tasks are sorted" in message
    assert "SOAPRL_TRACEBACK=1" in message
    assert "Traceback" not in message


def test_a_variable_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], broken_command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOAPRL_TRACEBACK", "1")
    assert run([broken_command]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_process_exits_with_the_code_and_keeps_its_streams_apart() -> None:
    command = [sys.executable, "-m", "soaprl", "simulate", "nmt", "--cluster", "nowhere-1x1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("soaprl: error: unknown cluster kind 'nowhere'")
    assert len(done.stderr.splitlines()) == 1


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    run([])
    assert "simulate" in capsys.readouterr().out


def test_an_error_after_an_interrupt_is_the_interrupt(
    capsys: pytest.CaptureFixture[str], broken_command: str
) -> None:
    assert run([broken_command], interrupts=[signal.SIGINT]) == 130
    assert capsys.readouterr().err == "soaprl: interrupted\n"


STUBBORN = """
import signal, sys
from soaprl.cli import application

@application.app.command("stubborn")
def stubborn(times: int) -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        for _ in range(times - 1):
            signal.raise_signal(signal.SIGINT)
        print("what was found")

sys.argv[1:] = ["stubborn", sys.argv[1]]
application.main()
"""


@pytest.mark.parametrize(
    ("times", "code", "out"), [(1, 0, "what was found\n"), (2, 0, "what was found\n"), (3, 130, "")]
)
def test_a_second_interrupt_waits_for_what_the_first_one_ended_and_a_third_does_not(
    times: int, code: int, out: str
) -> None:
    command = [sys.executable, "-c", STUBBORN, str(times)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert ("soaprl: ending; Ctrl-C once more ends it at once" in done.stderr) is (times > 1)
