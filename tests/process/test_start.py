"""Starting: the ready line, the settings, and whom and what the server refuses, in words that help."""

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kvactor import __version__
from kvactor.settings import Settings, table
from kvactor.tools.bench.preload import preload
from tests.process.clients import Client
from tests.process.conftest import Start
from tests.process.contents import contents
from tests.process.servers import PATIENCE, environment, refusal, run
from tests.test_settings import LINKS

SCRIPTS = Path(__file__).parents[2] / "scripts"

# -- the ready line --


def test_the_ready_line_is_one_line_with_address_directory_and_recovered_revision(
    start: Start, data_dir: Path
) -> None:
    server = start()
    with Client(server) as client:
        assert client.set("key", "value").revision == 1
    assert server.stop() == 0
    again = start()
    address = f"http://127.0.0.1:{again.port}"
    assert again.ready_line == (
        f"kvactor {__version__} ready at {address}, data in {data_dir}, revision 1\n"
    )
    with Client(again) as client:
        assert client.get("key").body == {"key": "key", "value": "value"}
    assert again.stop() == 0
    assert again.rest_of_output() == ""


def test_a_server_in_memory_leaves_no_files(start: Start, tmp_path: Path) -> None:
    server = start("--memory")
    assert server.where == "data in memory"
    with Client(server) as client:
        assert client.set("key", "value").status == 200
        assert client.get("key").status == 200
    assert server.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_server_in_memory_warns_that_it_does_not_use_a_directory(
    start: Start, tmp_path: Path
) -> None:
    server = start("--memory", "--data-dir", "mine")
    server.wait_for_log("data_dir is mine, and not used: memory is set")
    assert server.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_listens_beyond_this_machine_warns_that_there_is_no_authentication(
    start: Start,
) -> None:
    server = start("--host", "0.0.0.0")  # noqa: S104 (that is what the warning is about)
    server.wait_for_log("there is no authentication")


# -- settings --


def test_settings_come_from_the_environment_and_flags_win(start: Start, tmp_path: Path) -> None:
    environ = {"KVACTOR_MAX_KEY_SIZE": "3", "KVACTOR_MAX_VALUE_SIZE": "5", "KVACTOR_PORT": "1"}
    server = start("--max-value-size", "4", environ=environ)
    with Client(server) as client:
        assert client.set("key", 1234).status == 200
        assert client.set("keys", 1234).status == 400
        assert client.set("key", 12345).status == 413


@pytest.mark.parametrize("command", [(), ("serve",)], ids=["kvactor", "kvactor serve"])
def test_help_shows_the_flag_and_the_variable_of_every_setting(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    ended = run(*command, "--help", cwd=tmp_path)
    assert (ended.status, ended.log) == (0, "")
    words = set(re.findall(r"[-\w]+", ended.out))
    rows = list(table())
    assert rows
    assert {row.flag for row in rows} | {row.variable for row in rows} <= words
    assert ended.out.splitlines()[0] == "usage: kvactor [serve] [settings]"


@pytest.mark.parametrize("command", [(), ("serve",)], ids=["kvactor", "kvactor serve"])
@pytest.mark.parametrize(
    ("mistyped", "sentence"),
    [
        (("--prot", "5001"), "--prot is no flag of kvactor. Did you mean --port?"),
        (("--prot=5001",), "--prot is no flag of kvactor. Did you mean --port?"),
        (("-port", "5001"), "-port is no flag of kvactor. Did you mean --port?"),
        (("--data", "mine"), "--data is no flag of kvactor. Did you mean --data-dir?"),
        (("--colour",), "--colour is no flag of kvactor."),
    ],
)
def test_a_mistyped_flag_is_refused_in_one_line_that_names_the_one_that_was_meant(
    tmp_path: Path, command: tuple[str, ...], mistyped: tuple[str, ...], sentence: str
) -> None:
    ended = run(*command, *mistyped, cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert ended.log == f"kvactor: {sentence} 'kvactor --help' lists them.\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("start",), ("5001",), ("--port",), ("serve", "serve")])
def test_any_other_wrong_usage_is_refused_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    ended = run(*arguments, cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert re.fullmatch(r"kvactor: .+ 'kvactor --help' says more\.\n", ended.log)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--port", "70000"), ("--log-level", "loud")],
)
def test_a_wrong_value_of_a_flag_is_refused_with_the_flag_and_the_value(
    tmp_path: Path, flag: str, value: str
) -> None:
    ended = run("serve", f"{flag}={value}", cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert f"{flag}={value}" in ended.log
    assert "Traceback" not in ended.log
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [("KVACTOR_MEMORY", "perhaps"), ("KVACTOR_PROT", "5000")],
)
def test_a_wrong_variable_is_refused_with_its_name(tmp_path: Path, variable: str, value: str) -> None:
    ended = run(cwd=tmp_path, environ={variable: value})
    assert (ended.status, ended.out) == (2, "")
    assert variable in ended.log
    assert "Traceback" not in ended.log
    assert list(tmp_path.iterdir()) == []


def test_a_server_beside_a_kubernetes_service_of_its_name_starts_and_warns(start: Start) -> None:
    server = start(environ=LINKS)
    ignored = re.findall(r"WARNING kvactor\.cli: (\S+) is ignored: Kubernetes", server.log)
    assert ignored == [f"{name}={text}" for name, text in LINKS.items()]


# -- the tools --


def test_help_lists_the_commands(tmp_path: Path) -> None:
    ended = run("--help", cwd=tmp_path)
    assert re.findall(r"^    (\w+) +\w", ended.out, re.MULTILINE) == ["serve", "bench", "stress"]


@pytest.mark.parametrize(
    ("tool", "flag"), [("bench", "--generator"), ("stress", "--faults")], ids=["bench", "stress"]
)
def test_a_tool_has_flags_and_help_of_its_own(tmp_path: Path, tool: str, flag: str) -> None:
    ended = run(tool, "--help", cwd=tmp_path)
    assert (ended.status, ended.log) == (0, "")
    assert flag in ended.out
    assert "--data-dir" not in ended.out
    refused = run(tool, "--colour", cwd=tmp_path)
    assert (refused.status, refused.out) == (2, "")
    assert "--colour" in refused.log


def test_stress_runs_against_the_server_that_its_url_names(start: Start, tmp_path: Path) -> None:
    server = start()
    url = f"http://127.0.0.1:{server.port}"
    ended = run("stress", url, "--clients", "2", "--operations", "50", cwd=tmp_path)
    assert ended.out.splitlines()[-1].startswith("strictly serializable: "), ended.out + ended.log
    assert ended.status == 0
    with Client(server) as client:
        assert client.get("any").revision > 0


def test_a_tool_behind_a_setting_is_refused(tmp_path: Path) -> None:
    ended = run("--memory", "bench", cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert ended.log == "kvactor: 'bench' comes first, and takes no settings of the server.\n"


#: A command in an environment without the packages of the tools.
WITHOUT_A_PACKAGE = """
import sys
from kvactor.cli import main

sys.modules["httptools"] = None
sys.exit(main())
"""


@pytest.mark.parametrize("tool", ["bench", "stress"])
def test_a_tool_without_a_package_that_it_needs_names_the_package(tmp_path: Path, tool: str) -> None:
    ended = run(tool, cwd=tmp_path, program=("-c", WITHOUT_A_PACKAGE))
    assert (ended.status, ended.out) == (2, "")
    assert ended.log == (
        f"kvactor: 'kvactor {tool}' needs the package httptools, which is not installed. "
        "Install it with: pip install httptools.\n"
    )


#: A command that is interrupted while its modules are being imported.
INTERRUPTED = """
import sys
from kvactor.__main__ import main

class Interrupt:
    def find_spec(self, name, *_):
        if name == "lmdb":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
sys.exit(main())
"""


def test_an_interrupt_during_the_imports_ends_the_command_in_one_line(tmp_path: Path) -> None:
    ended = run(cwd=tmp_path, program=("-c", INTERRUPTED))
    assert (ended.status, ended.out, ended.log) == (130, "", "kvactor: interrupted\n")


#: A server that says at its end which tools it has loaded.
LOADED = """
import sys
from kvactor.cli import main

status = main()
print([name for name in sys.modules if name.startswith("kvactor.tools")])
sys.exit(status)
"""


def test_a_server_does_not_load_the_tools(start: Start) -> None:
    server = start("--memory", program=("-c", LOADED))
    assert server.stop() == 0
    assert server.rest_of_output() == "[]\n"


# -- refusals, and none without a reason --


def test_a_directory_is_opened_again_however_often_it_was_filled_and_trimmed(
    data_dir: Path,
) -> None:
    for number in range(1, 21):
        preload(data_dir, 100, Settings(history=0))
        assert contents(data_dir).revision == number * 100


def test_a_second_server_on_a_directory_is_refused_with_the_holder_and_what_to_do(
    start: Start, tmp_path: Path, data_dir: Path
) -> None:
    server = start()
    said = refusal(tmp_path, data_dir)
    assert f"{data_dir} is in use by process {server.pid}" in said
    assert "Stop that server first, or choose another directory with --data-dir" in said
    with Client(server) as client:
        assert client.set("key", "value").status == 200
    server.kill()
    assert start().revision == 1, "the lock has outlived its holder"


def test_a_directory_of_a_newer_format_is_refused_and_left_alone(
    tmp_path: Path, data_dir: Path
) -> None:
    preload(data_dir, 1)
    (data_dir / "FORMAT").write_text("kvactor 3\n")
    before = (data_dir / "journal" / "data.mdb").read_bytes()
    said = refusal(tmp_path, data_dir)
    assert "has format 3" in said
    assert "Start it with a newer kvactor" in said
    assert (data_dir / "FORMAT").read_text() == "kvactor 3\n"
    assert (data_dir / "journal" / "data.mdb").read_bytes() == before


def test_a_directory_with_data_but_no_format_is_refused(tmp_path: Path, data_dir: Path) -> None:
    (data_dir / "journal").mkdir(parents=True)
    assert "no FORMAT file" in refusal(tmp_path, data_dir)
    assert not (data_dir / "FORMAT").exists()


def test_a_directory_of_somebody_elses_is_refused(tmp_path: Path, data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "FORMAT").write_text("something else\n")
    assert "is not a FORMAT file of kvactor's" in refusal(tmp_path, data_dir)


@pytest.mark.parametrize("path", ["file", "file/data"])
def test_a_file_in_the_place_of_the_directory_is_refused_as_such(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    assert refusal(tmp_path, tmp_path / path) == (
        f"kvactor: Cannot use the data directory {tmp_path / path}: {tmp_path / 'file'} is a file "
        "and not a directory. Choose another directory with --data-dir.\n"
    )


def test_a_port_in_use_is_refused_and_the_directory_left_in_order(
    tmp_path: Path, data_dir: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refusal(tmp_path, data_dir, "--port", str(port))
    assert f"Cannot listen on port {port} of 127.0.0.1: address already in use." in said
    assert "--port" in said
    assert contents(data_dir) == ({}, 0, 0)


@pytest.mark.parametrize("host", ["nosuch.invalid", "no..such"])
def test_a_host_that_is_none_is_refused_with_its_name(
    tmp_path: Path, data_dir: Path, host: str
) -> None:
    said = refusal(tmp_path, data_dir, "--host", host)
    assert f"Cannot listen on port 0 of {host}: " in said
    assert "--host" in said


# -- the script --


def test_the_script_serves_in_the_folder_that_it_is_called_from(tmp_path: Path) -> None:
    repository, here = tmp_path / "repository", tmp_path / "here"
    shutil.copytree(SCRIPTS, repository / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        (repository / name).touch()
    python = repository / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # In place of an installed one: says in which folder it would run kvactor, and with what.
    python.write_text('#!/bin/sh\ncase "$*" in *kvactor*) echo "$PWD: $*" ;; esac\n')
    python.chmod(0o755)
    here.mkdir()
    said = subprocess.run(
        ["../repository/scripts/serve", "--data-dir", "a folder"],
        cwd=here,
        env=environment({"PYTHON": sys.executable}),
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=True,
    ).stdout
    assert said == f"{here}: -P -m kvactor serve --data-dir a folder\n"
