"""JSON-lines files: their bytes, and what is read back."""

import json

from utils.json_files import read_json_lines, write_json_lines


def test_json_lines_are_those_of_the_json_module(tmp_path):
    rows = [
        {"id": 1, "text": "é\u2028\n\r😀", "score": 0.1 + 0.2, "least": 5e-324},
        {},
        {"none": None, "nan": float("nan")},
    ]
    path = tmp_path / "rows.jsonl"
    for ascii_only in (True, False):
        write_json_lines(path, iter(rows), ascii_only)
        lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
        assert path.read_bytes() == "".join(f"{line}\n" for line in lines).encode()
        assert read_json_lines(path, "remove it")[:2] == rows[:2]
    write_json_lines(path, [])
    assert path.read_bytes() == b""
    write_json_lines(path, [{"path": tmp_path}])
    assert read_json_lines(path, "remove it") == [{"path": str(tmp_path)}]
