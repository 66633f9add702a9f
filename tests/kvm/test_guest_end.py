"""A guest that resets ends its VM on every provider, and is not booted again."""

import time
from pathlib import Path

import pytest

from tests.functional.conftest import SHELL_REF
from tests.functional.instance import BOOT_DEADLINE_S, Instance
from tests.kvm.conftest import PROVIDERS

HAC = """\
[vm]
provider = "{provider}"
cmdline = "rdinit=/nowhere root=/dev/nowhere"
[network]
mode = "none"
"""

pytestmark = pytest.mark.timeout(4 * BOOT_DEADLINE_S)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_kernel_that_panics(hypercore: Instance, tmp_path: Path, provider: str) -> None:
    """Without an init it panics, and our `panic=-1` makes of that a reset at once."""
    path = tmp_path / "hac.toml"
    path.write_text(HAC.format(provider=provider))
    begun = time.monotonic()
    result = hypercore.run(
        "spawn", "--hac", path, SHELL_REF, check=False, timeout=2 * BOOT_DEADLINE_S
    )
    print(f"\n{provider}: told after {time.monotonic() - begun:.1f} s: {result.err[:400]}")
    assert result.code == 125, result
    assert "vmm ended with status 0" in result.err, result
    if provider == "cloud-hypervisor":
        assert "its guest reset" in result.err
