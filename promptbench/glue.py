"""GLUE's validation sets: from a file in --data_dir, else through `datasets`."""

from collections.abc import Sequence
from pathlib import Path

from inference_llms.data_sets import check_rows, load_from_hub, published_rows
from promptbench.prompt_task import Sample
from utils.content_hashes import unchanged
from utils.errors import UserError

_FIELDS = {"sentence": str, "label": int}


def load_validation_set(name: str, data_dir: Path | None) -> Sequence[Sample]:
    """The sentences of GLUE's set `name` (sst2, cola) in their order: of `data_dir`/<name>_dev.tsv, where there is such
    a file (a text, a tab, 0 or 1 a line; a first line of column names is passed over), else of `datasets`.

    Raises UserError for a folder that is not there, a file without samples, a malformed line (named), and a set that
    cannot be had.
    """
    file = f"{name}_dev.tsv"
    if data_dir is not None:
        if not data_dir.is_dir():
            raise UserError(f"--data_dir {data_dir} is not a folder; give one that holds {file}")
        if (data_dir / file).is_file():
            with unchanged([data_dir / file]):
                return _read_samples(data_dir / file)
    published_as = f"nyu-mll/glue ({name})"
    rows = published_rows(published_as, lambda: load_from_hub("nyu-mll/glue", name, split="validation"), f"put {file}")
    check_rows(published_as, rows, _FIELDS)
    return [Sample(row.fields["sentence"], row.fields["label"]) for row in rows]


def _read_samples(path: Path) -> Sequence[Sample]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}); replace it by the set's own file") from error
    samples = []
    for number, line in enumerate((line.removesuffix("\r") for line in lines), 1):
        text, tab, label = line.rpartition("\t")
        if number == 1 and tab and label == "label":
            continue
        if not line.strip():
            continue
        if not text.strip() or "\t" in text or label not in ("0", "1"):
            raise UserError(f"{path} line {number} is not a text, a tab and 0 or 1; mend or remove the line")
        samples.append(Sample(text, int(label)))
    if not samples:
        raise UserError(f"{path} holds no samples; replace it by the set's own file")
    return samples
