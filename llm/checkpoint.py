"""The only file that knows Orbax: save, fingerprint, seal, verify, restore; load a parent's parameters.

In: trees of global arrays, each leaf with a NamedSharding; host state as JSON; a stage's half of a `Manifest`.
Out: `<folder>/<step>/<item>` written by Orbax, and `<folder>/<step>.manifest.json`, which seals the step.
Left out: what a stage saves and when (`stages/`), what a manifest says and which parents fit (`manifest.py`).

Orbax restores a flipped bit, a half-copied folder and another dtype without a word. So each leaf gets a
fingerprint in jit before the save; the manifest that holds it is written last, atomically; nothing is restored
without its manifest, and nothing is handed out whose fingerprint differs.

On disk an item is a flat dict from leaf path to array: any part of a tree can be asked for by its paths, and
NamedTuples of optimizers need no care. Several processes: all call the same methods; process 0 alone seals.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import dataclasses
import datetime
import functools
import json
from typing import Any, NamedTuple

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import orbax.checkpoint as ocp

from llm.config import UserError, digest
from llm.manifest import Manifest, manifest_path, read, sealed_steps, write

_LANES = (np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B))  # a seed for each lane: any two odd words


class Restored(NamedTuple):
    step: int
    items: dict[str, Any]
    host: dict
    manifest: Manifest


class Damaged(UserError):
    """A step that cannot be trusted; the message is one line, without the step's name."""


class Checkpoints:
    """The steps of one run. A context manager: leaving it finishes and seals the last save.

    Args:
      folder: holds the steps and their manifests; a bucket's address will do.
      keep: how many of the newest sealed steps stay, beside the best; 2 or more.
      say: gets one line for every save or step that is refused.
    """

    def __init__(self, folder: epath.PathLike, *, keep: int, say: Callable[[str], None] = print):
        assert keep >= 2, 'with one step there is nothing to fall back to'
        self._folder = _absolute(folder)
        self._keep = keep
        self._say = say
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._sealer = ThreadPoolExecutor(1, 'seal')
        self._pending: Future | None = None
        self._sound: set[int] = set()
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.glob('*.orbax-checkpoint-tmp*'):  # of a process that was killed
                path.rmtree()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def save(self, step: int, items: dict[str, Any], host: dict, manifest: Manifest, *, best: bool = False) -> bool:
        """Saves in the background; the arrays may be donated as soon as this returns.

        Args:
          step: a step that this object has saved or restored already is not written again.
          items: name -> tree, such as params, opt_state, ema, train.
          host: JSON; Python ints and floats come back exactly.
          manifest: without the fields that have defaults, which are filled in here.
          best: this is the best step so far; it stays until another one is.

        Returns whether the step is saved: False, and one line said, where a number is not finite.
        Raises UserError if the save before this one failed.
        """
        self.wait()
        if step in self._sound:
            return True
        flat = {item: _flatten(tree) for item, tree in items.items()}
        leaves, broken = _describe(flat)
        if broken:
            self._say(f'step {step} is not saved: {broken} holds a number that is not finite')
            return False
        host = json.loads(json.dumps(host))
        manifest = dataclasses.replace(
            manifest, step=step, best=best, leaves=leaves, files={'host': digest(host)},
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'))
        if jax.process_index() == 0:
            manifest_path(self._folder, step).unlink(missing_ok=True)  # a refused step of that number, if any
        args = {item: ocp.args.PyTreeSave(leaves) for item, leaves in flat.items()}
        with _disk_errors(self._folder, step):
            self._orbax.save(self._folder / str(step), force=True,
                             args=ocp.args.Composite(host=ocp.args.JsonSave(host), **args))
        self._pending = self._sealer.submit(self._seal, manifest)
        self._sound.add(step)
        return True

    def restore(self, items: dict[str, Any]) -> Restored | None:
        """The newest sealed step that is sound, as saved, on the meshes of the shardings asked for.

        Args:
          items: name -> tree of arrays or ShapeDtypeStructs, each leaf with a NamedSharding.

        A step that is refused is named by one line, and set aside if an older one is sound. None if no step was
        ever sealed. Raises UserError if steps were sealed but none is sound, rather than starting over.
        """
        self.wait()
        refused = []
        for step in reversed(self.steps()):
            try:
                restored = _load(self._folder, step, items, exact=True)
            except UserError as reason:
                self._say(f'{self._folder}@{step} is refused: {reason}')
                refused.append(step)
                continue
            for newer in refused if jax.process_index() == 0 else ():
                path = manifest_path(self._folder, newer)
                path.replace(path.parent / f'{path.name}.refused')
            self._sound.add(step)
            return restored
        if refused:
            raise UserError(f'{self._folder}: every sealed step is refused; move the folder away to start over')
        return None

    def wait(self) -> None:
        """Until the last save is on disk and sealed. Raises UserError if it failed (disk full, say)."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._sealer.shutdown()
            self._orbax.close()

    def steps(self) -> list[int]:
        """The sealed steps, oldest first."""
        return sealed_steps(self._folder)

    def _seal(self, manifest: Manifest) -> None:
        # Not in Orbax's post_finalization_callback: that one runs before the rename to the final folder.
        with _disk_errors(self._folder, manifest.step):
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                write(manifest, manifest_path(self._folder, manifest.step))
                self._retire()

    def _retire(self) -> None:
        """Deletes what is neither among the newest `keep` nor the best; the seal goes first."""
        steps = self.steps()
        best = [step for step in steps if self._is_best(step)][-1:]
        for step in set(steps[:-self._keep]) - set(best):
            manifest_path(self._folder, step).unlink()
            (self._folder / str(step)).rmtree(missing_ok=True)

    def _is_best(self, step: int) -> bool:
        try:
            return read(manifest_path(self._folder, step)).best
        except UserError:
            return False


def load_params(folder: epath.PathLike, step: int | None, abstract: Any) -> tuple[Any, Manifest]:
    """A parent's parameters for a child: the averaged ones (`ema`) where the step has them.

    Args:
      folder: the folder of the steps.
      step: None is the newest sealed one.
      abstract: tree of ShapeDtypeStructs with NamedShardings; a sub-tree (a trunk, say) loads that part alone.

    Raises UserError, one line, for a step that is absent, damaged or does not fit; there is no fallback, but
    an older step that is sound is named.
    """
    folder = _absolute(folder)
    steps = sealed_steps(folder)
    if not steps:
        raise UserError(f'{folder} has no sealed step; give the folder of a run that has saved one')
    step = steps[-1] if step is None else step
    manifest = read(manifest_path(folder, step))
    item = 'ema' if 'ema' in manifest.leaves else 'params'
    try:
        return _load(folder, step, {item: abstract}, exact=False).items[item], manifest
    except Damaged as reason:
        sound = next((older for older in reversed(steps) if older < step and
                      _is_sound(folder, older, {item: abstract})), None)
        remedy = 'no older step is sound, make it again' if sound is None else f'use {folder}@{sound}'
        raise UserError(f'{folder}@{step} is refused: {reason}; {remedy}') from None


def fingerprint(tree: Any) -> dict[str, tuple[int, int]]:
    """Leaf path -> two 32-bit words that do not depend on the mesh; one pass over device memory.

    Every leaf carries a NamedSharding. One changed element always changes a word; any other change escapes with
    a chance of about 2**-64.
    """
    described, _ = _describe({'': _flatten(tree)})
    return {path: tuple(leaf['fingerprint']) for path, leaf in described[''].items()}


def _load(folder: epath.Path, step: int, items: dict[str, Any], *, exact: bool) -> Restored:
    """Loads and verifies; raises UserError where the step does not fit, Damaged where it cannot be trusted."""
    manifest = read(manifest_path(folder, step))
    flat = {item: _flatten(tree) for item, tree in items.items()}
    for item, leaves in flat.items():
        _compare(item, manifest.leaves.get(item, {}), leaves, exact=exact)
    args = {item: ocp.args.PyTreeRestore(leaves, ocp.checkpoint_utils.construct_restore_args(leaves),
                                         partial_restore=True) for item, leaves in flat.items()}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as orbax:
            loaded = orbax.restore(folder / str(step), ocp.args.Composite(host=ocp.args.JsonRestore(), **args))
    except Exception as error:  # whatever Orbax, TensorStore or JSON make of a broken file
        raise Damaged(f'it cannot be loaded ({_first_line(error)})') from error
    described, _ = _describe({item: loaded[item] for item in flat})
    for item, leaves in described.items():
        for path, leaf in leaves.items():
            if leaf != manifest.leaves[item][path]:
                raise Damaged(f'{item}/{path} does not have the fingerprint it was saved with')
    if digest(loaded['host']) != manifest.files['host']:
        raise Damaged('its host state does not have the SHA-256 it was saved with')
    trees = {item: jax.tree.unflatten(jax.tree.structure(tree), [loaded[item][path] for path in flat[item]])
             for item, tree in items.items()}
    return Restored(step, trees, loaded['host'], manifest)


def _is_sound(folder: epath.Path, step: int, items: dict[str, Any]) -> bool:
    try:
        _load(folder, step, items, exact=False)
    except UserError:
        return False
    return True


def _compare(item: str, saved: dict[str, dict], wanted: dict[str, Any], *, exact: bool) -> None:
    """Before anything is loaded: Orbax casts dtypes silently."""
    for path in sorted(wanted.keys() - saved.keys()):
        raise UserError(f'{item}/{path} is wanted and not in the step; give a step of the same architecture')
    for path in sorted(saved.keys() - wanted.keys() if exact else ()):
        raise UserError(f'{item}/{path} is in the step and not wanted; give a step of the same architecture')
    for path, leaf in wanted.items():
        for key, value in (('shape', list(leaf.shape)), ('dtype', str(leaf.dtype))):
            if saved[path][key] != value:
                raise UserError(f'{item}/{path} has {key} {saved[path][key]}, wanted {value}; '
                                f'give a step of the same architecture')


def _flatten(tree: Any) -> dict[str, Any]:
    """Leaf path -> leaf, in the order of the tree's leaves."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in pairs}
    assert len(flat) == len(pairs), 'two leaves have the same path'
    return flat


def _describe(flat: dict[str, dict[str, jax.Array]]) -> tuple[dict[str, dict[str, dict]], str | None]:
    """For every item and path: shape, dtype, fingerprint. And the first leaf that is not finite, if any."""
    leaves = [leaf for item in flat.values() for leaf in item.values()]
    words = iter(np.asarray(_digests(leaves[0].sharding.mesh)(leaves)).tolist())
    described, broken = {}, None
    for item, paths in flat.items():
        described[item] = {}
        for path, leaf in paths.items():
            *lanes, non_finite = next(words)
            described[item][path] = {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'fingerprint': lanes}
            broken = broken or (f'{item}/{path}' if non_finite else None)
    return described, broken


@functools.lru_cache
def _digests(mesh: Mesh):
    """Jitted: leaves -> uint32[leaves, 3], on every device, so that every process can read it."""
    return jax.jit(lambda leaves: jnp.stack([_digest(leaf) for leaf in leaves]),
                   out_shardings=NamedSharding(mesh, PartitionSpec()))


def _digest(x: jax.Array) -> jax.Array:
    """uint32[3]: two lanes of sum(mix(word ^ hash(index))) modulo 2**32, and how many numbers are not finite.

    Integers are added, so no order of summation and no mesh changes the result. `mix` is a bijection, so one
    changed word changes the sum; the index enters hashed, axis by axis (a linear index would overflow), so
    exchanged or shifted elements change it too.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    finite = jnp.isfinite(x) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.ones((), bool)
    bits = x.dtype.itemsize * 8
    words = jax.lax.bitcast_convert_type(x, f'uint{min(bits, 32)}').astype(jnp.uint32)
    lanes = []
    for seed in _LANES:
        place = jnp.full((1,) * words.ndim, seed, jnp.uint32)
        for axis, size in enumerate(words.shape):
            along = [size if other == axis else 1 for other in range(words.ndim)]
            place = place + _mix(jax.lax.iota(jnp.uint32, size) * seed + np.uint32(axis + 1)).reshape(along)
        lanes.append(jnp.sum(_mix(words ^ place), dtype=jnp.uint32))
    return jnp.stack([*lanes, jnp.sum(~finite, dtype=jnp.uint32)])


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every bit moves about half the others ("lowbias32", Chris Wellons)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)


class _disk_errors:
    """Turns whatever goes wrong while a step is written into one line."""

    def __init__(self, folder: epath.Path, step: int):
        self._message = f'{folder}@{step} could not be written'

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, Exception):
            raise UserError(f'{self._message} ({_first_line(error)}); make room or repair the disk and start '
                            f'again, it continues from the last sealed step') from error


def _absolute(folder: epath.PathLike) -> epath.Path:
    return epath.Path(folder).resolve()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
