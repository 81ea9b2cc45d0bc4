"""Read the literals of Python that trains with TRL, transformers or unsloth, without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from autoconf.errors import BadInput
from autoconf.jobs.importers.key_table import Place, Setting
from autoconf.jobs.importers.objectives import hint, objective_in
from autoconf.jobs.importers.python_checks import check
from autoconf.jobs.importers.python_environment import allocator_set
from autoconf.jobs.importers.python_kubeflow import counts_of, submission_of
from autoconf.jobs.importers.python_literals import argument_of, name_of, owner_of, parsed_code, shown
from autoconf.jobs.importers.python_models import Models, casts_back
from autoconf.jobs.importers.python_options import PARSERS
from autoconf.jobs.importers.python_statements import CONFIGS, TRAINERS
from autoconf.jobs.importers.python_unsloth import OWNER, of_plain_arguments, of_unsloth
from autoconf.jobs.importers.schedulers import Request
from autoconf.jobs.importers.words import unknown

_OF_TRAINER = (
    "max_seq_length",
    "packing",
    "neftune_noise_alpha",
    "dataset_text_field",
)  # of SFTTrainer before TRL 0.13
_OF_OLDER_CLIENT = "HuggingFaceTrainerParams"
# The second is an older name of the first: peft v0.9.0, src/peft/utils/other.py.
_PREPARES = ("prepare_model_for_kbit_training", "prepare_model_for_int8_training")
_OF_PREPARING = 2  # arguments: the model, and whether checkpoints are enabled
_ANY_RELEASE = unknown("the release of TRL", "TrainingArguments under an SFTTrainer without max_seq_length")
_NO_FILE = "give the job by options instead of --job"
_NO_OPTIONS = "the script gets no other options that matter than those given here"
_OLDER = {"transformers": "transformers before 5", "trl": "trl before 1.0"}


class Code(NamedTuple):
    """What a script says.

    Attributes:
        settings: The literal arguments of its configs, and those that are not literal as unknown values.
        framework: A trainer of ``job_keys.yaml``; ``None`` for code that is not read.
        requests: The GPUs and nodes that it requests from Kubernetes.
        assumed: A sentence for each assumption about its options and its environment.
        parser: The call that takes options of a command that is not known.
    """

    settings: list[Setting]
    framework: str | None
    requests: tuple[Request, ...] = ()
    assumed: tuple[str, ...] = ()
    parser: Place | None = None


def read_code(text: str, file: str) -> Code:
    """Read a script.

    Args:
        text: Its text; that of a notebook is what ``notebooks.code_of`` finds.
        file: Its name.

    Raises:
        BadInput: It is not Python, has another objective, or no single config that is read; or it does something that
            no key says.

    >>> script = "from trl import SFTConfig, SFTTrainer\\nBS = 2\\nargs = SFTConfig(per_device_train_batch_size=BS)\\n"
    >>> code = read_code(script + "SFTTrainer(model='Qwen/Qwen2.5-7B', args=args)", "train.py")
    >>> code.framework, [(s.key, s.value) for s in code.settings if not s.place.key.endswith("(default)")]
    ('trl', [('per_device_train_batch_size', 2), ('model_name_or_path', 'Qwen/Qwen2.5-7B'), ('use_peft', False)])
    """
    tree = parsed_code(text, file)
    try:
        return _Script(tree, file).read()
    except RecursionError:
        raise BadInput(f"{file}: not a job's script: nested too deeply; {_NO_FILE}") from None


def read_launched(text: str, file: str, given: Mapping[str, Any]) -> Code:
    """Read a script that a command starts with some options.

    Raises:
        BadInput: As ``read_code``.
    """
    try:
        return _Script(parsed_code(text, file), file, given).read()
    except RecursionError:
        raise BadInput(f"{file}: not a job's script: nested too deeply; {_NO_FILE}") from None


def count_literals(text: str, file: str) -> dict[str, ast.expr]:
    """The expressions that count the nodes and GPUs of a job that a script submits with Kubeflow's SDK.

    Raises:
        BadInput: It is not Python.
    """
    return counts_of(_Script(parsed_code(text, file), file))


class _Script(Models):
    """What a script does with its calls and names."""

    def __init__(self, tree: ast.Module, file: str, given: Mapping[str, Any] | None = None) -> None:
        super().__init__(tree, file, given)
        self.is_launched = given is not None
        self._statements = tree.body
        check(self)

    def read(self) -> Code:
        hints = [*self._hints()]
        self.outside += allocator_set(self, self._statements) if self.is_launched else ()
        code = self._launched() if self.is_launched else self._code()
        alone = {} if self.is_launched or not self.options.defaults else {"the script is run without options": None}
        return code._replace(settings=[*hints, *code.settings, *self.outside], assumed=(*alone, *self.assumed))

    def _launched(self) -> Code:
        """What the script does besides making a config of the options of a command."""
        if any(name in self.calls for name in CONFIGS):
            return self._training()
        config, trainer = self.options.config, self._one(TRAINERS)
        if not config or (config == "TrainingArguments" and name_of(trainer.func) not in ("SFTTrainer", "Trainer")):
            raise BadInput(f"{self.file}: makes no config of its options that is read; {_NO_FILE}")
        found = [*self.arguments(trainer, only=_OF_TRAINER), *self._enabled()]
        if loads := self.calls_of("from_pretrained", OWNER):
            if config == "TrainingArguments" and "optim" not in self.options.values and not self.options.is_open:
                found += of_plain_arguments(self, trainer, self.outside)
            return Code([*found, *of_unsloth(self, loads)], "unsloth")
        found += self.model(trainer)
        framework = self._framework(config, trainer)
        found += [*self._prepared(framework, trainer), *self.adapters(trainer)]
        return Code(found, framework)

    def _takes_options(self) -> bool:
        """Whether the config is made of a command that is not known."""
        return self.options.is_open and not any(name in self.calls for name in CONFIGS)

    def _parsed(self) -> Code:
        """What the script does whatever its options are."""
        parser = next(name for name in PARSERS if name in self.calls)
        self.assumed[_NO_OPTIONS] = None
        return self._launched()._replace(parser=self.place(self.calls[parser][0], parser))

    def _hints(self) -> Iterator[Setting]:
        """What the names of configs and trainers say about the objective."""
        for name, calls in self.calls.items():
            kind = name.removesuffix("Trainer").removesuffix("Config")
            if kind != name and objective_in(kind):
                yield hint(self.place(calls[0], name), kind)

    def _code(self) -> Code:
        submission = submission_of(self)
        if submission is None:
            self.outside += allocator_set(self, self._statements)
            return self._parsed() if self._takes_options() else self._training()
        if submission.framework:
            return Code(submission.settings, submission.framework, submission.requests)
        if _OF_OLDER_CLIENT in self.calls:
            code = self._of_older_client()
        elif any(setting.dialect == "arguments" for setting in submission.settings):
            code = Code([], "trl" if "SFTTrainer" in self.calls else "transformers")
        elif submission.function in ("", *self.functions) and any(name in self.calls for name in CONFIGS):
            code = self._training()
        else:
            code = Code([], None)
        return code._replace(settings=[*submission.settings, *code.settings], requests=submission.requests)

    def _of_older_client(self) -> Code:
        """The job of ``TrainingClient().train``, whose image always trains adapters on a model loaded as float32.

        kubeflow-training 1.9.4, sdk/python/kubeflow/trainer/hf_llm_training.py, with transformers 4.38.
        """
        config, model = self._one(("TrainingArguments",)), self._one(("HuggingFaceModelParams",))
        (parameters,) = self.calls[_OF_OLDER_CLIENT][:1]
        kind, uri = argument_of(model, "transformer_type", 1), argument_of(model, "model_uri", 0)
        if name_of(kind) != "AutoModelForCausalLM":
            raise BadInput(f"{self.place(model, 'transformer_type')}: {shown(kind)} is not a causal language model")
        name = unknown("model_uri", "not given") if uri is None else self.literals.value(uri)
        found = [*self.arguments(config)]
        found += self.setting(model, "model_uri", str(name).removeprefix("hf://"), "model_name_or_path")
        found += self.setting(model, "dtype (default)", "float32", "torch_dtype")
        adapters = self.called(argument_of(parameters, "lora_config", 1))
        return Code([*found, *self.of_lora(adapters or parameters)], "transformers")

    def _training(self) -> Code:
        config, trainer = self._one(CONFIGS), self._one(TRAINERS)
        names = name_of(config.func), name_of(trainer.func)
        found = [*self.arguments(config), *self.arguments(trainer, only=_OF_TRAINER), *self._enabled()]
        if loads := self.calls_of("from_pretrained", OWNER):
            if names[0] == "TrainingArguments":
                found += of_plain_arguments(self, config, [*found, *self.outside])
            self._assume_unsloth(loads[0])
            return Code([*found, *of_unsloth(self, loads)], "unsloth")
        framework = self._framework(names[0], trainer)
        found += self._prepared(framework, trainer)
        found += [*self.model(trainer, config), *self.adapters(trainer)]
        found += (
            self.length() if names[1] == "Trainer" else self.undecided_length(config) if names[0] == "SFTConfig" else ()
        )
        if names == ("TrainingArguments", "DPOTrainer") and argument_of(trainer, "max_length", None) is not None:
            return Code([*found, *self.arguments(trainer, only=("max_length",))], _OLDER["trl"])  # before 0.9
        if names[0] == "TrainingArguments" and names[1] not in ("SFTTrainer", "Trainer"):
            place = self.place(config, "TrainingArguments")
            raise BadInput(
                f"{place}: under {names[1]} only {names[1].removesuffix('Trainer')}Config is read; {_NO_FILE}"
            )
        return Code(found, framework)

    def _assume_unsloth(self, load: ast.Call) -> None:
        """Say so if unsloth loads the model under a condition, and transformers does without it."""
        others = [c for c in self.calls["from_pretrained"] if name_of(owner_of(c)).endswith("ForCausalLM")]
        if others and load not in self.certain:
            place = self.place(load, "from_pretrained")
            self.assumed[f"{place}: counted as loaded by unsloth, not as in line {others[0].lineno}"] = None

    def _framework(self, config: str, trainer: ast.Call) -> str:
        """The trainer by the kind of its config, and by what only older releases take."""
        if config != "TrainingArguments":
            return _OLDER["trl"] if self.is_of_older_trl(trainer) else "trl"
        is_old = name_of(trainer.func) == "SFTTrainer" or self.is_of_older_transformers(trainer)
        return _OLDER["transformers"] if is_old else "transformers"

    def calls_of(self, method: str, owner: str) -> list[ast.Call]:
        return [call for call in self.calls.get(method, ()) if name_of(owner_of(call)) == owner]

    def _prepared(self, framework: str, trainer: ast.Call) -> Iterator[Setting]:
        """What PEFT's prepare_model_for_kbit_training makes of a quantized base, called here or by an older SFTTrainer.

        Before TRL 0.13 SFTTrainer took TrainingArguments and the length itself, and computed the loss over all logits.
        Before 0.22 it prepared a quantized base, unless it got a model with adapters.
        """
        keywords = {keyword.arg for keyword in trainer.keywords}
        is_old = name_of(trainer.func) == "SFTTrainer" and framework in _OLDER.values()
        of_any = (
            is_old and framework == _OLDER["transformers"] and not keywords & {"max_seq_length", "dataset_text_field"}
        )
        if of_any:
            yield from self._of_any_release(self.calls.get("TrainingArguments", [trainer])[0])
        calls = [call for name in _PREPARES for call in self.calls.get(name, ())]
        makes_adapters = is_old and "peft_config" in keywords and "get_peft_model" not in self.calls
        for setting in (s for call in calls for s in self._of_preparing(call, len(calls) == 1)):
            if not makes_adapters or setting.key != "prepared_base":  # which SFTTrainer prepares again
                yield setting
        loads = [load for load in self.calls.get("from_pretrained", ()) if self.quantizes(load)]
        for load in loads[:1] if makes_adapters or (is_old and not calls) else ():
            base = _ANY_RELEASE if of_any else "norms" if makes_adapters else "none"
            yield from self.setting(load, "prepared base", base, "prepared_base")

    def _of_any_release(self, call: ast.Call) -> Iterator[Setting]:
        """What TrainingArguments leave open under an SFTTrainer without arguments that say its release.

        Up to TRL 0.13 samples without a length were cut to that of the tokenizer, at most to 1,024 tokens, later to
        1,024 (trl v0.13.0 and v0.15.2, trl/trainer/sft_trainer.py and sft_config.py); the rest is that of the release.
        """
        given = {keyword.arg for keyword in call.keywords}
        keys = ["max_length", "use_liger_kernel", *(key for key in ("optim",) if key not in given)]
        keys += ["gradient_checkpointing"] if "gradient_checkpointing_kwargs" not in given else []
        for key in keys:
            yield from self.setting(call, key, _ANY_RELEASE, key)

    def _of_preparing(self, call: ast.Call, is_only: bool) -> Iterator[Setting]:
        """What one call prepares; of a base that is not quantized it only makes parameters float32 (peft 0.21.2)."""
        is_certain = call in self.certain and len(call.args) + len(call.keywords) <= _OF_PREPARING and is_only
        is_quantized = self.is_quantized()
        checkpoints = argument_of(call, "use_gradient_checkpointing", 1)
        value = True if checkpoints is None else self.literals.value(checkpoints)
        name = name_of(call.func)
        if not is_certain:
            value = unknown(name, "whether and how it runs")
        elif is_quantized is None and value is not False:
            value = unknown(name, "whether the base is quantized")
        if is_quantized is not True:
            dtype = unknown(name, "makes a base that is not quantized float32")
            yield from self.setting(call, "dtype", dtype, "torch_dtype")
        if is_quantized is not False and value is not False and not self._checkpoints():
            yield from self.setting(call, "gradient checkpointing", value, "gradient_checkpointing")
            if value is True:
                yield from self._kind_prepared(call)
        if is_quantized is not False:
            made = "none" if "GPTQConfig" in self.calls else "all"  # peft 0.21.2, src/peft/utils/other.py
            base = made if is_certain else unknown(name, "whether and how it runs")
            casts = casts_back(self, self._is_bf16()) if is_certain else None
            if casts is not None:
                yield from self.setting(casts, "bfloat16", "bfloat16", "cast_adapters")
                base = "norms"
            yield from self.setting(call, "base", base, "prepared_base")

    def _kind_prepared(self, call: ast.Call) -> Iterator[Setting]:
        """The kind of the checkpoints that PEFT enables, unless the model or the Trainer enables them once more.

        PEFT passes what it is given, or nothing (peft 0.21.2, utils/other.py), and transformers chooses a kind only
        without any argument (5.23.0, modeling_utils.py), so that PyTorch's default holds (2.13.0, utils/checkpoint.py).
        """
        if not self._is_left_off() or any(
            later.lineno > call.lineno for later in self.calls.get("gradient_checkpointing_enable", ())
        ):
            return
        passed = argument_of(call, "gradient_checkpointing_kwargs", 2)
        value = {} if passed is None else self.literals.value(passed)
        kind = {"use_reentrant": True, **value} if isinstance(value, dict) else value
        yield from self.setting(call, "gradient_checkpointing_kwargs", kind, "gradient_checkpointing_kwargs")

    def _is_left_off(self) -> bool:
        """Whether the Trainer certainly enables no checkpoints, as TrainingArguments alone do not by default."""
        plain = "TrainingArguments"
        given = [(c, argument_of(c, "gradient_checkpointing", None)) for n in CONFIGS for c in self.calls.get(n, ())]
        if not given:
            return self.options.config == plain and self.options.values["gradient_checkpointing"] is False
        return all(
            name_of(call.func) == plain if node is None else self.literals.value(node) is False for call, node in given
        )

    def _is_bf16(self) -> bool:
        """Whether a config certainly computes in bfloat16."""
        given = [argument_of(c, "bf16", None) for name in CONFIGS for c in self.calls.get(name, ())]
        return any(node is not None and self.literals.value(node) is True for node in given)

    def _checkpoints(self) -> bool:
        """Whether a config enables checkpoints in any case."""
        given = [argument_of(c, "gradient_checkpointing", None) for name in CONFIGS for c in self.calls.get(name, ())]
        return any(node is not None and self.literals.value(node) is True for node in given)

    def _enabled(self) -> Iterator[Setting]:
        """Checkpointing that the model's own method enables."""
        for call in self.calls.get("gradient_checkpointing_enable", ()):
            place = self.place(call, "gradient_checkpointing_enable")
            if self._checkpoints():
                continue  # the Trainer enables it in any case
            is_certain = call in self.certain and not call.args
            value = True if is_certain else unknown("gradient_checkpointing_enable", "whether it runs")
            yield Setting(place, "arguments", "gradient_checkpointing", value)
            yield from self.arguments(call)

    def _one(self, names: Sequence[str]) -> ast.Call:
        found = [call for name in names for call in self.calls.get(name, ())]
        if len(found) != 1:
            parser = next((name for name in PARSERS if name in self.calls), None)
            if parser is not None and not found and names is CONFIGS:
                raise BadInput(
                    f"{self.place(self.calls[parser][0], parser)}: the script takes its settings from a command or a "
                    f"config; give the file that starts it by --job, or {_NO_FILE.removesuffix(' instead of --job')}"
                )
            lines = f" (lines {', '.join(str(call.lineno) for call in found[:9])})" if found else ""
            raise BadInput(
                f"{self.file}: looks like a Python script, of which one call of {' or '.join(names)} is read; "
                f"it has {len(found)}{lines}; {_NO_FILE}"
            )
        return found[0]
