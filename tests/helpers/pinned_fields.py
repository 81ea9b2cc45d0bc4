"""Write the names of the settings of pinned releases, which the tests hold against job_keys.yaml.

Usage: python tests/helpers/pinned_fields.py [FOLDER]

The wheels come from FOLDER, or are downloaded with pip; PEFT's example is in no wheel, but in the archive of its
repository (``git archive --prefix=peft-0.20.0/ v0.20.0``). Nothing in them is run: their classes, options and configs
are parsed. For a new release, change its version in RELEASES, and run this again; the diff of the file is that of the
releases.
"""

import ast
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlretrieve

import yaml

_DATA = "{0.package}-{0.version}.data/purelib"  # where a wheel that is not pure has its modules
FIELDS = Path(__file__).parents[1] / "data" / "pinned_fields.yaml"


class Release(NamedTuple):
    """A release of a package, and the files whose classes have its settings; all classes where none is named."""

    package: str
    version: str
    files: dict[str, tuple[str, ...]]
    repository: str = ""  # whose archive has the files, where the wheel has not


RELEASES = (
    Release(
        "trl",
        "1.9.0",
        {
            "trl/trainer/base_config.py": ("_BaseConfig",),
            "trl/trainer/sft_config.py": ("SFTConfig",),
            "trl/trainer/model_config.py": ("ModelConfig",),
            "trl/scripts/utils.py": ("ScriptArguments", "DatasetMixtureConfig"),
        },
    ),
    Release(
        "llamafactory",
        "0.9.5",
        {
            "llamafactory/hparams/data_args.py": (),
            "llamafactory/hparams/finetuning_args.py": (),
            "llamafactory/hparams/model_args.py": (),
            "llamafactory/hparams/training_args.py": (),
        },
    ),
    Release(
        "axolotl",
        "0.18.0",
        {
            "axolotl/utils/schemas/config.py": ("AxolotlInputConfig",),
            "axolotl/utils/schemas/training.py": ("HyperparametersConfig",),
            "axolotl/utils/schemas/peft.py": ("LoraConfig", "ReLoRAConfig"),
            "axolotl/utils/schemas/model.py": ("ModelInputConfig", "ModelOutputConfig"),
            "axolotl/utils/schemas/deprecated.py": ("DeprecatedParameters", "RemappedParameters"),
            "axolotl/integrations/liger/args.py": (),
            "axolotl/integrations/cut_cross_entropy/args.py": (),
        },
    ),
    Release(
        "fms_hf_tuning",
        "3.1.0",
        {
            "tuning/config/configs.py": (),
            "tuning/config/peft_config.py": ("LoraConfig", "PromptTuningConfig", "Mxfp4Config"),
            "tuning/config/acceleration_configs/acceleration_framework_config.py": ("AccelerationFrameworkConfig",),
        },
    ),
    Release("peft", "0.20.0", {"examples/sft/train.py": ()}, repository="huggingface/peft"),
    Release("openrlhf", "0.11.0", {"openrlhf/cli/train_sft.py": ()}),
    Release("verl", "0.7.0", {"verl/trainer/config/sft_trainer.yaml": ()}),
    Release(
        "ms_swift",
        "4.5.2",
        {
            "swift/arguments/sft_args.py": ("SftArguments",),
            "swift/arguments/tuner_args.py": ("TunerArguments",),
            "swift/arguments/base_args/base_args.py": ("BaseArguments",),
            "swift/arguments/base_args/data_args.py": ("DataArguments",),
            "swift/arguments/base_args/model_args.py": ("ModelArguments",),
            "swift/arguments/base_args/quant_args.py": ("QuantizeArguments",),
            "swift/arguments/base_args/template_args.py": ("TemplateArguments",),
            "swift/trainers/arguments.py": ("TrainArgumentsMixin",),
        },
    ),
)


def fields_of(source: str, classes: tuple[str, ...]) -> dict[str, list[str]]:
    """The annotated names of the classes of a module, or the options that it gives to argparse.

    >>> fields_of("class A:\\n    one: int = 1\\n    two = 2\\n", ())
    {'A': ['one']}
    >>> fields_of("parser.add_argument('--ds.zero_stage', type=int)", ())
    {'options': ['ds.zero_stage']}
    """
    tree = ast.parse(source)
    options = [
        call.args[0].value.removeprefix("--")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".add_argument")
        if isinstance(call.args[0], ast.Constant)
    ]
    found = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return (
        {"options": options}
        if options and not classes
        else {
            node.name: [each.target.id for each in node.body if isinstance(each, ast.AnnAssign)]
            for node in found
            if not classes or node.name in classes
        }
    )


def keys_of(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys of a config, nested ones with dots.

    >>> [*keys_of({"a": {"b": 1, "c": {}}, "d": [2]})]
    ['a.b', 'a.c', 'd']
    """
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def texts(release: Release, folder: Path) -> Iterator[tuple[str, str]]:
    """The files of a release, from its wheel or the archive of its repository in a folder."""
    if release.repository:
        with tarfile.open(folder / f"{release.package}-{release.version}.tar.gz") as source:
            for name in release.files:
                member = source.extractfile(f"{release.package}-{release.version}/{name}")
                assert member is not None, f"no {name}"
                yield name, member.read().decode()
        return
    wheel = next(folder.glob(f"{release.package}-{release.version}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        for name in release.files:
            stored = next(each for each in archive.namelist() if each in (name, f"{_DATA.format(release)}/{name}"))
            yield name, archive.read(stored).decode()


def read(release: Release, folder: Path) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """The fields of each file of a release."""
    for name, text in texts(release, folder):
        if name.endswith(".yaml"):
            yield name, {"keys": [key for key in keys_of(yaml.safe_load(text)) if key != "defaults"]}
            continue
        found = fields_of(text, release.files[name])
        missing = set(release.files[name]) - set(found)
        assert not missing, f"{name} has no {missing}"
        yield name, {kind: fields for kind, fields in found.items() if fields}


def main(folder: Path) -> None:
    table = {
        release.package: {"version": release.version, "files": dict(read(release, folder))} for release in RELEASES
    }
    head = "# Written by tests/helpers/pinned_fields.py from the wheels of these releases.\n"
    FIELDS.write_text(head + yaml.safe_dump(table, sort_keys=False, width=120, default_flow_style=None))


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as downloads:
            wheels = [f"{release.package}=={release.version}" for release in RELEASES if not release.repository]
            for release in RELEASES:
                if release.repository:
                    url = f"https://github.com/{release.repository}/archive/refs/tags/v{release.version}.tar.gz"
                    urlretrieve(url, Path(downloads) / f"{release.package}-{release.version}.tar.gz")
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads, *wheels], check=True
            )
            main(Path(downloads))
