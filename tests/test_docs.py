"""The examples of the documentation, executed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REQUIRES = {"gpaw.md": "gpaw"}
"""Pages on hosts that are not always installed."""

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_examples_of_a_page_run_one_after_another(page: str, tmp_path: Path) -> None:
    if page in REQUIRES:
        pytest.importorskip(REQUIRES[page], reason=f"{page} needs {REQUIRES[page]}")
    blocks = re.findall(r"```(\w+)\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    assert {kind for kind, _ in blocks} == {"python"}
    code = "\n".join(block for _, block in blocks)
    for name in sorted({name for name in re.findall(r"^(\w+)\.kernel\(\)$", code, re.MULTILINE)}):
        code += f"assert {name}.converged\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
