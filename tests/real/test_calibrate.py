"""
`jouleproxy calibrate` on the real vLLM: what it writes is what `serve` starts with.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.accounting.model_shape import LLAMA_8B
from proxy.accounting.weights import roofline_prior
from proxy.upstream.prior import Priors
from proxy.upstream.weights_file import read_weights
from tests.engine.real import RealEngine
from tests.live import LiveProxy

pytestmark = pytest.mark.real


def test_a_short_calibration_of_the_real_server_is_taken_by_the_service(
    real_engine: RealEngine, tmp_path: Path
) -> None:
    """Half a minute with a meter that is only a model: the file says so, and a proxy starts with it."""
    output = tmp_path / "weights.toml"
    flags = ["--meter", "modelled", "--allow-estimated", "--yes", "--minutes", "0.5"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JOULEPROXY_")}
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "calibrate", "-b", real_engine.url, *flags, "-o", str(output)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=clean,
        cwd=Path(__file__).parents[2],
    )

    if done.returncode == 1:
        # The meter is a model of CPU time: what else runs here may hide all that there is to learn. Then it says so.
        assert "nothing was written" in done.stdout.lower(), done.stdout + done.stderr
        assert "the prior by" in done.stdout, done.stdout
        assert not output.exists()
        return
    assert done.returncode == 0, done.stdout + done.stderr
    weights, about = read_weights(output)
    assert (about.model, about.estimated, about.steps) == ("tiny", True, "token times")
    assert about.held_out_mape_percent < about.prior_mape_percent
    assert about.requests > 50
    assert about.fitted
    assert Priors("b", [], weights_file=output, config_file=None).at_start() == weights
    assert weights != roofline_prior(LLAMA_8B)
    config = f'[[backends]]\nurl = "{real_engine.url}"\nweights_file = "{output}"\n'
    with LiveProxy(backends=[], ledger=tmp_path / "ledger.db", config=config) as proxy:
        assert "weights calibrated on" in proxy.log.read_text()
