"""A producer that shares no code with the project, on data the project never saw."""

import importlib.util
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from daemon.embedded import EmbeddedError, _redis_binary
from daemon_process import clean_environment, trainer
from stage import Stage

pytestmark = pytest.mark.integration

JSON_PRODUCER = """
import json, sys
import numpy as np
from kafka import KafkaProducer

kafka, topic, data = sys.argv[1:]
table = np.loadtxt(f"{data}/digits.csv.gz", delimiter=",")          # 1797 digits of 8 x 8, grey values from 0 to 16
x, y = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)
rng = np.random.default_rng(0)
producer = KafkaProducer(bootstrap_servers=kafka)
for epoch in range(3):
    for rows in np.split(rng.permutation(len(x))[:1792], 28):
        record = {"x": (x[rows] / 8 - 1).tolist(), "y": y[rows].tolist()}
        producer.send(topic, json.dumps(record).encode())
producer.close()
"""

ARROW_PRODUCER = """
import sys
import numpy as np, pyarrow as pa
from kafka import KafkaProducer

kafka, topic, data = sys.argv[1:]
table = np.loadtxt(f"{data}/wine_data.csv", delimiter=",", skiprows=1)  # 178 wines, 13 measurements, 3 growers
x, y = table[:, :-1], table[:, -1].astype(int)
x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
rng = np.random.default_rng(0)
producer = KafkaProducer(bootstrap_servers=kafka)
for _ in range(100):
    rows = rng.integers(0, len(x), 32)
    storage = pa.FixedSizeListArray.from_arrays(x[rows].ravel(), 13)
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [13]), storage)
    table = pa.record_batch({"x": tensor, "y": pa.array(y[rows])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_batch(table)
    header = ("content-type", b"application/vnd.apache.arrow.stream")
    producer.send(topic, sink.getvalue().to_pybytes(), headers=[header])
producer.close()
"""

# The tables that come with scikit-learn; importing it to read two files would take longer than all the rest.
DATA = Path(importlib.util.find_spec("sklearn").submodule_search_locations[0]) / "datasets" / "data"

PROOF = """
shared = {name.partition(".")[0] for name in sys.modules} & {"daemon", "supsup_online"}
sys.exit(f"shares code with the project: {shared}" if shared else 0)
"""

FLAGS = {
    JSON_PRODUCER: ("--input-shape=8x8", "--classes=10"),
    ARROW_PRODUCER: ("--input-shape=13", "--classes=3"),
}
RECORDS = {JSON_PRODUCER: 84, ARROW_PRODUCER: 100}


@pytest.fixture(scope="module")
def banks(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Producer -> the bank that was trained on its stream; both at once."""
    names: dict[str, str] = {}
    with ExitStack() as stack:
        trainers = {}
        for producer, flags in FLAGS.items():
            topic, names[producer] = stage.new_topic(), stage.new_bank()
            directory = tmp_path_factory.mktemp("any-producer")
            script = directory / "producer.py"
            script.write_text(producer + PROOF)
            command = [sys.executable, script, stage.kafka, topic, DATA]
            publishing = subprocess.Popen(command, env=clean_environment())
            stack.callback(publishing.kill)
            arguments = (*stage.arguments(names[producer], topic), *flags, "--threads=1")
            trainers[producer] = stack.enter_context(trainer(*arguments, directory=directory, ready=False)), publishing
        for producer, (process, publishing) in trainers.items():
            assert publishing.wait(60) == 0
            process.wait_for("batch.trained", offset=RECORDS[producer] - 1)
            process.stop()
    return names


def redis_cli(stage: Stage, *command: str) -> list[str]:
    """What a person sees who asks with redis-cli."""
    try:
        binary = _redis_binary("redis-cli")
    except EmbeddedError as error:
        pytest.skip(str(error))
    asked = subprocess.run([binary, "-u", stage.redis_url, *command], capture_output=True, text=True, check=True)
    return asked.stdout.splitlines()


@pytest.mark.parametrize(("producer", "least"), [(JSON_PRODUCER, 0.8), (ARROW_PRODUCER, 0.9)], ids=["json", "arrow"])
def test_the_trainer_learns_it_and_redis_cli_tells_so(
    stage: Stage, banks: dict[str, str], producer: str, least: float
) -> None:
    answer = redis_cli(stage, "HGETALL", f"supsup:{{{banks[producer]}}}:stats:0")
    told = dict(zip(answer[::2], answer[1::2], strict=True))
    assert int(told["batches"]) == RECORDS[producer]
    assert least < float(told["accuracy"]) <= 1
    assert 0 < float(told["loss"]) < 1
    assert 0 < float(told["density"]) < 1
    assert np.isclose(int(told["samples"]) / int(told["batches"]), 64 if producer == JSON_PRODUCER else 32)


@pytest.mark.parametrize("producer", FLAGS, ids=["json", "arrow"])
def test_one_task_makes_one_mask(stage: Stage, banks: dict[str, str], producer: str) -> None:
    totals = stage.totals(banks[producer])
    assert totals["allocated"] == 1
    assert totals["dead_lettered"] == 0
