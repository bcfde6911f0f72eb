"""Checkpoints: what is restored is bit for bit what was saved, or nothing is; and what was sound stays."""

import json
import resource
import shutil

import jax
from jax.sharding import NamedSharding, PartitionSpec
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm.checkpoint import Checkpoints, load_params
from llm.errors import exit_code, StorageError, UserError
from llm.execution import MeshConfig
from llm.manifest import manifest_path, read
from llm.sharding import make_mesh
from tests.test_manifest import manifest, one_line

MESH = make_mesh(MeshConfig(2, 2, 2))
OTHERS = [make_mesh(MeshConfig(*sizes)) for sizes in ((8, 1, 1), (1, 1, 1), (1, 2, 4))]
SPECS = {'mlp': PartitionSpec(None, 'fsdp', 'tensor'), 'embed': PartitionSpec(('data', 'fsdp'))}
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1.0, 0.0, 9)))
FIRST = {'rate': 0.1, 'best': 1e300, 'position': 2**60 + 1, 'texts': ['é', None]}


def placed(tree, mesh):
    """Every leaf on the mesh, split as its name says, in a buffer of its own."""
    def one(path, leaf):
        named = {key: spec for key, spec in SPECS.items() if f"'{key}'" in jax.tree_util.keystr(path)}
        spec = next(iter(named.values()), PartitionSpec()) if leaf.ndim else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))
    return jax.tree_util.tree_map_with_path(one, tree)


def items(seed: int = 0, mesh=MESH):
    """The items of a small train state, with every kind of leaf there is."""
    rng = np.random.default_rng(seed)
    params = {'embed': {'w': jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)},
              'layers': {'mlp': jnp.asarray(rng.normal(size=(2, 8, 12)), jnp.float32),
                         'norm': jnp.asarray(rng.normal(size=(2, 8)), jnp.bfloat16)}}
    opt_state = jax.tree.map(lambda leaf: leaf + jnp.asarray(seed, leaf.dtype), TX.init(params))
    train = {'step': jnp.asarray(seed, jnp.int32), 'key': jax.random.key(seed)}
    return placed({'params': params, 'opt_state': opt_state, 'train': train}, mesh)


def abstract(tree):
    def one(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return jax.tree.map(one, tree)


def same(a, b) -> bool:
    """Equal trees, bit for bit, on whatever meshes."""
    def bits(leaf):
        leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(
        lambda x, y: bits(x) == bits(y), a, b))


def fill(folder, steps, *, keep: int = 9, best=()):
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            host = {**FIRST, 'step': step}
            assert checkpoints.save(step, items(step), host, manifest(step=0), best=step in best)


@pytest.fixture(scope='session')
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp('steps') / 'checkpoints'
    fill(folder, (1, 2))
    return folder


@pytest.fixture
def folder(two_steps, tmp_path):
    """A copy of a folder with sealed steps 1 and 2, to be damaged."""
    return shutil.copytree(two_steps, tmp_path / 'checkpoints')


def restored(folder, wanted=None):
    """What a restart finds, and the lines it says."""
    lines = []
    with Checkpoints(folder, keep=9, say=lines.append) as checkpoints:
        result = checkpoints.restore(wanted or abstract(items()))
    return result, lines


def falls_back(folder, *words):
    """Asserts that step 2 is refused in one line and step 1 comes back whole."""
    result, lines = restored(folder)
    assert result.step == 1 and result.host == {**FIRST, 'step': 1} and same(result.items, items(1))
    assert len(lines) == 1 and '\n' not in lines[0], lines
    for word in ('@2 is refused', *words):
        assert word in lines[0], lines


def tensor_files(folder, step: int):
    """The files of a step's parameters that hold tensor data, the largest first."""
    files = [path for path in (folder / str(step) / 'params').rglob('d/*') if path.is_file()]
    return sorted(files, key=lambda path: -path.stat().st_size)


def flip(path, byte: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte % len(content)] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize('mesh', [MESH, *OTHERS], ids=str)
def test_restores_bit_equal_on_any_mesh(two_steps, mesh):
    wanted = items(0, mesh)
    result, lines = restored(two_steps, abstract(wanted))
    assert result.step == 2 and not lines and same(result.items, items(2))
    assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding == y.sharding, result.items, wanted))
    assert result.host == {**FIRST, 'step': 2} and isinstance(result.host['position'], int)


def test_the_state_may_be_donated_at_once(tmp_path):
    def large():
        return {'w': jax.device_put(jnp.arange(2**21, dtype=jnp.float32).reshape(8, -1),
                                    NamedSharding(MESH, PartitionSpec('fsdp')))}
    train_step = jax.jit(lambda params: jax.tree.map(lambda x: -x, params), donate_argnums=0)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        params = large()
        checkpoints.save(1, {'params': params}, {}, manifest())
        after = train_step(params)
        assert params['w'].is_deleted()
        checkpoints.wait()
        assert same(checkpoints.restore({'params': abstract(after)}).items['params'], large())


def test_flipped_bits_of_tensor_data_are_refused(folder, two_steps):
    path, seal = tensor_files(folder, 2)[0], manifest_path(two_steps, 2)
    sound = path.read_bytes()
    refused = 0
    for byte in range(11, len(sound), len(sound) // 40):
        flip(path, byte, byte % 8)
        result, lines = restored(folder)
        assert same(result.items, items(result.step)) and len(lines) == (result.step == 1)
        refused += result.step == 1
        path.write_bytes(sound)
        shutil.copy(seal, manifest_path(folder, 2))
    assert refused > 30


def test_a_flipped_bit_in_any_file_is_refused_or_harmless(folder):
    refused = set()
    for path in sorted(path for path in (folder / '2').rglob('*') if path.is_file() and path.stat().st_size):
        copy = shutil.copytree(folder, folder.with_name('copy'))
        flip(copy / path.relative_to(folder), path.stat().st_size // 2, 2)
        result, lines = restored(copy)
        assert same(result.items, items(result.step)) and result.host == {**FIRST, 'step': result.step}
        assert len(lines) == (result.step == 1)
        refused |= {path.relative_to(folder / '2').parts[0]} if result.step == 1 else set()
        shutil.rmtree(copy)
    assert refused >= {'params', 'opt_state', 'train', 'host'}


def test_truncated_tensor_data_falls_back(folder):
    path = tensor_files(folder, 2)[0]
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    falls_back(folder)


def test_a_deleted_file_falls_back(folder):
    tensor_files(folder, 2)[0].unlink()
    falls_back(folder, 'cannot be loaded')


def test_a_half_copied_step_falls_back(folder, caplog, capfd):
    for path in sorted(path for path in (folder / '2').rglob('*') if path.is_file())[1::2]:
        path.unlink()
    falls_back(folder, 'cannot be loaded')
    assert not caplog.records and 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize('item', ['params', 'opt_state', 'train', 'host'])
def test_a_missing_item_falls_back(folder, item):
    shutil.rmtree(folder / '2' / item)
    falls_back(folder)


def test_a_missing_folder_falls_back(folder):
    shutil.rmtree(folder / '2')
    falls_back(folder, 'cannot be loaded')


def test_another_steps_data_falls_back(folder):
    shutil.rmtree(folder / '2')
    shutil.copytree(folder / '1', folder / '2')
    falls_back(folder, 'fingerprint')


def test_another_steps_manifest_falls_back(folder):
    shutil.copy(manifest_path(folder, 1), manifest_path(folder, 2))
    falls_back(folder, 'step=1')


def test_changed_host_state_falls_back(folder):
    path = folder / '2' / 'host' / 'metadata'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'rate': 0.2}))
    falls_back(folder, 'host state')


def test_a_damaged_manifest_falls_back(folder):
    manifest_path(folder, 2).write_text(manifest_path(folder, 2).read_text()[:100])
    falls_back(folder, 'damaged')


def test_a_step_without_its_manifest_was_never_sealed(folder):
    manifest_path(folder, 2).unlink()
    result, lines = restored(folder)
    assert result.step == 1 and not lines
    manifest_path(folder, 1).unlink()
    assert restored(folder) == (None, [])


def test_a_run_without_a_sound_step_does_not_start_over(folder):
    for step in (1, 2):
        tensor_files(folder, step)[0].write_bytes(b'')
    with pytest.raises(UserError) as error:
        restored(folder)
    one_line(error, str(folder), 'none of them sound', 'move the folder away')


def test_a_refused_step_makes_way(folder):
    flip(tensor_files(folder, 2)[0], 99)
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.restore(abstract(items())).step == 1
        assert checkpoints.steps() == [1]
        checkpoints.save(2, items(2), {**FIRST, 'step': 2}, manifest())
    result, lines = restored(folder)
    assert result.step == 2 and same(result.items, items(2)) and not lines


def test_what_a_killed_save_left_behind_goes(folder):
    (folder / '3.orbax-checkpoint-tmp' / 'params').mkdir(parents=True)
    (folder / '4.manifest.json.unfinished').write_text('{')
    result, lines = restored(folder)
    assert result.step == 2 and not lines and not (folder / '3.orbax-checkpoint-tmp').exists()


def test_a_sealed_step_is_not_written_again(folder):
    with Checkpoints(folder, keep=2) as checkpoints, pytest.raises(AssertionError):
        checkpoints.save(2, items(2), {}, manifest())


def test_a_non_finite_state_is_not_saved(tmp_path):
    lines = []
    for value in (jnp.inf, jnp.nan):
        broken = items()
        norm = broken['params']['layers']['norm']
        broken['params']['layers']['norm'] = jax.device_put(norm.at[1, 3].set(value), norm.sharding)
        with Checkpoints(tmp_path, keep=2, say=lines.append) as checkpoints:
            assert not checkpoints.save(1, broken, {}, manifest())
            assert checkpoints.steps() == []
    assert len(lines) == 2 and all('params/layers/norm' in line and '\n' not in line for line in lines)


def kept(folder) -> set[int]:
    steps = {int(path.name) for path in folder.iterdir() if path.is_dir()}
    assert steps == {int(path.name.split('.')[0]) for path in folder.glob('*.manifest.json')}
    return steps


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    fill(tmp_path / 'plain', range(1, 6), keep=2)
    assert kept(tmp_path / 'plain') == {4, 5}
    fill(tmp_path / 'best', range(1, 6), keep=2, best=(1, 2))
    assert kept(tmp_path / 'best') == {2, 4, 5}
    # Step 4 knows of no better step than 2, so 2 stays as long as 4 may have to be gone back to.
    fill(tmp_path / 'new best', range(1, 6), keep=2, best=(2, 5))
    assert kept(tmp_path / 'new best') == {2, 4, 5}
    fill(tmp_path / 'new best', (6,), keep=2)
    assert kept(tmp_path / 'new best') == {5, 6}


def test_nothing_is_deleted_before_a_newer_step_is_sealed(tmp_path, monkeypatch):
    fill(tmp_path, (1, 2), keep=2)

    def write(*_):
        raise OSError('no space')
    monkeypatch.setattr('llm.checkpoint.write', write)
    with pytest.raises(StorageError) as error:
        fill(tmp_path, (3,), keep=2)
    one_line(error, f'{tmp_path}@3', 'no space')
    assert restored(tmp_path)[0].step == 2
    monkeypatch.undo()
    fill(tmp_path, (3, 4), keep=2)  # over the unsealed folder of step 3
    assert kept(tmp_path) == {3, 4}


def peer_gone(*_, **__):
    """As Orbax's barriers raise when a process has died: a TimeoutError, which is an OSError, from one of JAX's."""
    try:
        raise jax.errors.JaxRuntimeError('UNAVAILABLE: Failed to send RPC to coordination service')
    except jax.errors.JaxRuntimeError as error:
        raise TimeoutError('Timed out while waiting for a barrier.') from error


def test_a_peer_that_dies_while_a_step_is_written_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    """Nor for a mistake of the user's, which would not be tried again."""
    fill(tmp_path, (1,))

    def wait(_):
        monkeypatch.undo()  # it is raised once
        peer_gone()
    monkeypatch.setattr('orbax.checkpoint.AsyncCheckpointer.wait_until_finished', wait)
    with pytest.raises(RuntimeError, match='a process is gone') as error:
        fill(tmp_path, (2,))
    assert exit_code(error.value) == 1
    assert restored(tmp_path)[0].step == 1


def test_a_peer_that_dies_while_a_step_is_read_is_not_taken_for_damage(tmp_path, monkeypatch):
    """The step is not refused, and no older one is read instead."""
    fill(tmp_path, (1, 2))
    monkeypatch.setattr('orbax.checkpoint.Checkpointer.restore', peer_gone)
    with pytest.raises(RuntimeError, match='a process is gone') as error:
        restored(tmp_path)
    assert exit_code(error.value) == 1
    monkeypatch.undo()
    assert restored(tmp_path)[0].step == 2


def test_a_full_disk_is_one_line_and_the_old_step_stays(folder, caplog, capfd):
    noise = {'params': placed({'w': jax.random.normal(jax.random.key(0), (8, 2**14))}, MESH)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(folder, keep=2)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))  # the kernel refuses to write more to a file
        checkpoints.save(3, noise, {}, manifest())
        with pytest.raises(StorageError) as error:
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        checkpoints.close()
    one_line(error, f'{folder}@3 could not be written', 'too large', 'start again')
    assert not caplog.records and 'Traceback' not in capfd.readouterr().err
    result, lines = restored(folder)
    assert result.step == 2 and not lines
    fill(folder, (3,))
    assert restored(folder)[0].step == 3


def params_of(mesh=MESH):
    return abstract(items(0, mesh)['params'])


def test_a_child_loads_all_or_a_part(two_steps):
    params, there = load_params(two_steps, 1, params_of(OTHERS[0]))
    assert same(params, items(1)['params']) and there == read(two_steps, 1)
    params, there = load_params(two_steps, None, {'layers': params_of()['layers']})
    assert there.step == 2 and same(params, {'layers': items(2)['params']['layers']})


def test_a_child_takes_the_average_where_there_is_one(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, {**items(1), 'ema': items(7)['params']}, {}, manifest())
    params, _ = load_params(tmp_path, 1, params_of())
    assert same(params, items(7)['params'])


def test_a_damaged_parent_is_refused_and_a_sound_step_named(folder):
    flip(tensor_files(folder, 2)[0], 99)
    with pytest.raises(UserError) as error:
        load_params(folder, 2, params_of())
    one_line(error, f'{folder}@2', f'use {folder}@1')
    tensor_files(folder, 1)[0].unlink()
    with pytest.raises(UserError) as error:
        load_params(folder, 2, params_of())
    one_line(error, f'{folder}@2', 'make it again')


def test_an_absent_parent_is_refused(folder, tmp_path):
    with pytest.raises(UserError) as error:
        load_params(folder, 7, params_of())
    one_line(error, '7.manifest.json', '1, 2')
    with pytest.raises(UserError) as error:
        load_params(tmp_path / 'nowhere', None, params_of())
    one_line(error, 'nowhere', 'no sealed step')


@pytest.mark.parametrize('change, words', [
    ({'shape': (2, 8, 16)}, ['params/layers/mlp', 'shape [2, 8, 12]', '[2, 8, 16]']),
    ({'dtype': jnp.bfloat16}, ['params/layers/mlp', 'dtype float32', 'bfloat16']),
])
def test_another_shape_or_dtype_is_refused(folder, change, words):
    wanted = items()
    leaf = wanted['params']['layers']['mlp']
    wanted['params']['layers']['mlp'] = jax.ShapeDtypeStruct(
        **{'shape': leaf.shape, 'dtype': leaf.dtype, 'sharding': leaf.sharding} | change)
    with pytest.raises(UserError) as error:
        load_params(folder, 2, wanted['params'])
    one_line(error, *words)
    with pytest.raises(UserError) as error:
        restored(folder, wanted)
    one_line(error, *words)


def test_another_tree_is_refused(folder):
    more = items()
    more['params']['token_head'] = {'w': more['params']['embed']['w']}
    with pytest.raises(UserError) as error:
        load_params(folder, 2, more['params'])
    one_line(error, 'params/token_head/w', 'not in the step')
    less = items()
    del less['params']['layers']['norm']
    with pytest.raises(UserError) as error:
        restored(folder, less)
    one_line(error, 'params/layers/norm', 'not wanted')
    assert read(folder, 2).step == 2  # a program that does not fit sets nothing aside
