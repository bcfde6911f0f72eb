"""Two of the ordered pairs of meshes; the long form has all."""

import pytest

from tools.faults import reshard


@pytest.mark.slow
def test_restored_on_another_mesh_it_trains_on_alike(tmp_path):
    pairs = reshard.trials(2, 0, tmp_path)
    assert len(pairs) == 2 and all(pair.equal for pair in pairs)
    assert all(pair.difference <= reshard.TOLERANCE for pair in pairs)
