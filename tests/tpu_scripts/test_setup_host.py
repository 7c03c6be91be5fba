"""A host is set up once, with a stand-in for Python."""

import pytest
from fake_tools import FakeTools, calls_noted_in


@pytest.fixture
def tools(tmp_path) -> FakeTools:
    return FakeTools(tmp_path / "tools")


def test_a_host_is_set_up_once_and_again_when_what_is_asked_for_has_changed(tools, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    for name in ("setup.py", "constraints.txt"):
        (package / name).write_text("# 1\n")
    # Stands for Python: makes a virtual environment whose Python and scmbert only note that they were called.
    venv = 'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/scmbert"; fi\n'
    tools.answer("python3.99", venv)

    def set_up(accelerator: str = "tpu") -> list[list[str]]:
        noted = tmp_path / "venv" / "calls"
        noted.unlink(missing_ok=True)
        options = ("--python", "python3.99", "--venv", tmp_path / "venv", "--package", package)
        ran = tools.script("setup_host.sh", "--accelerator", accelerator, *options)
        assert ran.code == 0, ran.err
        return calls_noted_in(tmp_path / "venv")

    pip, version = set_up()
    assert pip[1:4] == ["-m", "pip", "install"]
    assert pip[-4:] == ["-c", f"{package}/constraints.txt", "-e", f"{package}[tpu]"]
    assert version == ["scmbert", "--version"]
    assert set_up() == []
    assert set_up("cuda13")[0][-1] == f"{package}[cuda13]"
    (package / "constraints.txt").write_text("# 2\n")
    assert len(set_up("cuda13")) == 2
    assert set_up("cuda13") == []


def test_an_installation_that_failed_is_not_taken_for_done(tools, tmp_path):
    venv = 'if [ "$2" = venv ]; then mkdir -p "$3/bin"; echo "exit 9" > "$3/bin/python"; chmod +x "$3/bin/python"; fi\n'
    tools.answer("python3.99", venv)
    options = ("--accelerator", "cpu", "--python", "python3.99", "--venv", tmp_path / "venv")
    for _ in range(2):
        ran = tools.script("setup_host.sh", *options)
        assert ran.code == 1
        assert "failed with exit code 9" in ran.err
