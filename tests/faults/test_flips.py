"""Damage to a step, short: the scripts' own trials, and that a trial can fail."""

import pytest

from tools.faults import flips


@pytest.mark.parametrize('damages, count', [((flips.flip,), 20), (flips.DAMAGES, 12)], ids=['flip', 'other'])
def test_damage_is_detected_or_harmless(tmp_path, damages, count):
    ends = sum(flips.trials(count, 1, tmp_path, damages).values(), flips.collections.Counter())
    assert ends.total() == count and set(ends) <= {flips.REFUSED, flips.HARMLESS} and ends[flips.REFUSED]


def test_what_goes_wrong_is_told(tmp_path, monkeypatch):
    flips.save_two_steps(tmp_path / 'sound')

    def break_both(folder):
        for step in (1, 2):
            (folder / f'{step}.manifest.json').write_text('{')
    assert flips.trial(tmp_path / 'sound', lambda folder: None) == flips.HARMLESS
    assert flips.trial(tmp_path / 'sound', break_both).startswith('nothing was restored')
    monkeypatch.setattr(flips, 'HOST', {'rate': 0.2})
    assert flips.trial(tmp_path / 'sound', lambda folder: None) == 'restored what was never saved'
