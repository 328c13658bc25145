"""Open a recipe's models, check them before any weight is read, and write the files beside the merged weights."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from model_merging_methods.checkpoints.configs import (
    GENERATION_CONFIG,
    check_configs,
    generation_config,
    set_layers,
    take_token_ids,
)
from model_merging_methods.checkpoints.lora_adapter import AdaptedFolder
from model_merging_methods.checkpoints.tensor_names import layer_of
from model_merging_methods.checkpoints.tokenizer_reading import check_tokenizers, load_tokenizer, read_tokens
from model_merging_methods.checkpoints.vocabulary import new_ids, write_tokenizer
from model_merging_methods.checkpoints.vocabulary_matrices import Folder
from model_merging_methods.comparison import check_related
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merge_request import MergeRequest, NamedRecipe
from model_merging_methods.opened_models import OpenedModels, Part
from model_merging_methods.recipes.chat_templates import CHAT_TEMPLATES
from model_merging_methods.recipes.checks import check_vocabulary_sizes
from model_merging_methods.recipes.made_model import MadeModel
from model_merging_methods.recipes.parts import Folders, ParametersOfTensors, make_parts, plan_recipe
from model_merging_methods.recipes.plan import Input, TensorMerge
from model_merging_methods.recipes.recipe import Recipe
from model_merging_methods.recipes.vocabulary import BuiltVocabulary, build_vocabulary, number_of_rows, tokenizer_folder
from utils.custom_code import code_files
from utils.errors import UserError
from utils.findings import Findings
from utils.model_folders import hub_source
from utils.whole_files import write_json

log = logging.getLogger(__name__)

_TEMPLATE_FILE = "chat_template.jinja"


def open_recipe(
    request: MergeRequest, stack: ExitStack, written_in: Path | None = None
) -> tuple[OpenedModels | None, Findings]:
    """The models of a recipe's merge, open until `stack` closes them (None after an error), and the findings. A model
    that an earlier document makes is read below `written_in` if it was written there, else merged when it is read."""
    findings, named = Findings(), request.recipe
    by_role: dict[str, Folder] = {}
    parts: list[Part] = []
    with findings.collect():
        by_role = _open_folders(named, request.inputs, stack, findings, written_in)
        folders = {model: by_role[role] for model, role in named.roles.items()}
        check_vocabulary_sizes(named.recipe, {model: number_of_rows(folder) for model, folder in folders.items()})
        plan = plan_recipe(named.recipe, folders)
        vocabulary = build_vocabulary(named.recipe, folders)
        parts = make_parts(named.recipe, plan, folders, named.roles, vocabulary, findings)
        names = {name for one in plan for name in (one.name, *(source.name for source in one.inputs))}
        for line in named.recipe.parts_without_effect(names):
            findings.warn(line)
        for model, role in named.roles.items():
            if model.revision and role not in named.made and hub_source(request.inputs[role]) is None:
                place = named.recipe.place_of("models", "slices", "modules")
                findings.warn(f"{place}: {model}: {model.path} is a folder here, so its revision has no effect")
        merged = [part for part in parts if part.merge(next(iter(part.own_parameters.values()))).merged_names]
        if parts and not merged:
            place = named.recipe.place_of("exclude_param_names_regex")
            raise UserError(f"{place}: exclude_param_names_regex: matches every tensor, so nothing is left to merge")
        _compare(by_role, vocabulary, findings)
        if all(folder.has_values for folder in by_role.values()):
            _warn_of_unrelated(plan, merged, findings)
    if findings.errors:
        return None, findings
    files = RecipeFiles(named.recipe, folders, parts, plan, vocabulary)
    return OpenedModels(by_role, parts, lambda role, folder: files.write(folder)), findings


def _compare(by_role: Mapping[str, Folder], vocabulary: BuiltVocabulary | None, findings: Findings) -> None:
    """Report configs that change the meaning of the weights, as errors, and tokenizers that do not fit together, as
    warnings: a recipe may mean it."""
    if len(by_role) > 1:
        check_configs(by_role, None, False, findings)
    if vocabulary is None:
        found = Findings()
        places = {role: tokenizer_folder(folder) for role, folder in by_role.items()}
        check_tokenizers(places, {role: number_of_rows(folder) for role, folder in by_role.items()}, found)
        for finding in found.found:
            findings.warn(finding.text)


def _warn_of_unrelated(plan: Sequence[TensorMerge], parts: Sequence[Part], findings: Findings) -> None:
    """Report models that do not look like fine-tunes of one model, unless the recipe merges different layers."""
    if any(layer_of(one.name) != layer_of(source.name) for tensor in plan for one, source in _pairs(tensor)):
        return
    for part in parts:
        try:
            check_related(part.merge(next(iter(part.own_parameters.values()))))
        except UserError as error:
            findings.warn(str(error).rpartition(";")[0])


def _pairs(tensor: TensorMerge) -> list[tuple[Input, Input]]:
    """All pairs of a tensor's inputs with the first one."""
    inputs = [*tensor.inputs, *([tensor.base] if tensor.base else [])]
    return [(one, inputs[0]) for one in inputs[1:]]


def first_parameters(named: NamedRecipe, inputs: Mapping[str, Path]) -> MergeParameters:
    """The parameters of the first tensor of a recipe's merge, for its record. Reads headers alone."""
    with ExitStack() as stack:
        by_role = _open_folders(named, inputs, stack, Findings())
        plan = plan_recipe(named.recipe, {model: by_role[role] for model, role in named.roles.items()})
        return ParametersOfTensors(named.recipe).of(plan[0])


def _open_folders(
    named: NamedRecipe,
    inputs: Mapping[str, Path],
    stack: ExitStack,
    findings: Findings,
    written_in: Path | None = None,
) -> dict[str, Folder]:
    """The folders by role; adapters after the models that they change. Findings on earlier documents are added."""
    by_role: dict[str, Folder] = {}
    for role, folder in sorted(inputs.items(), key=lambda item: item[0] in named.adapters):
        if role in named.adapters:
            by_role[role] = AdaptedFolder(folder, by_role[named.adapters[role]])
        elif role not in named.made:
            by_role[role] = stack.enter_context(CheckpointFolder(folder))
        elif written_in is not None and place_of(named.made[role], written_in).is_dir():
            by_role[role] = stack.enter_context(CheckpointFolder(place_of(named.made[role], written_in)))
        else:
            by_role[role] = _open_made(named.made[role], stack, findings, written_in)
    return by_role


def _open_made(request: MergeRequest, stack: ExitStack, findings: Findings, written_in: Path | None) -> MadeModel:
    opened, found = open_recipe(request, stack, written_in)
    for warning in found.warnings:
        findings.warn(warning.text)
    found.stop_at_errors()
    return MadeModel(request, opened, place_of(request, Path(stack.enter_context(TemporaryDirectory()))))


def place_of(made: MergeRequest, written_in: Path) -> Path:
    """The folder of a document's model among those that are written."""
    return written_in / quote(made.recipe.recipe.name, safe="")


class RecipeFiles:
    """The files beside the weights: config and generation config of the base (or the first model), for the merged
    layers and vocabulary; the tokenizer that the recipe asks for, or the base's; the chat template."""

    def __init__(
        self,
        recipe: Recipe,
        folders: Folders,
        parts: Sequence[Part],
        plan: Sequence[TensorMerge],
        vocabulary: BuiltVocabulary | None,
    ):
        self._recipe = recipe
        self._folders = folders
        self._parts = parts
        self._plan = plan
        self._vocabulary = vocabulary
        self._model = recipe.base or recipe.models[0]

    def write(self, folder: Path) -> None:
        model = self._folders[self._model]
        tokenizer = self._folders[self._vocabulary.tokenizer_of] if self._vocabulary else model
        config = self._config(tokenizer)
        write_json(folder / "config.json", config)
        place = tokenizer_folder(tokenizer)
        generation = generation_config(
            tokenizer.files_of(lambda path: (path / GENERATION_CONFIG).exists()), self._new_ids(tokenizer)
        )
        if generation is not None:
            write_json(folder / GENERATION_CONFIG, generation)
        for path in code_files(model.files_of(code_files)):
            shutil.copyfile(path, folder / path.name)
        tokens = self._vocabulary.tokens if self._vocabulary else read_tokens(place) or {}
        write_tokenizer(place, folder, tokens, self._vocabulary.added if self._vocabulary else {})
        template = self._chat_template()
        if template is not None:
            _write_template(folder, template)

    def _config(self, tokenizer: Folder) -> dict:
        config = deepcopy(dict(self._folders[self._model].config))
        set_layers(config, self._layers())
        if tokenizer is not self._folders[self._model]:
            take_token_ids(config, tokenizer.config, self._new_ids(tokenizer))
        models = [part.models for part in self._parts]
        rows = max(one.vocabulary.rows for one in models)
        if rows:
            place = config["text_config"] if "vocab_size" in (config.get("text_config") or ()) else config
            place["vocab_size"] = rows
        if any(one.must_untie for one in models):
            for place in (config, config.get("text_config")):
                if isinstance(place, dict):
                    place["tie_word_embeddings"] = False
        dtype = self._recipe.out_dtype or self._recipe.dtype or _common_dtype(models)
        if dtype:
            for key in [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]:
                config[key] = dtype
        return config

    def _layers(self) -> list[int]:
        """For each merged layer the layer whose settings it gets: of the config's model, else of the first."""
        layers = {}
        for tensor in self._plan:
            sources = [*([tensor.base] if tensor.base else []), *tensor.inputs]
            source = next((source for source in sources if source.model == self._model), sources[0])
            if layer_of(tensor.name) is not None:
                layers[layer_of(tensor.name)] = layer_of(source.name)
        return [layers[layer] for layer in sorted(layers)]

    def _new_ids(self, tokenizer: Folder) -> dict[int, int]:
        return new_ids(tokenizer_folder(tokenizer), self._vocabulary.tokens) if self._vocabulary else {}

    def _chat_template(self) -> str | None:
        wanted = self._recipe.chat_template
        if wanted is None:
            return None
        if wanted in CHAT_TEMPLATES:
            return CHAT_TEMPLATES[wanted]
        if wanted != "auto":
            return wanted
        models = dict.fromkeys([self._model, *self._recipe.models])
        places = [tokenizer_folder(self._folders[model]) for model in models]
        templates = [load_tokenizer(place).chat_template for place in places if read_tokens(place) is not None]
        counts = Counter(template for template in templates if template)
        if not counts:
            place = self._recipe.place_of("chat_template")
            log.info("%s: chat_template: no model has a chat template, so the merged model has none", place)
            return None
        return max(counts, key=counts.__getitem__)  # of equally frequent ones the first


def _write_template(folder: Path, template: str) -> None:
    (folder / _TEMPLATE_FILE).write_text(template, encoding="utf-8")
    path = folder / "tokenizer_config.json"
    if path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("chat_template", None) is not None:
            write_json(path, config)


def _common_dtype(models: Sequence) -> str | None:
    from model_merging_methods.kernels.stored_dtypes import LONG_NAMES

    dtypes = Counter(form.dtype for one in models for form in one.forms.values())
    return LONG_NAMES[dtypes.most_common(1)[0][0]] if dtypes else None
