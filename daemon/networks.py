"""The network of a stored bank, regenerated from its spec."""

from pathlib import Path

from daemon.errors import ConfigError
from supsup_online.errors import WeightsFileError
from supsup_online.network import Network
from supsup_online.spec import BankSpec


def regenerated(spec: BankSpec, weights_file: Path | None = None) -> Network:
    """The network of a spec, on the CPU; trained weights come from their file.

    Raises:
        ConfigError: the bank's weights are trained, and their file is not given, or is another one.
        SpecError: there is no such network.
    """
    try:
        return Network.build(spec, weights_file=weights_file)
    except WeightsFileError as error:
        raise ConfigError(str(error)) from error
