"""An edit finds its one place, whatever surrounds it, and says so if there is none or more than one."""

from textwrap import dedent
from typing import Final

import pytest

from tests.mutants.edits import Edit, Refused, edited

SOURCE: Final = '''\
"""A module."""

from a import b, c


def twice(x: int) -> int:
    """Return it twice."""
    # A comment stays.
    return x + x  # So does this one.


class Box:
    """A box."""

    limit = 3

    def put(self, é: str, x: int) -> None:
        """Put it in."""
        text = f"{é}: {x}"; log(text)  # è
        if x > self.limit:
            log("full")
            raise Full(x)
        elif x == 0:
            log("""nothing
    at all
""")
        self.x = x

    def take(self) -> int:
        log("taken")
        log("taken")
        try:
            return self.x
        except AttributeError:
            return 0

    @property
    @cached
    def size(self) -> int:
        return 1

    @size.setter
    def size(self, x: int) -> None:
        log(x)


async def outer() -> None:
    def inner() -> int:
        log("inner")
        return 1

    await inner()
    log("inner")
'''


def edit(within: str, find: str, replace: str) -> str:
    """Edit the example, and return what has changed: the lines that went, and those that came."""
    text = edited(SOURCE, Edit("box.py", within, find, replace))
    before, after = SOURCE.splitlines(), text.splitlines()
    while before and after and before[0] == after[0]:
        del before[0], after[0]
    while before and after and before[-1] == after[-1]:
        del before[-1], after[-1]
    return "".join([*(f"-{line}\n" for line in before), *(f"+{line}\n" for line in after)])


def changes(text: str) -> str:
    return dedent(text).lstrip("\n")


def test_an_expression_is_replaced_where_it_stands() -> None:
    assert edit("Box.put", "x > self.limit", "x >= self.limit") == changes(
        """
        -        if x > self.limit:
        +        if x >= self.limit:
        """
    )


def test_a_statement_is_found_in_any_formatting() -> None:
    assert edit("Box.put", "log(\n  'full',\n)", 'log( "empty")') == changes(
        """
        -            log("full")
        +            log( "empty")
        """
    )


def test_columns_are_counted_in_characters_and_not_in_bytes() -> None:
    assert edit("Box.put", "log(text)", "log(é)") == changes(
        """
        -        text = f"{é}: {x}"; log(text)  # è
        +        text = f"{é}: {x}"; log(é)  # è
        """
    )


def test_an_expression_that_would_be_torn_apart_by_its_neighbours_is_refused() -> None:
    assert edit("twice", "x + x", "(x or 1)") == changes(
        """
        -    return x + x  # So does this one.
        +    return (x or 1)  # So does this one.
        """
    )
    with pytest.raises(Refused, match="does not fit"):
        edit("Box.put", "self.limit", "self.limit if x else 0 > 1")


def test_a_statement_is_replaced_and_its_comments_stay() -> None:
    assert edit("twice", "return x + x", "return x") == changes(
        """
        -    return x + x  # So does this one.
        +    return x  # So does this one.
        """
    )


def test_a_statement_is_removed_with_its_line() -> None:
    assert edit("Box.put", "self.x = x", "") == "-        self.x = x\n"


def test_a_removal_that_leaves_an_empty_block_is_refused() -> None:
    with pytest.raises(Refused, match="does not fit"):
        edit("twice", '"""Return it twice."""\nreturn x + x', "")


def test_a_run_of_statements_is_replaced() -> None:
    assert edit("Box.put", 'log("full")\nraise Full(x)', "return") == changes(
        """
        -            log("full")
        -            raise Full(x)
        +            return
        """
    )


def test_a_replacement_is_indented_as_its_place_but_for_what_is_within_a_string() -> None:
    replacement = '''
        if x:
            """One

            two
        """
            self.x = x
    '''
    assert edit("Box.put", "self.x = x", replacement) == (
        "-        self.x = x\n"
        "+        if x:\n"
        '+            """One\n'
        "+\n"
        "+    two\n"
        '+"""\n'
        "+            self.x = x\n"
    )


def test_a_string_of_several_lines_is_found_and_replaced() -> None:
    assert edit("Box.put", 'log("nothing\\n    at all\\n")', "pass") == (
        '-            log("""nothing\n-    at all\n-""")\n+            pass\n'
    )


def test_an_exception_handler_is_replaced_by_several() -> None:
    assert edit(
        "Box.take",
        "except AttributeError:\n    return 0",
        "except AttributeError:\n    return 0\nexcept Exception:\n    pass",
    ) == changes(
        """
        +        except Exception:
        +            pass
        """
    )


def test_a_nested_function_is_a_place_of_its_own() -> None:
    assert edit("outer.inner", 'log("inner")', "") == '-        log("inner")\n'


def test_a_statement_of_a_class_body_is_replaced() -> None:
    assert edit("Box", "limit = 3", "limit = 4") == "-    limit = 3\n+    limit = 4\n"


def test_an_import_is_found_in_the_module() -> None:
    assert edit("", "from a import b, c", "from a import b, c, d") == (
        "-from a import b, c\n+from a import b, c, d\n"
    )


def test_a_decorator_is_replaced_with_its_function() -> None:
    found = "@property\n@cached\ndef size(self) -> int:\n    return 1"
    assert edit("Box", found, "size = 1") == changes(
        """
        -    @property
        -    @cached
        -    def size(self) -> int:
        -        return 1
        +    size = 1
        """
    )


@pytest.mark.parametrize(
    ("within", "find", "replace", "problem"),
    [
        pytest.param("Box.put", "x < 0", "x > 0", "0 places", id="the expression is gone"),
        pytest.param("Box.put", "self.x = 1", "", "0 places", id="the statement is gone"),
        pytest.param("twice", "x", "1", "2 places", id="the expression is there twice"),
        pytest.param("Box.take", 'log("taken")', "", "2 places", id="the statement is there twice"),
        pytest.param("outer", 'log("inner")', "", "2 places", id="it is in a nested function, too"),
        pytest.param("Box.give", "self.x", "1", "0 definitions", id="the function is gone"),
        pytest.param("Boxes.put", "self.x", "1", "0 definitions", id="the class is gone"),
        pytest.param("inner", "1", "2", "0 definitions", id="the function is nested"),
        pytest.param("Box.size", "log(x)", "", "2 definitions", id="the function is defined twice"),
        pytest.param("twice", "x + x", "(x+x)", "changes nothing", id="nothing is changed"),
        pytest.param("twice", "", "pass", "finds nothing", id="nothing is looked for"),
        pytest.param("twice", "x +", "x", "no Python", id="what is looked for is no Python"),
        pytest.param("twice", "x + x", "x +", "no Python", id="what replaces it is no Python"),
        pytest.param("Box.put", "log(text)", "a()\nb()", "not fit", id="there is no room for lines"),
    ],
)
def test_an_edit_without_its_one_place_is_refused(
    within: str, find: str, replace: str, problem: str
) -> None:
    with pytest.raises(Refused, match=problem) as refused:
        edit(within, find, replace)
    assert "box.py" in str(refused.value)
    assert within in str(refused.value)
    assert repr(find) in str(refused.value)


def test_an_edit_that_is_no_python_is_refused() -> None:
    with pytest.raises(Refused, match=r"box\.py.* no Python"):
        edited("def (", Edit("box.py", "", "x", "y"))


def test_names_and_unpacked_dicts_are_ignored() -> None:
    source = "def f() -> object:\n    global a\n    return {**a, 1: b}\n"
    assert edited(source, Edit("f.py", "f", "b", "c")) == source.replace("b}", "c}")
