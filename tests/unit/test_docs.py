"""What README and docs say is true: settings, keys, fields, codes, commands and examples are held against the code."""

import ast
import itertools
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args

import click
import pytest
import trustme
import yaml
from structlog.testing import capture_logs

from daemon import bank_check, checkpoint, cli_bank, cli_doctor, connections, demo, settings
from daemon.apply import Applier
from daemon.checkpoint import COUNTERS, Checkpointer
from daemon.cli import cli
from daemon.errors import ExitCode
from daemon.findings import Finding
from daemon.observe import Observer
from daemon.records import Partition, Position, Record
from daemon.redis_keys import BankKeys
from daemon.settings import NAMES, Settings, flag, variable
from supsup_online import codec
from supsup_online.errors import BadBatchError
from supsup_online.fused_trainer import Effective, FusedTrainer
from supsup_online.network import Network
from supsup_online.optimisers import OPTIMISERS, Adam
from supsup_online.spec import BankSpec
from supsup_online.stats import MaskStats
from supsup_online.types import Action, Decision, Examined, StepResult, Why
from supsup_online.wire import RecordLimits, decode
from unit import tiny

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference"
NOT_OURS = {
    "jq",
    "git",
    "cd",
    "make",
    "python",
    "source",
    "redis-cli",
    "echo",
    "kafka-console-producer",
    "curl",
    "kafka-acls",
    "journalctl",
    "systemctl",
}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# -- reading the pages -------------------------------------------------------------------------------------------------


def section(page, heading):
    """What stands under a heading, up to the next one of its level."""
    level, _, _ = heading.partition(" ")
    _, _, rest = f"\n{page.read_text()}".partition(f"\n{heading}\n")
    assert rest, f"{page.name} has no heading {heading!r}"
    return re.split(rf"\n{level} ", rest)[0]


def rows(text):
    """Cells of all table rows but the headings."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", text + "\n", flags=re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
        found += [[cell.strip() for cell in line] for line in lines[2:]]
    return found


def named(text):
    """The first cell of each row, if it is one name in backticks."""
    return [cells[0].strip("`") for cells in rows(text) if re.fullmatch(r"`[^`]+`", cells[0])]


def blocks(page, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def prose(page):
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """The names that a link may point to, as the usual hosts make them from headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def console_lines(page):
    return [line[2:] for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]


def own_commands(page):
    """(variables set in front, arguments) of every `supsup-daemon` in the console blocks."""
    for line in console_lines(page):
        lexer = shlex.shlex(re.sub(r" \d?>\S+", "", line), posix=True, punctuation_chars="|")
        lexer.whitespace_split = True
        for is_pipe, words in itertools.groupby(lexer, key=lambda word: word == "|"):
            if not is_pipe:
                variables, (program, *arguments) = assignments(list(words))
                assert program in {"supsup-daemon", *NOT_OURS}, f"{page.name}: what is {program}?"
                if program == "supsup-daemon":
                    yield variables, arguments


def assignments(words):
    """`A=1 B=2 command --flag` -> {A: 1, B: 2}, [command, --flag]."""
    count = next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
    return dict(word.split("=", 1) for word in words[:count]), words[count:]


def leaves(group=cli, path=()):
    """(name, command) of every command, such as `masks list`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def switches(command):
    """Option string -> parameter."""
    found = [p for p in command.params if isinstance(p, click.Option)]
    return {name: p for p in found for name in (*p.opts, *p.secondary_opts)}


def returned_keys(module, function):
    """Keys of the dict that a function returns, read from its source."""
    tree = ast.parse(Path(module.__file__).read_text())
    (body,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    (result,) = [node.value for node in ast.walk(body) if isinstance(node, ast.Return)]
    return [key.value for key in result.keys]


@pytest.fixture
def readers_files(tmp_path, monkeypatch):
    """The files that the examples name, which their readers have."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("kafka-password", "publisher-password", "redis-password"):
        (tmp_path / name).write_text("secret\n")
    monkeypatch.chdir(tmp_path)


# -- settings ----------------------------------------------------------------------------------------------------------


def shown(default):
    if default is None or default == "":
        return "empty"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`{('x' if isinstance(default[0], int) else ',').join(map(str, default))}`"
    return f"`{default}`"


def test_the_settings_page_lists_every_setting_with_its_flag_variable_and_default():
    page = (REFERENCE / "settings.md").read_text().partition("## Variables that are no settings")[0]
    documented = {cells[0]: cells[1:4] for cells in rows(page)}
    expected = {}
    for name in NAMES:
        default = Settings.model_fields[name].default
        flags = f"`{flag(name)}`"
        if isinstance(default, bool):
            flags += f" / `--no-{flag(name)[2:]}`"
        expected[f"`{name}`"] = [flags, f"`{variable(name)}`", shown(default)]
    assert list(documented) == list(expected)
    assert documented == expected


def test_the_settings_page_lists_the_variables_that_are_no_settings():
    text = section(REFERENCE / "settings.md", "## Variables that are no settings")
    assert set(named(text)) == settings.OTHER_VARIABLES


@pytest.mark.parametrize(
    "name", ["rule", "objective", "detector", "optimiser", "precision", "over_budget", "variant", "weight_init"]
)
def test_the_settings_page_names_every_choice(name):
    (cells,) = [cells for cells in rows((REFERENCE / "settings.md").read_text()) if cells[0] == f"`{name}`"]
    choices = get_args(Settings.model_fields[name].annotation)
    assert choices
    assert [choice for choice in choices if f"`{choice}`" not in cells[4]] == []


def test_the_settings_page_tells_each_optimisers_own_learning_rate():
    (cells,) = [cells for cells in rows((REFERENCE / "settings.md").read_text()) if cells[0] == "`learning_rate`"]
    told = {name: float(rate) for name, rate in re.findall(r"`(\w+)` ([\d.]+)", cells[4])}
    assert told == {name: kind().learning_rate for name, kind in OPTIMISERS.items()}


# -- Redis -------------------------------------------------------------------------------------------------------------


def test_the_schema_has_every_key_and_no_other():
    keys = BankKeys("bank")
    placeholders = {"mask": ("<id>",), "stats": ("<id>",), "state": ("<id>",), "progress": ("<topic>", "<partition>")}
    builders = {
        name
        for name in vars(BankKeys)
        if not name.startswith("_") and name not in {"bank", "pattern", "progress_pattern"}
    }
    built = [getattr(keys, name) for name in builders - placeholders.keys()]
    built += [getattr(keys, name)(*words) for name, words in placeholders.items()]
    assert sorted(named(section(REFERENCE / "redis.md", "## Keys").partition("###")[0])) == sorted(built)


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("### `spec`", [*BankSpec().to_text(), "fingerprint"]),
        ("### `stats:<id>`", [*MaskStats().to_text(), "density"]),
        ("### `totals`", [*COUNTERS, "steps", "next_id"]),
        ("### `lease`", ["epoch", "owner", "since", "expires_ms", "version", "server", "commit"]),
        (
            "### `progress:<topic>:<partition>`",
            ["offset", "log", checkpoint.ANSWERS_FIELD, f"{checkpoint.STREAM_FIELD}<name>"],
        ),
    ],
)
def test_the_schema_has_every_field_and_no_other(heading, fields):
    assert sorted(named(section(REFERENCE / "redis.md", heading).partition("\n## ")[0])) == sorted(fields)


def test_the_schema_tells_what_the_state_of_a_stream_holds():
    subject = tiny.learner()
    tiny.run(subject, tiny.permuted(0, stream="s")(1))
    state = json.loads(checkpoint._stream_text(subject.streams["s"]))
    text = section(REFERENCE / "redis.md", "### `progress:<topic>:<partition>`")
    assert [name for name in state if f"`{name}`" not in text] == []


def test_the_lease_fields_are_those_of_the_code():
    source = (ROOT / "daemon" / "lua" / "lease.lua").read_text()
    written = set(re.findall(r"'(\w+)', (?:epoch|ARGV|clock|now)", source))
    assert set(named(section(REFERENCE / "redis.md", "### `lease`").partition("\n## ")[0])) == written | {
        "server",
        "version",
    }


# -- memory ------------------------------------------------------------------------------------------------------------


def test_the_memory_page_gives_the_sizes_that_the_code_gives():
    network = Network.build(BankSpec())
    trainer = FusedTrainer(network, Adam())
    hot = trainer.start(0)
    words = trainer.pack(hot)
    assert isinstance(hot.derived, Effective)
    count = network.architecture.weight_count
    in_memory = 4 * sum(vector.numel() for vector in (hot.scores, *hot.optimiser.moments, hot.derived.flat))
    in_redis = len(codec.encode_hot(network, trainer.optimiser, hot))
    sizes = {
        "P": count,
        "W": network.layout.word_count,
        "packed": words.nbytes,
        "stored": len(codec.encode_mask(network, words)),
        "hot": in_memory,
        "stored hot": in_redis,
        "weights": network.weights.numel() * 4,
        "eight hot": 8 * in_memory,
        "all masks": 2500 * words.nbytes,
        "of a step": trainer._gradient.nbytes + trainer._noted.nbytes,
        "commit": len(codec.encode_mask(network, words)) + in_redis,
    }
    page = (REFERENCE / "memory.md").read_text()
    assert {name: size for name, size in sizes.items() if f"{size:,}" not in page} == {}
    assert f"{len(codec.encode_mask(network, words)) - -(-count // 8)} + ⌈P / 8⌉" in page
    assert f"{in_redis - 12 * count} + 4 P (1 + m)" in page


# -- events and logs ---------------------------------------------------------------------------------------------------


def checkpointer(learner=None):
    store = SimpleNamespace(keys=BankKeys("bank"), epoch=1)
    return Checkpointer(store=store, learner=learner, before_commit=dict, every=1, interval_s=1.0)


def test_the_events_page_has_every_field_of_a_decision():
    subject = checkpointer()
    decision = Decision("allocate", 1, "start", "loss", candidates=(Examined(0, 1.0, 2.0, agrees=False),))
    subject.note_decision(decision, "t/0", Partition("t", 0), 0)
    text = section(REFERENCE / "events-and-logs.md", "## Events")
    (event,) = subject._events
    types = set(get_args(Action))
    assert set(named(text)) - {"commit", "import"} == (event.keys() - {"type"}) | types
    why, candidates = ([cells[1] for cells in rows(text) if cells[0] == f"`{name}`"] for name in ("why", "candidates"))
    assert [reason for reason in get_args(Why) if f"`{reason}`" not in why[0]] == []
    assert "`[id, statistic, residual, agrees]`" in candidates[0]
    assert len(json.loads(event["candidates"])[0]) == 4


def test_the_events_page_has_every_field_of_a_commit():
    *_, event = checkpointer(tiny.learner())._plan().events
    text = section(REFERENCE / "events-and-logs.md", "## Events")
    documented = {cells[1].strip("`") for cells in rows(text) if cells[0] == "`commit`"}
    assert documented == event.keys() - {"type"}


def logged():
    """Event -> (levels, keyword fields) of every call of a logger in the daemon, read from its source."""
    found = {}
    for path in (ROOT / "daemon").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(ast.Attribute(ast.Name("log" | "_log"), level), [ast.Constant(event), *_], keywords):
                    levels, fields = found.setdefault(event, (set(), set()))
                    levels.add(level)
                    fields.update(keyword.arg for keyword in keywords)
    return found


def test_the_logs_page_has_every_event_with_its_level_and_fields():
    text = section(REFERENCE / "events-and-logs.md", "## Logs")
    documented = {
        cells[0].strip("`"): ({cells[1]}, set(re.findall(r"`(\w+)`", cells[2])))
        for cells in rows(text)
        if "." in cells[0] and not cells[0].startswith("`batch.")
    }
    assert documented == logged()


RECORD = Record(Partition("t", 0), 7, b"key", b"value", (("mine", b"1"),), 1000)


def test_the_logs_page_has_every_field_of_a_batch():
    decision = Decision("allocate", 1, "start", "loss", candidates=(Examined(0, 1.0, 2.0, agrees=False),))
    results = [
        StepResult("t/0", 2, 1, trained=True, decision=decision, loss=1.0, accuracy=0.5, correct=1),
        StepResult("t/0", 2, 1, trained=False, decision=None),
        StepResult("t/0", 2, None, trained=False, decision=None),
    ]
    with capture_logs() as lines:
        for result in results:
            Observer().batch(RECORD, result, decode_s=0.0, step_s=0.0)
    text = section(REFERENCE / "events-and-logs.md", "## Logs")
    documented = named(text)
    assert {line["event"] for line in lines} == {name for name in documented if name.startswith("batch.")}
    on_all = {cells[0].strip("`") for cells in rows(text) if cells[1] == "all"}
    assert on_all == lines[1].keys() - {"event", "log_level"}
    assert lines[0].keys() - {"event", "log_level"} == {name for name in documented if "." not in name}


# -- records -----------------------------------------------------------------------------------------------------------


def test_the_records_page_has_every_reason_and_no_other():
    reasons = set()
    for name in ("supsup_online/wire.py", "supsup_online/learner.py", "daemon/apply.py"):
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "BadBatchError":
                words = [n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)]
                reasons.update(word for word in words if isinstance(word, str))
    assert set(named(section(REFERENCE / "records.md", "## Reasons"))) == reasons


def test_the_records_page_has_the_headers_of_every_side_topic():
    sent = {}
    side = SimpleNamespace(send=lambda topic, _key, _value, headers, **_: sent.update({topic: dict(headers)}))
    answers = SimpleNamespace(send=lambda _, __, headers, ___: sent.update({"t.predictions": dict(headers)}))
    checkpoint = SimpleNamespace(
        totals={"dead_lettered": 0},
        store=SimpleNamespace(keys=BankKeys("b")),
        positions={RECORD.partition: Position(0)},
    )
    applier = Applier(SimpleNamespace(streams={}), side, answers, checkpoint, patience_s=0.0, max_bytes=2)
    with capture_logs():
        applier._dead_letter(RECORD, BadBatchError("shape", "a sentence"))
    applier._deliver(RECORD, StepResult("t/0", 1, None, trained=False, decision=None))
    applier._deliver(RECORD, StepResult("t/0", 1, 3, trained=False, decision=None, entropy=1.0))
    table = section(REFERENCE / "records.md", "## Side topics")
    documented = {cells[0].strip("`"): [bool(cell) for cell in cells[1:]] for cells in rows(table) if "`" in cells[0]}
    topics = ("t.dlq", "t.overflow", "t.predictions")
    assert set(sent) == set(topics)
    headers = set().union(*sent.values()) - {"mine"}
    assert documented == {name: [name in sent[topic] for topic in topics] for name in headers}
    assert ["mine" in sent[topic] for topic in topics] == [True, True, False]


# -- commands ----------------------------------------------------------------------------------------------------------


def test_every_exit_code_is_documented():
    table = rows(section(REFERENCE / "commands.md", "## Exit codes"))
    assert {cells[1].strip("`"): int(cells[0]) for cells in table} == {code.name: code.value for code in ExitCode}


@pytest.mark.parametrize(("name", "command"), [pytest.param(*leaf, id=leaf[0]) for leaf in leaves()])
def test_every_command_is_documented_with_its_options(name, command):
    text = section(REFERENCE / "commands.md", f"## `{name}`")
    parameters = [p for p in switches(command).values() if p.name not in {"config", "help"}]
    if set(settings.START_NAMES) <= {p.name for p in parameters}:
        assert re.search(r"takes every (\[setting\]\(settings.md\)|setting)", text)
        parameters = [p for p in parameters if p.name not in NAMES]
    for server, names in (("kafka", connections.KAFKA_OPTIONS), ("redis", connections.REDIS_OPTIONS)):
        if f"(security.md#{server})" in text:
            assert set(names) <= {p.name for p in parameters}
            parameters = [p for p in parameters if p.name not in names]
    assert [p.opts[0] for p in parameters if not re.search(rf"{p.opts[0]}\b", text)] == []


@pytest.mark.parametrize("name", ["publish", "predict", "demo", "doctor"])
def test_documented_defaults_of_options_are_those_of_the_command(name):
    parameters = switches(dict(leaves())[name])
    for cells in rows(section(REFERENCE / "commands.md", f"## `{name}`")):
        parameter = parameters.get(cells[0].strip("`"))
        if parameter is not None and parameter.show_default:
            assert cells[1].strip("`") == str(parameter.default), cells[0]


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        ("stats", cli_bank, "_bank_summary"),
        ("bank verify", bank_check, "as_json"),
        ("demo", demo, "summary"),
    ],
)
def test_the_keys_of_json_output_are_documented(name, module, function):
    text = section(REFERENCE / "commands.md", f"## `{name}`")
    documented = [key for key in named(text) if not key.startswith("--")]
    added_later = ["seconds"] if name == "demo" else []
    assert documented == returned_keys(module, function) + added_later


def test_every_check_of_the_doctor_is_documented_and_no_other():
    checks = set()
    for path in (ROOT / "daemon").glob("doctor*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(ast.Name("ok" | "note" | "warning" | "problem"), [ast.Constant(check), *_]):
                    checks.add(check)
    text = section(REFERENCE / "commands.md", "## `doctor`").partition("| check |")[2]
    assert sorted(named(f"| check |{text}")) == sorted(checks)


def test_what_the_doctor_prints_as_json_is_documented():
    text = section(REFERENCE / "commands.md", "## `doctor`")
    keys = returned_keys(cli_doctor, "report")
    assert [key for key in keys if f"`{key}`" not in text] == []
    assert [key for key in vars(Finding)["__slots__"] if f'"{key}":' not in text] == []


@every_page
def test_every_command_line_is_one_that_the_program_takes(page, readers_files):
    commands = dict(leaves())
    for variables, arguments in own_commands(page):
        assert variables.keys() <= {variable(name) for name in NAMES} | settings.OTHER_VARIABLES
        name = max((n for n in commands if arguments[: len(n.split())] == n.split()), key=len, default="")
        if arguments == ["--help"]:
            continue
        assert name, f"no such command: {arguments}"
        command = commands[name]
        given, positional = parsed(command, arguments[len(name.split()) :])
        settings.parse({key: value for key, value in given.items() if key in NAMES}, {})
        assert len(positional) == 0 or any(isinstance(p, click.Argument) for p in command.params)


def parsed(command, words):
    """Options (by parameter) and arguments; an unknown option or a wrong choice is an error."""
    parameters, given, positional, words = switches(command), {}, [], list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            positional.append(word)
            continue
        parameter = parameters[word]
        if parameter.is_flag:
            given[parameter.name] = word in parameter.opts
        else:
            value = words.pop(0)
            given[parameter.name] = parameter.type.convert(value, parameter, None) if parameter.name != "config" else ""
    return given, positional


@every_page
def test_every_option_named_in_the_text_exists(page):
    known = {name for _, command in leaves() for name in switches(command)} | {"--help"}
    named_options = set(re.findall(r"`(--[a-z][a-z-]*[a-z])(?![a-z-])[^`]*`", prose(page)))
    assert named_options - known == set()


@every_page
def test_every_variable_named_exists(page):
    known = {variable(name) for name in NAMES} | settings.OTHER_VARIABLES
    assert set(re.findall(r"\bSUPSUP_[A-Z_]*[A-Z]\b", page.read_text())) - known == set()


# -- examples and links ------------------------------------------------------------------------------------------------


@every_page
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_readme():
    reached, todo = set(), [PAGES[0]]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose(page))
        todo += [(page.parent / link).resolve() for link in links if not re.match(r"\w+:", link)]
    assert set(PAGES) <= reached


@every_page
def test_python_examples_compile_and_import_what_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in {"daemon", "supsup_online"}:
                module = __import__(node.module, fromlist=[alias.name for alias in node.names])
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@every_page
def test_json_examples_are_json(page):
    for block in blocks(page, "json"):
        json.loads(block)


@every_page
def test_yaml_examples_are_yaml(page):
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


@every_page
def test_toml_examples_are_settings_that_the_program_takes(page, readers_files):
    for block in blocks(page, "toml"):
        values = tomllib.loads(block)
        assert settings.unknown_keys(page, values) == []
        settings.parse(values, {}).bank_spec()


EXAMPLES = [
    pytest.param(page, shape, classes, block, id=f"{page.name}-{number}")
    for page, shape, classes in ((PAGES[0], (28, 28), 10), (ROOT / "docs" / "how-to.md", (20,), 3))
    for number, block in enumerate(blocks(page, "python"))
    if "KafkaProducer(" in block and "KafkaConsumer" not in block
]


@pytest.mark.parametrize(("page", "shape", "classes", "block"), EXAMPLES)
def test_what_an_example_producer_sends_is_a_batch(monkeypatch, page, shape, classes, block):
    sent = []

    class Recorder:
        def __init__(self, **_):
            pass

        def send(self, _topic, value, headers):
            sent.append((value, dict(headers)["content-type"].decode()))

        def flush(self):
            pass

    kafka = ModuleType("kafka")
    kafka.KafkaProducer = Recorder
    monkeypatch.setitem(sys.modules, "kafka", kafka)
    exec(compile(block, str(page), "exec"), {})  # noqa: S102 - our own page
    for value, content_type in sent:
        for header in (content_type, None):  # it is told without a header too
            x, y = decode(value, header, RecordLimits(shape, classes))
            assert x.shape == (len(y), *shape)
    assert sent


def test_examples_of_both_encodings_are_tried():
    text = "".join(parameter.values[3] for parameter in EXAMPLES)
    assert "arrow" in text
    assert "json" in text


# -- guarantees --------------------------------------------------------------------------------------------------------


def test_every_guarantee_names_tests_that_exist():
    text = (ROOT / "docs" / "guarantees.md").read_text()
    named_tests = set(re.findall(r"`(test_\w+)`", text))
    existing = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(named_tests) > 20
    assert named_tests - existing == set()
    claims = [cells for cells in rows(section(ROOT / "docs" / "guarantees.md", "## What holds")) if cells[0] != ""]
    assert [cells[0] for cells in claims if not re.search(r"`test_|fault suite", cells[-1])] == []
