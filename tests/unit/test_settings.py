"""Settings: checked together, and every problem told at once."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from daemon import settings as table
from daemon import settings_file
from daemon.errors import ConfigError
from daemon.settings import Settings


def problems_of(**values: object) -> list[str]:
    """The lines of the refusal."""
    with pytest.raises(ConfigError) as caught:
        table.parse(values, dict.fromkeys(values, "flag"))
    return str(caught.value).splitlines()


def test_the_defaults_are_valid_and_describe_a_bank() -> None:
    settings = table.parse({}, {})
    spec = settings.bank_spec()
    assert (spec.architecture, spec.input_shape, spec.outputs, spec.budget) == ("lenet-300-100", (28, 28), 500, 2500)
    learner = settings.learner()
    assert learner.rule.rule == settings.rule
    assert learner.optimiser.name == "adam"


def test_every_setting_has_a_sentence_of_help() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().classes = 3


def test_every_setting_reaches_the_learner() -> None:
    settings = Settings(
        rule="exact", epsilon=0.5, objective="G", decision_rows=7, tolerance=3.0, margin=0.3, decision_every=9,
        detector="adwin", optimiser="sgd", learning_rate=0.25, precision="bfloat16", over_budget="evict", hot_masks=3,
        max_streams=5, transfer=True,
    )  # fmt: skip
    learner = settings.learner()
    rule = learner.rule
    assert (rule.rule, rule.epsilon, rule.objective, rule.rows) == ("exact", 0.5, "G", 7)
    assert (rule.agreement.tolerance, rule.agreement.margin) == (3.0, 0.3)
    assert (learner.decision_every, learner.detector, learner.over_budget) == (9, "adwin", "evict")
    assert (learner.precision, learner.hot_masks, learner.max_streams) == ("bfloat16", 3, 5)
    assert learner.transfer
    assert (learner.optimiser.name, learner.optimiser.learning_rate) == ("sgd", 0.25)


def test_every_setting_of_a_bank_reaches_its_spec() -> None:
    settings = Settings(
        arch="mlp-5-4", input_shape="3x2", classes=3, outputs=6, seed=11, weight_init="kaiming-normal",
        variant="threshold", keep_fraction=0.25, edges_per_channel=3, budget=12, mean=0.5, std=2.0,
    )  # fmt: skip
    assert settings.bank_spec().to_text() == {
        "architecture": "mlp-5-4",
        "input_shape": "3x2",
        "classes": "3",
        "outputs": "6",
        "weight_seed": "11",
        "weight_init": "kaiming-normal",
        "variant": "threshold",
        "keep_fraction": "0.25",
        "edges_per_channel": "3",
        "budget": "12",
        "mean": "0.5",
        "std": "2.0",
        "schema": "1",
    }


def test_all_problems_are_told_at_once_each_with_its_flag_origin_and_value() -> None:
    lines = problems_of(classes="ten", budget="0", std="-1", rule="best", input_shape="28xx28", topic="a b")
    assert len(lines) == 6
    for flag, told in (
        ("--classes", "got 'ten'"),
        ("--budget", "greater than or equal to 1; got '0'"),
        ("--std", "greater than 0; got '-1'"),
        ("--rule", "'loss', 'exact', 'one-shot' or 'paper'; got 'best'"),
        ("--input-shape", "got '28xx28'"),
        ("--topic", "'a b' is no topic"),
    ):
        [line] = [line for line in lines if line.startswith(f"{flag} (flag): ")]
        assert told in line


def test_problems_found_before_are_told_with_the_others() -> None:
    with pytest.raises(ConfigError, match=r"^unknown something\n--classes \(default\): "):
        table.parse({"classes": 1}, {}, ["unknown something"])
    with pytest.raises(ConfigError, match=r"^unknown something$"):
        table.parse({}, {}, ["unknown something"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a:1", ("a:1",)),
        ("a:1, b:2 ,", ("a:1", "b:2")),
        (["a:1,b:2", "c:3"], ("a:1", "b:2", "c:3")),
        ("[::1]:9092", ("[::1]:9092",)),
    ],
)
def test_kafka_servers_come_as_a_list_in_any_form(given: object, expected: tuple[str, ...]) -> None:
    assert table.parse({"kafka": given}, {}).kafka == expected


@pytest.mark.parametrize("given", ["a", "a:b", "a:0", "a:65536", "http://a:1", "a b:1", "::1:9092", "user@a:1"])
def test_what_is_no_server_is_called_so(given: str) -> None:
    [line] = problems_of(kafka=f"ok:1,{given}")
    assert f"{given!r} is no Kafka server: write HOST:PORT" in line


@pytest.mark.parametrize("given", ["", [], ","])
def test_no_server_at_all_is_refused(given: object) -> None:
    [line] = problems_of(kafka=given)
    assert "at least 1 item" in line


@pytest.mark.parametrize("given", ["a/b", "a b", "ä", ".", "..", "x" * 231])
def test_what_kafka_would_not_take_as_a_topic_is_refused(given: str) -> None:
    [line] = problems_of(topic=[given])
    assert "is no topic" in line


@pytest.mark.parametrize("given", ["28x28", "28,28", "28X28", (28, 28), [28, 28]])
def test_a_shape_comes_in_any_form(given: object) -> None:
    assert table.parse({"input_shape": given}, {}).input_shape == (28, 28)


@pytest.mark.parametrize("given", ["", "0x3", "axb", "1x1x1x1x1", "-3"])
def test_what_is_no_shape_is_refused(given: str) -> None:
    [line] = problems_of(input_shape=given)
    assert line.startswith("--input-shape")


@pytest.mark.parametrize("given", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["mean", "std", "epsilon", "tolerance", "learning_rate"])
def test_numbers_that_are_none_are_refused(name: str, given: str) -> None:
    assert len(problems_of(**{name: given})) == 1


def test_an_empty_learning_rate_is_the_optimisers_own() -> None:
    assert table.parse({"learning_rate": ""}, {}).learning_rate is None


def test_settings_that_contradict_each_other_are_told() -> None:
    with pytest.raises(ConfigError, match=r"outputs \(5\) must not be fewer than classes \(10\)"):
        Settings(outputs=5).bank_spec()


# -- files and environment


def test_a_file_is_flat_toml_with_either_kind_of_dash(tmp_path: Path) -> None:
    path = tmp_path / "supsup.toml"
    path.write_text('input-shape = [8, 8]\nmax_rows = 3\ntopic = ["a", "b"]\n')
    assert settings_file.read_file(path) == {"input_shape": [8, 8], "max_rows": 3, "topic": ["a", "b"]}


@pytest.mark.parametrize("content", [b"= 3", b"\xff\xfe", b"a = 1\na = 2\n", None])
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "supsup.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read the settings file .*supsup\.toml"):
        settings_file.read_file(path)


@pytest.mark.parametrize(
    "content",
    ["embedded = {a = 2}", "[topic]", "budget = 0xffffffffffffffffff", "kafka = [['a']]", "bank = 1979-05-27"],
)
def test_a_file_with_a_value_that_no_setting_has_is_told_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "supsup.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"supsup\.toml: '(embedded|topic|budget|kafka|bank)' is no text, number, "):
        settings_file.read_file(path)


@pytest.mark.parametrize("content", ["a = " + "[" * 5000, "a = " + "1" * 5000])
def test_a_file_that_overtaxes_the_parser_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "supsup.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"cannot read the settings file .*supsup\.toml"):
        settings_file.read_file(path)


@pytest.mark.parametrize("given", [[], [1, 1, 1, 1, 1]])
def test_a_shape_as_a_list_has_as_many_dimensions_as_one_as_text(given: list[int]) -> None:
    [line] = problems_of(input_shape=given)
    assert line.startswith("--input-shape")


def test_unknown_keys_come_with_the_nearest_name() -> None:
    assert table.unknown_keys(Path("f.toml"), ["classes", "clases", "zzz"]) == [
        "f.toml: unknown key 'clases'; did you mean classes?",
        "f.toml: unknown key 'zzz'",
    ]


def test_unknown_variables_come_with_the_nearest_name() -> None:
    environment = {
        "SUPSUP_TOPICS": "a",
        "SUPSUP_KAFKA": "k:1",
        "SUPSUP_DATA_DIR": "/",
        "HOME": "/",
        "SUPSUP_QQQQQQQQ": "",
    }
    assert table.unknown_variables(environment) == [
        "unknown variable SUPSUP_QQQQQQQQ",
        "unknown variable SUPSUP_TOPICS; did you mean SUPSUP_TOPIC?",
    ]
    with pytest.raises(ConfigError, match="did you mean SUPSUP_TOPIC"):
        table.check_environment(environment)
    table.check_environment({"SUPSUP_CONFIG": "x", "PATH": "y"})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:1/0", "redis://host:1/0"),
        ("redis://:p@ss@host/0", "redis://host/0"),
        ("redis://host:1/0", "redis://host:1/0"),
        ("host", "host"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert table.without_password(url) == shown


def test_a_name_of_endless_dots_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    file = tmp_path / "supsup.toml"
    file.write_text('bank = "a.b" # ' + "." * 99 + '\nredis = "redis://' + "a." * 40 + 'b:1/0"\n')
    assert settings_file.read_file(file)["bank"] == "a.b"
    file.write_text("a" + ".a" * 2400 + "=1")
    with pytest.raises(ConfigError, match="line 1 has more than 32 dots outside of texts"):
        settings_file.read_file(file)
