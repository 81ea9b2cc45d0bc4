"""A separate ado context for a test, with a store in a temporary folder instead of the user's default store."""

import os
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import autoconf.experiments.ado_compat  # noqa: F401 - makes ``ado`` importable whichever ado is installed

from ado.cli.core.cli import app
from ado.cli.core.config import AdoConfiguration
from ado.cli.utils.generic.wrappers import get_sql_store
from ado.core.discoveryspace.space import DiscoverySpace
from ado.core.operation.operation import OperationOutput
from ado.metastore.project import ProjectContext
from ado.modules.operators.collections import explore


class AdoContext:
    """ado with its configuration and its SQLite store in one folder.

    Args:
        folder: Where to put them; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def arguments(self, *arguments: str) -> list[str]:
        """The arguments that make `ado` use this context."""
        return ["--override-ado-app-dir", str(self.folder), *arguments]

    def command(self, *arguments: str) -> list[str]:
        """A command line for a subprocess that runs `ado` in this context."""
        return [str(Path(sys.executable).with_name("ado")), *self.arguments(*arguments)]

    def ado(self, *arguments: str) -> str:
        """Run `ado` in this process, which saves the seconds of its start.

        Returns:
            What it printed.

        Raises:
            AssertionError: It did not succeed; the message is what it printed.
        """
        result = CliRunner().invoke(app, self.arguments(*arguments))
        assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
        return result.output

    @cached_property
    def project_context(self) -> ProjectContext:
        """Where ado's Python API finds this context's store."""
        context = AdoConfiguration.load(_override_config_dir=self.folder).project_context
        assert context is not None
        return context

    def create_space(self, configuration: dict[str, Any]) -> str:
        """Create a space with a separate sample store.

        Args:
            configuration: What a space's YAML holds.

        Returns:
            The identifier of the space.
        """
        file = self.folder / "space.yaml"
        file.write_text(yaml.safe_dump(configuration))
        before = self.spaces()
        self.ado("create", "space", "-f", str(file), "--new-sample-store")
        (identifier,) = self.spaces() - before
        return identifier

    def spaces(self) -> set[str]:
        """The identifiers of all spaces."""
        store = get_sql_store(self.project_context)
        return set(store.getResourceIdentifiersOfKind("discoveryspace")["IDENTIFIER"])

    def space(self, identifier: str) -> DiscoverySpace:
        """A space as the store has it now."""
        return DiscoverySpace.from_stored_configuration(self.project_context, identifier)

    def operate(self, operator: str, space: str, **parameters: Any) -> OperationOutput:
        """Run an explore operator on a space, in the Ray cluster that this process is connected to."""
        function = explore.operators[operator].function
        assert function is not None
        return function(self.space(space), **parameters)

    def table(self, space: str) -> pd.DataFrame:
        """What `ado show measurements space` exports, in an order that does not depend on when a row was written."""
        file = self.folder / "table.csv"
        self.ado("show", "measurements", "space", space, "-o", "csv", "--output-file", str(file))
        table = pd.read_csv(file, index_col=0)
        return table.sort_values(["identifier", "experiment_id"]).reset_index(drop=True)


@pytest.fixture
def ado_context(tmp_path: Path) -> AdoContext:
    """A fresh context for one test."""
    return AdoContext(tmp_path / "ado")


@pytest.fixture(scope="session")
def toy_experiment() -> Iterator[None]:
    """Let ado, here and in the processes that Ray starts from here, find the experiments of tests/toy_experiment."""
    folder = str(Path(__file__).with_name("toy_experiment"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")])))
        import toy_experiment  # noqa: F401  ado may have read its entry points before this folder was on the path

        yield
