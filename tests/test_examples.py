"""Every example of README.md and docs/ runs, in order, and prints what is written below it."""

from contextlib import closing
from pathlib import Path

import pytest

from tests.examples import ADDRESS, DOCUMENTS, ROOT, Block, Example, Shell, blocks, examples, flags
from tests.process.servers import Server

#: Kinds of blocks that are not sessions: to install and to start it, for a browser, for Prometheus.
NOT_RUN = {"sh", "js", "python", "yaml"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_of_a_document_print_what_it_says(document: Path, tmp_path: Path) -> None:
    text = document.read_text()
    (tmp_path / "shell").mkdir()
    arguments = ["--data-dir", str(tmp_path / "data"), *flags(text)]
    with (
        closing(Server(arguments, tmp_path)) as server,
        closing(Shell(tmp_path / "shell")) as shell,
    ):
        for block in blocks(text):
            for example in examples(block) if block.kind == "console" else ():
                command = ADDRESS.sub(f"127.0.0.1:{server.port}", example.command)
                printed = shell.run(example._replace(command=command))
                assert example.is_printed_by(printed), (
                    f"{document.name}:{example.line}: $ {example.command}\n"
                    f"-- it should print\n{example.output}\n-- it prints\n{printed}"
                )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_block_with_a_request_to_the_server_is_an_example_that_is_run(document: Path) -> None:
    for block in blocks(document.read_text()):
        if block.kind != "console":
            assert block.kind in NOT_RUN, f"{document.name}:{block.line}"
            assert "curl" not in block.text, f"{document.name}:{block.line}"


def test_every_fence_begins_or_ends_a_block() -> None:
    for document in DOCUMENTS:
        text = document.read_text()
        fences = [line for line in text.splitlines() if line.lstrip().startswith("```")]
        assert len(fences) == 2 * len(list(blocks(text))), document.name


# -- the notation --


def test_a_comment_at_the_top_has_the_flags_of_the_server() -> None:
    assert flags("<!-- kvactor serve --history 0 -->\n\n# Title\n") == ["--history", "0"]
    assert flags("# Title\n") == []


@pytest.mark.parametrize(
    ("output", "printed", "matches"),
    [
        ("one", "one", True),
        ("one", "one\n", True),
        ("one", "two", False),
        ("one", "one\ntwo", False),
        ("", "", True),
        ("", "one", False),
        ('{"a":"..."}', '{"a":"b"}', True),
        ('{"a":"..."}', '{"a":"b"', False),
        ("o.e", "one", False),
        ("one\n...\nfour", "one\r\ntwo\r\nthree\r\n\r\nfour", True),
        ("one\n...\nfour", "one\nfour", True),
        ("one\n...", "one", True),
        ("one\n...\nfour", "one\ntwo", False),
        ("one\n...\nfour", "two\nfour", False),
        ("one\n\n^C", "one\n\n", True),
    ],
)
def test_dots_match_varying_output_and_nothing_else(output: str, printed: str, matches: bool) -> None:
    assert Example(1, "true", output).is_printed_by(printed) is matches


def test_a_session_is_split_into_commands_and_their_output() -> None:
    text = "$ one\nthis\n\nthat\n$ two \\\n>   more\n$ three\n"
    assert list(examples(Block(1, "console", text))) == [
        Example(2, "one", "this\n\nthat"),
        Example(6, "two \\\n  more", ""),
        Example(8, "three", ""),
    ]


@pytest.mark.parametrize("text", ["", "output\n", "curl localhost\n$ one\n"])
def test_a_session_in_which_a_line_belongs_to_no_command_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="command"):
        list(examples(Block(1, "console", text)))


def test_the_shell_keeps_variables_waits_and_says_what_has_failed(tmp_path: Path) -> None:
    with closing(Shell(tmp_path)) as shell:
        assert shell.run(Example(1, "one='a b'", "")) == ""
        assert shell.run(Example(2, 'echo "$one"; echo c >&2', "")) == "a b\nc\n"
        assert shell.run(Example(3, "tail -n +1 -f .curlrc", "silent\n...\n^C")).startswith("silent\n")
        with pytest.raises(RuntimeError, match="exit status 3\ntext"):
            shell.run(Example(4, "echo text; (exit 3)", ""))
        with pytest.raises(RuntimeError, match="bash has ended"):
            shell.run(Example(5, "exit", ""))
