"""The benchmark of the motif scan says what it measured, and that the scores are the same. No speed here."""

import json

from scmbert_jax.benchmarks.motif_speed import measure_scan


def test_a_scan_and_both_of_numpy_are_measured_and_agree(tmp_path):
    matrices = "".join(f">M{m} TF\n" + "".join(f"{b} [ {m} 2 9 {m} 1 ]\n" for b in "ACGT") for m in range(1, 4))
    (tmp_path / "a.jaspar").write_text(matrices.replace("G [ 1", "G [ 7").replace("T [ 3 2", "T [ 3 8"))
    found = measure_scan(tmp_path / "a.jaspar", (7, 9), length=30, rounds=2, most_numpy=8)
    rows = json.loads(json.dumps(found.to_dict()))["rows"]
    assert [(row["sequences"], row["summary"]) for row in rows] == [
        (7, "max"),
        (9, "max"),
        (9, "sum"),
        (9, "log_mean_exp"),
        (9, "hits"),
    ]
    assert rows[0]["speed"] > 0
    assert rows[0]["speed_products"] > 0
    assert 0 <= rows[0]["difference"] < 1e-4
    assert rows[1]["numpy_seconds"] is rows[1]["speed"] is None
    assert "3 of a.jaspar" in str(found.settings)
    assert found.text().count("\n") >= 6
