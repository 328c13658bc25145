"""YAML is read strictly: plain data only, each value with its line."""

import pytest

from model_merging_methods.recipes.reading import MOST_BYTES, Node, choice, finite_number, read_documents
from tests.model_merging_methods.recipes.recipe_texts import write
from utils.errors import UserError


def plain(node):
    if isinstance(node.value, dict):
        return {key: plain(value) for key, value in node.value.items()}
    return [plain(item) for item in node.value] if isinstance(node.value, list) else node.value


def refused(folder, text):
    with pytest.raises(UserError) as error:
        read_documents(write(folder, text))
    message = str(error.value)
    assert "\n" not in message
    return message.replace(f"{folder}/", "")


def test_values_are_those_of_yaml_1_1(tmp_path):
    text = "a: 1\nb: [0.5, 1e-3, 1.0e-3, yes, ~]\nc: {d: 'no'}\ne: 2024-01-01\n"
    [document] = read_documents(write(tmp_path, text))
    assert plain(document) == {"a": 1, "b": [0.5, "1e-3", 0.001, True, None], "c": {"d": "no"}, "e": "2024-01-01"}


def test_each_value_has_the_line_of_its_key_or_item(tmp_path):
    file = write(tmp_path, "a:\n  b: 1\n  c:\n    - 2\n    - 3\n---\nd: 4\n")
    first, second = read_documents(file)
    inner = first.value["a"].value
    assert inner["b"].place == f"{file}:2"
    assert [item.place for item in inner["c"].value] == [f"{file}:4", f"{file}:5"]
    assert second.value["d"].place == f"{file}:7"


def test_aliases_and_merged_mappings_are_expanded(tmp_path):
    text = "a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}\nd: {<<: [{p: 5}, *x]}\n"
    [document] = read_documents(write(tmp_path, text))
    assert plain(document)["b"] == {"p": 1, "q": 2}
    assert plain(document)["c"] == {"p": 1, "q": 3}
    assert plain(document)["d"] == {"p": 5, "q": 2}


def test_empty_documents_are_skipped(tmp_path):
    assert len(read_documents(write(tmp_path, "---\na: 1\n---\n"))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe.yml: is empty"),
        ("a: 1\nb: 2\na: 3\n", "recipe.yml:3: a: is given twice"),
        ("a: 1\n2: b\n", "recipe.yml:2: 2: is not a text"),
        ("a: 1\nyes: b\n", "recipe.yml:2: yes: is not a text"),
        ("a: 1\n? [b]\n: c\n", "recipe.yml:2: "),
        ("a: 1\nb: !!python/object/apply:os.system ['true']\n", "recipe.yml:2: b: the tag !!python/object/apply:"),
        ("a: !!python/name:os.system\n", "recipe.yml:1: a: the tag !!python/name:os.system"),
        ("a: !include other.yml\n", "recipe.yml:1: a: the tag !include"),
        ("a: !!binary aGk=\n", "recipe.yml:1: a: the tag !!binary"),
        ("a: !!set {b, c}\n", "recipe.yml:1: a: the tag !!set"),
        ("a: !!int five\n", "recipe.yml:1: a: 'five' is not a int"),
        ("a: 1\nb: [1, 2\nc: 3\n", "recipe.yml:3: "),
        ("a: 1\n\tb: 2\n", "recipe.yml:2: "),
        ("a: *missing\n", "recipe.yml:1: found undefined alias"),
        ("a: 1\nb: \x07\n", "recipe.yml:2: holds a character"),
        ("a: &x [*x]\n", "recipe.yml:1: a: has more than"),
        ("a: &x {b: *x}\n", "recipe.yml:1: b: has more than"),
        ("[" * 5000, "recipe.yml"),
        ("a: " + "[" * 60 + "]" * 60, "recipe.yml:1: a: has more than"),
    ],
)
def test_bad_yaml_is_refused_with_its_line(tmp_path, text, message):
    assert refused(tmp_path, text).startswith(message)


def test_bombs_of_aliases_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 20)]
    assert "aliases expanded" in refused(tmp_path, "\n".join(lines))
    merges = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40)]
    assert "aliases expanded" in refused(tmp_path, "\n".join(merges))


def test_files_that_are_not_recipes_are_refused(tmp_path):
    file = tmp_path / "recipe.yml"
    with pytest.raises(UserError, match=r"recipe\.yml: No such file"):
        read_documents(file)
    file.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(UserError, match="UTF-8"):
        read_documents(file)
    file.write_bytes(b"#" * (MOST_BYTES + 1))
    with pytest.raises(UserError, match="bytes"):
        read_documents(file)


@pytest.mark.parametrize(
    ("value", "kind", "typed"),
    [
        ("1e-3", float, 0.001),
        ("0.5", float, 0.5),
        (2, float, 2.0),
        (20, int, 20),
        (20.0, int, 20),
        (True, bool, True),
        (1, bool, True),
        (0.0, bool, False),
        ("l1", str, "l1"),
    ],
)
def test_scalars_of_the_right_type(value, kind, typed):
    found = Node(value, "a", "recipe.yml:1").typed(kind)
    assert found == typed
    assert type(found) is kind


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("high", float),
        (True, float),
        (None, float),
        (float("nan"), float),
        ("inf", float),
        ([], float),
        ({}, float),
        (10**400, float),
        (2.5, int),
        (float("inf"), int),
        (2, bool),
        ("true", bool),
        (3, str),
    ],
)
def test_scalars_of_the_wrong_type_are_refused(value, kind):
    with pytest.raises(UserError, match=r"^recipe.yml:1: a: is .*; give a|true or false"):
        Node(value, "a", "recipe.yml:1").typed(kind)


def test_a_near_match_is_the_remedy():
    assert choice("densty", ["weight", "density"]) == "did you mean density?"
    assert choice("xyz", ["weight", "density"]) == "choose one of weight, density"


def test_numbers_that_are_not_finite_are_none():
    assert finite_number("-.5") == -0.5
    assert finite_number("nan") is None
