"""Every file in tests/data/job_readers is read as ``right.yaml`` next to it says, or refused in that sentence.

``counted`` there is the number of GPUs and of nodes.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from autoconf.errors import BadInput
from autoconf.jobs.importers.reader import read_job

READERS = Path(__file__).parents[1] / "data" / "job_readers"
CASES = [
    pytest.param(folder / name, right, id=f"{folder.name}/{name}")
    for folder in sorted(READERS.iterdir())
    for name, right in yaml.safe_load((folder / "right.yaml").read_text()).items()
]
FEWEST = 10  # files of each reader


@pytest.mark.parametrize(("path", "right"), CASES)
def test_a_file_is_read_rightly_or_refused_in_a_sentence(
    path: Path, right: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = READERS / path.relative_to(READERS).parts[0]
    monkeypatch.chdir(folder)  # messages, which are cut, name the files without folders
    paths = [str(path.relative_to(folder)), *(str(path.relative_to(folder).parent / o) for o in right.get("with", ()))]
    options = right.get("options", {})
    if "refused" in right:
        with pytest.raises(BadInput, match=right["refused"]) as refused:
            read_job(paths, options)
        assert "\n" not in str(refused.value)
        return
    job = read_job(paths, options)
    assert {field: job.fields.get(field) for field in right["fields"]} == right["fields"]
    if "counted" in right:
        assert [job.counted.gpus, job.counted.workers] == right["counted"]
    assert right.get("assumed", "") in "\n".join(job.assumed)
    assert right.get("ignored", "") in "\n".join(job.ignored)


@pytest.mark.parametrize("folder", sorted(READERS.iterdir()), ids=lambda folder: folder.name)
def test_each_reader_has_files_of_its_own(folder: Path) -> None:
    assert sum(case.values[0].is_relative_to(folder) for case in CASES) >= FEWEST
