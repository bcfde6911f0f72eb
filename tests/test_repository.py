"""What may not be anywhere in the repository, and what setup.py and constraints.txt owe each other."""

import ast
import importlib.metadata
import io
import pathlib
import re
import subprocess
import sys
import tokenize

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest

ROOT = pathlib.Path(__file__).parents[1]
# What runs in environments of its own, and the files that name their packages.
ELSEWHERE = {'tests/parity/reference/': ('tests/parity/reference/requirements.txt',),
             'tools/bench/peers/': tuple(f'tools/bench/peers/requirements/{name}.txt'
                                         for name in ('torch', 'trl-ppo', 'tunix'))}

IMPORTED_AS = {'tunix': 'google-tunix'}  # what is imported there under another name than its package's

# Each pattern is written so that it does not find itself.
FOREIGN = {
    'a path of one machine': re.compile(r'(?<![\w.}])/(work|tmp|root|home|Users|opt|mnt)/(?=[\w.])'),
    'the host of a registry': re.compile(r'py[p]i\.org|python[h]osted|registry\.npm|index[-]url'),
}
LOADERS = {'pickle', 'cloudpickle', 'dill', 'joblib', 'marshal', 'shelve'}
CALLS = {'eval', 'exec', '__import__', 'builtins.eval', 'builtins.exec', 'os.system', 'os.popen',
         'subprocess.getoutput', 'subprocess.getstatusoutput', 'asyncio.create_subprocess_shell',
         'yaml.load', 'yaml.load_all', 'yaml.full_load', 'yaml.unsafe_load', 'yaml.unsafe_load_all'}


def tracked(suffix: str = '') -> list[str]:
    """Files of the repository that git knows or would add, and that exist."""
    listed = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT,
                            check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted(name for name in set(listed) if name.endswith(suffix) and (ROOT / name).is_file())


def foreign(text: str) -> list[str]:
    return [f'line {number} has {what}: {line.strip()}' for number, line in enumerate(text.splitlines(), 1)
            for what, pattern in FOREIGN.items() if pattern.search(line)]


def dangers(source: str) -> list[str]:
    """Whatever in that module runs data as code, or text as a shell command."""
    found, nodes = [], list(ast.walk(ast.parse(source)))
    known = {item.asname: item.name for node in nodes if isinstance(node, ast.Import) for item in node.names
             if item.asname}
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [item.name for item in node.names]
            found += [f'line {node.lineno}: {name}' for name in names if name.split('.')[0] in LOADERS]
        if isinstance(node, ast.ImportFrom):  # under its bare name a call would not be seen
            found += [f'line {node.lineno}: {node.module}.{item.name}' for item in node.names
                      if f'{node.module}.{item.name}' in CALLS]
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition('.')
            if (name := known.get(first, first) + dot + rest) in CALLS:
                found.append(f'line {node.lineno}: {name}')
            found += [f'line {node.lineno}: {word.arg}' for word in node.keywords
                      if word.arg in ('shell', 'allow_pickle') and ast.unparse(word.value) != 'False']
    return found


@pytest.mark.parametrize('name', tracked())
def test_file_belongs_to_no_machine(name):
    assert foreign((ROOT / name).read_text('utf-8', errors='replace')) == []


@pytest.mark.parametrize('name', tracked('.py'))
def test_module_runs_no_data(name):
    assert dangers((ROOT / name).read_text('utf-8')) == []


@pytest.mark.parametrize('line', ['data_dir = "/' + 'home/me"', 'cd /' + 'tmp/x', 'https://pyp' + 'i.org'])
def test_foreign_line_is_found(line):
    assert len(foreign(line)) == 1


@pytest.mark.parametrize('line', ['import pickle', 'from cloudpickle import dumps', 'eval(text)',
                                  'os.system(text)', 'subprocess.run(text, shell=True)',
                                  'np.load(path, allow_pickle=True)', 'yaml.load(text)', 'from yaml import load',
                                  'builtins.exec(text)', 'subprocess.getoutput(text)',
                                  'import os as o\no.system(text)', 'import yaml as y\ny.load(text)',
                                  'def f():\n    import builtins as b\n    b.eval(text)',
                                  'import pickle as p\np.loads(x)', 'from os import system as s\ns(text)'])
def test_dangerous_line_is_found(line):
    assert len(dangers(line)) == 1


@pytest.mark.parametrize('line', ['lowered.compile()', 'model.eval(x)', 'np.load(path, allow_pickle=False)',
                                  'yaml.safe_load(text)', 'subprocess.run([text])',
                                  'import ours as yaml\nyaml.load(text)', 'import yaml as y\ny.safe_load(text)'])
def test_harmless_line_is_not(line):
    assert dangers(line) == []


def setup_lists() -> dict[str, ast.expr]:
    """REQUIRED and EXTRAS of setup.py, as syntax."""
    module = ast.parse((ROOT / 'setup.py').read_text())
    return {node.targets[0].id: node.value for node in module.body if isinstance(node, ast.Assign)}


REQUIRED = [Requirement(text) for text in ast.literal_eval(setup_lists()['REQUIRED'])]
EXTRAS = [Requirement(text) for extra in ast.literal_eval(setup_lists()['EXTRAS']).values() for text in extra]
PINS = {canonicalize_name(line.split('==')[0]): Requirement(line)
        for line in (ROOT / 'constraints.txt').read_text().splitlines() if not line.startswith('#')}


def version(pin: Requirement) -> str:
    return str(pin.specifier).removeprefix('==')


def test_every_dependency_has_its_reason_beside_it():
    tokens = tokenize.generate_tokens(io.StringIO((ROOT / 'setup.py').read_text()).readline)
    reasons = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    lists = [setup_lists()['REQUIRED'], *setup_lists()['EXTRAS'].values]
    bare = [item.value for part in lists for item in part.elts if item.lineno not in reasons]
    assert bare == []


def test_what_is_no_module_is_installed_with_its_package():
    call, = (node for node in ast.walk(ast.parse((ROOT / 'setup.py').read_text()))
             if isinstance(node, ast.Call) and ast.unparse(node.func) == 'setup')
    named = ast.literal_eval(next(word.value for word in call.keywords if word.arg == 'package_data'))
    files = {name for name in tracked() if name.startswith('llm/') and not name.endswith('.py')}
    assert files == {f'{package.replace(".", "/")}/{name}' for package, names in named.items() for name in names}


def test_constraints_are_exact_versions():
    assert [str(pin) for pin in PINS.values() if not re.fullmatch(r'==[\w.]+', str(pin.specifier))] == []


@pytest.mark.parametrize('requirement', REQUIRED + EXTRAS, ids=str)
def test_constraint_satisfies_the_requirement(requirement):
    assert requirement.specifier.contains(version(PINS[canonicalize_name(requirement.name)]))


def test_constraints_cover_what_is_needed_by_what_is_needed():
    """The closure of this machine's installed requirements, by their own metadata."""
    seen, waiting = set(), [(item.name, item.extras) for item in REQUIRED + EXTRAS if item.name != 'libtpu']
    while waiting:
        name, extras = waiting.pop()
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            wanted = needed.marker is None or any(needed.marker.evaluate({'extra': extra})
                                                  for extra in extras | {''})
            key = canonicalize_name(needed.name), frozenset(needed.extras)
            if wanted and key not in seen:
                seen.add(key)
                waiting.append((needed.name, needed.extras))
    assert len(seen) > 40
    assert {name for name, _ in seen} - set(PINS) == set()


def test_everything_imported_is_declared():
    """Whatever any module of ours imports comes from a package that setup.py names."""
    homes = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in REQUIRED + EXTRAS} | {'setuptools'}
    theirs = {folder: {canonicalize_name(Requirement(line).name) for file in files
                       for line in (ROOT / file).read_text().splitlines() if not line.startswith('#')}
              for folder, files in ELSEWHERE.items()}
    undeclared = set()
    for name in tracked('.py'):
        for top in imported_packages((ROOT / name).read_text('utf-8')):
            found = {canonicalize_name(home) for home in homes.get(top, (IMPORTED_AS.get(top, top),))}
            allowed = next((names for folder, names in theirs.items() if name.startswith(folder)), declared)
            if not found & allowed:
                undeclared.add((name, top))
    assert undeclared == set()


def imported_packages(source: str) -> set[str]:
    """Top-level names of what a module imports, without the standard library and our own folders."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split('.')[0])
    return {name for name in names if name not in sys.stdlib_module_names and not (ROOT / name).exists()}
