"""What is printed when Orbax cannot write. Saving and restoring themselves: test_loop, test_killed_processes."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("words", "is_told"), [("Event loop is closed", False), ("something else", True)])
def test_writes_that_end_after_a_failed_save_print_no_traceback(words, is_told):
    program = f"""
import scmbert_jax.training.checkpoint
class Late:
    def __del__(self):
        raise RuntimeError({words!r})
del [Late()][0]
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ("Traceback" in ran.stderr) == is_told, ran.stderr
