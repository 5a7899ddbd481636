"""How the host of a run is described."""

from __future__ import annotations

import json

from bench.environment import describe


def test_the_host_is_described_with_null_for_what_cannot_be_told() -> None:
    described = describe()
    assert described["cores"] >= 1
    assert described["versions"]["pyzmq"]
    assert json.loads(json.dumps(described)) == described
