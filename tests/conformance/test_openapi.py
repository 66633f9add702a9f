"""schemathesis against the OpenAPI document: no server error, and answers as the document says.

`pip install 'hypercore[conformance]'`; one daemon over a containerd without images or guests.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hypercore import paths
from hypercore.api import Scope
from hypercore.serve.tokens import Grants
from tests.integration import own_containerd
from tests.integration.serve_lab import daemon

EXAMPLES = os.environ.get("HYPERCORE_EXAMPLES", "20")
CONFIG = Path(__file__).with_name("schemathesis.toml")
NOT_ASKED = (
    "Events",  # never ends
    "PullImage",  # would ask registries
)


@pytest.mark.timeout(900)
def test_the_document_and_the_answers_agree(root: None, tmp_path: Path) -> None:
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    program = shutil.which("schemathesis", path=search)
    if program is None:
        pytest.skip("schemathesis is not installed: pip install 'hypercore[conformance]'")
    with own_containerd.running(), daemon("--http", "127.0.0.1:0", "--plaintext") as running:
        token = Grants(paths.tokens_file()).create("schemathesis", Scope.ADMIN)
        where = running.address("http-tcp")
        command = [program, "--config-file", str(CONFIG), "run", f"{where}/v1/openapi.json"]
        command += ["--header", f"Authorization: Bearer {token}", "--max-examples", EXAMPLES]
        for name in NOT_ASKED:
            command += ["--exclude-operation-id", name]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
