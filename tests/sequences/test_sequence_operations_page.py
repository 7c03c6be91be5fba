"""The example of docs/sequence_operations.md runs, on a motif scanner as the function, without a model of ours."""

import re

import numpy as np
from conftest import REPOSITORY


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / "docs" / "sequence_operations.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "sequence_operations.md", "exec"), {})
    said = capsys.readouterr().out
    assert "completeness" in said
    assert "stand out, in 150 sequences" in said
    assert np.load("modisco/shap.npz")["arr_0"].shape == (150, 4, 120)
