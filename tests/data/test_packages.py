"""Fetching with pip: hashes checked, a damaged cache mended, failures in one line. Needs no network."""

import hashlib
import io
import tarfile
import zipfile

from etils import epath
import pytest

from llm.data import packages
from llm.errors import UserError

FILE = 'quartet_nothing-1.0-py3-none-any.whl'


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder that is all of pip's world, with one wheel in it; returns (folder, the wheel's bytes)."""
    folder = tmp_path / 'shelf'
    folder.mkdir()
    with zipfile.ZipFile(folder / FILE, 'w') as wheel:
        wheel.writestr('quartet_nothing/data.txt', 'some data')
        for name, lines in (('METADATA', 'Metadata-Version: 2.1\nName: quartet-nothing\nVersion: 1.0\n'),
                            ('WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'),
                            ('RECORD', '')):
            wheel.writestr(f'quartet_nothing-1.0.dist-info/{name}', lines)
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(folder))
    return folder, (folder / FILE).read_bytes()


def package(content: bytes) -> packages.Package:
    return packages.Package('quartet-nothing', '1.0', FILE, hashlib.sha256(content).hexdigest())


def test_fetch_downloads_once_and_mends_a_damaged_file(shelf, tmp_path):
    folder, content = shelf
    cache = epath.Path(tmp_path / 'cache')
    assert packages.fetch(package(content), cache) == content
    (folder / FILE).rename(folder / 'away')
    assert packages.fetch(package(content), cache) == content
    (cache / FILE).write_bytes(content[:-1])
    (folder / 'away').rename(folder / FILE)
    assert packages.fetch(package(content), cache) == content
    assert (cache / FILE).read_bytes() == content
    assert [file.name for file in cache.iterdir()] == [FILE]


@pytest.mark.parametrize('wanted', ['another hash', 'another package'])
def test_what_cannot_be_had_is_one_line(shelf, tmp_path, wanted):
    _, content = shelf
    asked = {'another hash': package(content + b'x'),
             'another package': package(content)._replace(name='quartet-none')}[wanted]
    message = f'could not download {asked.name}==1.0.*check the network, or put'
    with pytest.raises(UserError, match=message) as caught:
        packages.fetch(asked, epath.Path(tmp_path / 'cache'))
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'cache' / FILE).exists()


def test_members_of_zip_and_tar(shelf):
    _, wheel = shelf
    assert packages.member(wheel, 'quartet_nothing/data.txt') == b'some data'
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode='w:gz') as file:
        entry = tarfile.TarInfo('b/data.txt')
        entry.size = 4
        file.addfile(entry, io.BytesIO(b'data'))
    assert packages.member(packed.getvalue(), 'b/data.txt') == b'data'
    assert packages.names(packed.getvalue()) == ['b/data.txt']
    assert 'quartet_nothing/data.txt' in packages.names(wheel)
