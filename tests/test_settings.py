import re
from pathlib import Path

import pytest

from kvactor.cli import parser
from kvactor.settings import Settings, load, service_links, table

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default() -> None:
    assert load({}, {}) == Settings()
    assert load({"KVACTOR_PORT": "1"}, {}).port == 1
    assert load({"KVACTOR_PORT": "1"}, {"port": "2"}).port == 2


@pytest.mark.parametrize("setting", list(table()), ids=lambda setting: setting.name)
def test_every_setting_has_help_a_default_a_flag_and_a_line_in_the_readme(setting: object) -> None:
    row = next(one for one in table() if one == setting)
    assert row.help
    assert row.default == getattr(Settings(), row.name)
    assert re.search(rf"\| `{row.name}` +\|.*{re.escape(row.help)}", README), (
        f"README.md has no line for {row.name}"
    )
    shown = re.sub(r"\s+", " ", parser().format_help())
    assert row.flag in shown
    assert row.variable in shown


@pytest.mark.parametrize(
    ("environ", "flags", "sentence"),
    [
        ({"KVACTOR_PORT": "65536"}, {}, "KVACTOR_PORT=65536: port is at most 65535."),
        ({}, {"port": "-1"}, "--port=-1: port is at least 0."),
        ({}, {"map_size": str(1 << 70)}, f"--map-size={1 << 70}: map_size is at most {1 << 45}."),
        ({}, {"port": "x"}, "--port=x: 'x' is not a whole number."),
        ({}, {"port": "1.5"}, "--port=1.5: '1.5' is not a whole number."),
        (
            {},
            {"min_free_space": "100M"},
            "--min-free-space=100M: '100M' is not a whole number of bytes; it takes no suffix.",
        ),
        ({}, {"port": ""}, "--port=: '' is not a whole number."),
        (
            {},
            {"log_level": "loud"},
            "--log-level=loud: log_level is one of debug, info, warning, error.",
        ),
        ({"KVACTOR_MEMORY": "maybe"}, {}, "KVACTOR_MEMORY=maybe: memory is one of true, false."),
        ({"KVACTOR_BODY_TIMEOUT": "soon"}, {}, "KVACTOR_BODY_TIMEOUT=soon: 'soon' is not a number."),
        (
            {"KVACTOR_BODY_TIMEOUT": "inf"},
            {},
            "KVACTOR_BODY_TIMEOUT=inf: body_timeout is at most 31536000.",
        ),
        ({"KVACTOR_BODY_TIMEOUT": "nan"}, {}, "KVACTOR_BODY_TIMEOUT=nan: body_timeout is more than 0."),
        ({}, {"body_timeout": "0"}, "--body-timeout=0: body_timeout is more than 0."),
        (
            {"KVACTOR_PROT": "1"},
            {},
            (
                "KVACTOR_PROT names no setting of kvactor. Did you mean KVACTOR_PORT? "
                "'kvactor --help' lists them."
            ),
        ),
        (
            {"KVACTOR_COLOUR": "1"},
            {},
            "KVACTOR_COLOUR names no setting of kvactor. 'kvactor --help' lists them.",
        ),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name_and_what_would_be_right(
    environ: dict[str, str], flags: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        load(environ, flags)


def test_variables_without_the_prefix_are_ignored() -> None:
    assert load({"PATH": "/bin", "KVACTORY": "1"}, {}) == Settings()


#: In every pod beside a Service named kvactor, with a named and an unnamed port.
LINKS = {
    "KVACTOR_SERVICE_HOST": "10.0.0.1",
    "KVACTOR_SERVICE_PORT": "5000",
    "KVACTOR_SERVICE_PORT_HTTP": "5000",
    "KVACTOR_PORT": "tcp://10.0.0.1:5000",
    "KVACTOR_PORT_5000_TCP": "tcp://10.0.0.1:5000",
    "KVACTOR_PORT_5000_TCP_PROTO": "tcp",
    "KVACTOR_PORT_5000_TCP_PORT": "5000",
    "KVACTOR_PORT_5000_TCP_ADDR": "10.0.0.1",
}


@pytest.mark.parametrize(("name", "text"), LINKS.items())
def test_a_variable_that_kubernetes_sets_for_a_service_is_passed_over_and_named(
    name: str, text: str
) -> None:
    other = {name.replace("KVACTOR_", "KVACTOR_METRICS_"): text.replace("10.0.0.1", "fd00::1")}
    for environ in ({name: text}, other):
        assert load(environ | {"KVACTOR_HISTORY": "7"}, {}) == Settings(history=7)
        assert service_links(environ | {"KVACTOR_HISTORY": "7"}) == list(environ)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KVACTOR_PORT", "10.0.0.1:5000"),
        ("KVACTOR_PORT", "tcp://10.0.0.1"),
        ("KVACTOR_HOST", "tcp://10.0.0.1:5000x"),
        ("KVACTOR_SERVICE_HOST", "example"),
        ("KVACTOR_SERVICE_PORT", "http"),
        ("KVACTOR_SERVICE_PROT", "5000"),
        ("KVACTOR_PORT_TCP", "tcp://10.0.0.1:5000"),
        ("KVACTOR_PORT_5000_TCP_HOST", "10.0.0.1"),
        ("KVACTORSERVICE_PORT", "5000"),
    ],
)
def test_a_variable_of_another_shape_is_not_taken_for_one_of_kubernetes(name: str, text: str) -> None:
    assert service_links({name: text}) == []


def test_an_unknown_variable_beside_those_of_kubernetes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^KVACTOR_PROT names no setting of kvactor"):
        load(LINKS | {"KVACTOR_PROT": "1"}, {})
